"""What a GPU can do, and what it takes for what a launch asks of it.

The one place with rates. They are read from a table for each kind of device, in
`rates/`, which `python -m benchmarks.calibrate` writes; a table says of each where it
is from. Where a device has none of its own, another's stand in, and `Chip.source` says
so.

A launch takes, in seconds,

    launch + first fetch + prologue + p-norm of what overlaps

where what overlaps are the parts of the chip that work side by side: device memory, L2,
TMA, shared memory, instructions, tensor cores, peers; and, as one more of them, the
chain of waits that one CTA cannot shorten: the round trips and meetings of its tiles.
The sum of powers says that parts overlap well but never wholly: with an exponent of 4.5
two that are busy for the same time take 1.2 times as long as one, and one that is busy
for half of the time of another adds 1 %.

What belongs to a multiprocessor (all but device memory and L2) takes as long as on the
one that has the most to do: tiles are whole, so are CTAs, and clusters that find no
room wait for others to end.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from pallas_kernels.common.usage import Usage

FOLDER = pathlib.Path(__file__).parent / "rates"
DEVICE = "NVIDIA H200"  # Whose rates serve where no device is named.
SECTOR = 32  # Bytes that the L2 cache deals in.
LINE = 128  # Bytes of a line of it.


@dataclasses.dataclass(frozen=True, slots=True)
class Chip:
    """Rates, limits and times of a GPU.

    Attributes:
      device: as `jax.Device.device_kind` has it.
      multiprocessors: how many there are.
      smem_bytes: shared memory of a multiprocessor.
      smem_bytes_per_cta: that one CTA may take.
      system_bytes: of shared memory, that the system takes for each CTA.
      registers: of a multiprocessor, of 32 bits.
      residency: (size of a cluster, clusters that run at once with one CTA a
        multiprocessor, the same with two).
      clock: of a multiprocessor, in hertz.
      hbm: bytes a second that a copy reads and writes in device memory.
      l2: bytes a second between L2 and multiprocessors.
      peers: bytes a second between multiprocessors of a cluster, all together.
      wgmma: floating-point operations a second of a large product of bfloat16.
      mma_clocks: of a multiprocessor for an mma.sync of 16 × 8 × 16.
      run_clocks: (bytes of a run that TMA moves, clocks of a multiprocessor), in order.
      line_clocks: for a line that a warp touches in global memory.
      instructions_per_clock: that a multiprocessor issues at best, of four.
      instructions_per_warp: that one warp issues in a clock, as its instructions wait
        for one another; fitted.
      trip_seconds: from the start of a fetch to its arrival, in a busy chip.
      meeting_seconds: lost where the warpgroups of a CTA wait for one another.
      launch_seconds: that a kernel takes, on the device, if it has nothing to do.
      overlap: the exponent of the p-norm.
      sources: of each rate, where it is from: "measured", or why it is assumed.
    """

    device: str
    multiprocessors: int
    smem_bytes: int
    smem_bytes_per_cta: int
    system_bytes: int
    registers: int
    residency: tuple[tuple[int, int, int], ...]
    clock: float
    hbm: float
    l2: float
    peers: float
    wgmma: float
    mma_clocks: float
    run_clocks: tuple[tuple[int, float], ...]
    line_clocks: float
    instructions_per_clock: float
    instructions_per_warp: float
    trip_seconds: float
    meeting_seconds: float
    launch_seconds: float
    overlap: float
    sources: tuple[tuple[str, str], ...] = ()

    def source(self, rate: str) -> str:
        """Where a rate is from: "measured", or why it is assumed."""
        return dict(self.sources).get(rate, "assumed")

    def ctas_per_multiprocessor(self, smem_bytes: int, registers: int) -> int:
        """How many CTAs share a multiprocessor: 2 or 1.

        Args:
          smem_bytes: shared memory of a CTA.
          registers: of all its threads.
        """
        fits = 2 * (smem_bytes + self.system_bytes) <= self.smem_bytes
        return 2 if fits and 2 * registers <= self.registers else 1

    def resident(self, cluster: int, per_multiprocessor: int = 1) -> int:
        """How many clusters run at once.

        Args:
          cluster: CTAs of a cluster: 1, 2, 4, 8 or 16.
          per_multiprocessor: CTAs that a multiprocessor has room for.
        """
        for size, alone, twice in self.residency:
            if size == cluster:
                return twice if per_multiprocessor > 1 else alone
        sizes = [size for size, *_ in self.residency]
        raise ValueError(f"cluster must be one of {sizes}, got {cluster}")

    def busy(self, usage: Usage) -> dict[str, float]:
        """Seconds that each part of the chip is busy for, if nothing else waited."""
        at_once = self.resident(usage.cluster, usage.per_multiprocessor)
        clusters = -(-usage.ctas // usage.cluster)
        waves = -(-clusters // at_once)
        rounds = waves * -(-usage.tiles // usage.ctas)
        # Tiles of the multiprocessor that has the most of them, over those of all.
        running = min(usage.ctas, at_once * usage.cluster)
        together = -(-running // self.multiprocessors)
        slowest = rounds * together / usage.tiles / self.clock
        runs = sum(self._run_clocks(size) * count for size, count in usage.runs)
        tensor = usage.mmas * self.mma_clocks
        tensor += usage.wgmma_flops / self.wgmma * self.multiprocessors * self.clock
        wait = usage.trips * self.trip_seconds + usage.meetings * self.meeting_seconds
        issued = min(
            self.instructions_per_clock,
            self.instructions_per_warp * usage.warps * together,
        )
        return {
            "hbm": usage.hbm_bytes / self.hbm,
            "l2": usage.l2_bytes / self.l2,
            "peers": usage.peer_bytes / self.peers,
            "tma": slowest * runs,
            "lines": slowest * usage.lines * self.line_clocks,
            "shared": slowest * usage.wavefronts,
            "issue": slowest * usage.instructions / issued,
            "tensor": slowest * tensor,
            "waits": rounds * wait,
        }

    def before(self, usage: Usage) -> float:
        """Seconds before the first tile, and until a CTA's first data is there."""
        at_once = self.resident(usage.cluster, usage.per_multiprocessor)
        ctas = min(usage.ctas, at_once * usage.cluster)
        trips = usage.prologue_trips + 1
        read = ctas * usage.prologue_bytes / self.l2
        return self.launch_seconds + trips * self.trip_seconds + read

    def seconds(self, usage: Usage) -> float:
        """What a launch should take on the device, without the host's part."""
        parts = self.busy(usage).values()
        most = max(parts)
        norm: float = sum((part / most) ** self.overlap for part in parts) ** (
            1 / self.overlap
        )
        return self.before(usage) + most * norm

    def moved_seconds(self, num_bytes: float, share: float = 1.0) -> float:
        """What a launch of XLA takes that moves so many bytes and computes little.

        Args:
          num_bytes: read and written in device memory.
          share: of the rate of a copy that it reaches.
        """
        return self.launch_seconds + self.trip_seconds + num_bytes / (share * self.hbm)

    def _run_clocks(self, size: int) -> float:
        """Clocks for a run, interpolated between those in the table."""
        sizes = [one for one, _ in self.run_clocks]
        clocks = [one for _, one in self.run_clocks]
        if size <= sizes[0]:
            return clocks[0]
        for (low, first), (high, last) in zip(
            self.run_clocks, self.run_clocks[1:], strict=False
        ):
            if size <= high:
                return first + (last - first) * (size - low) / (high - low)
        return clocks[-1]


def path(device: str, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Where the rates of a device lie, whether or not there are any."""
    slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return folder / f"{slug}.json"


@functools.cache
def load(device: str = DEVICE, folder: pathlib.Path = FOLDER) -> Chip:
    """The rates of a device.

    Of a device without a table, or with one that lacks some, those of `DEVICE` stand
    in, and `Chip.source` says so.

    Args:
      device: as `jax.Device.device_kind` has it.
      folder: with the tables.

    Raises:
      ValueError: if a table is no such table; the message names the file and the field.
    """
    rates: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name in (DEVICE, device):
        file = path(name, folder)
        if not file.exists():
            found: dict[str, Any] = {}
        else:
            found = json.loads(file.read_text(encoding="utf-8"))
            _check(file, found)
        if name != DEVICE:
            sources = {
                field: f"of an {DEVICE}: {why}" for field, why in sources.items()
            }
        rates |= found.get("rates", {})
        sources |= found.get("sources", {})
    if not rates:
        raise ValueError(f"there is no table {path(DEVICE, folder)}")
    return Chip(
        device=device,
        **{field: _frozen(value) for field, value in rates.items()},
        sources=tuple(sorted(sources.items())),
    )


def dumps(device: str, rates: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """A table as JSON: rates of a device by the fields of `Chip`, and where from."""
    table = {"device": device, "rates": dict(rates), "sources": dict(sources)}
    return json.dumps(table, indent=2) + "\n"


_FIELDS = frozenset(field.name for field in dataclasses.fields(Chip)) - {
    "device",
    "sources",
}


def _check(file: pathlib.Path, found: Any) -> None:
    if not isinstance(found, dict) or found.keys() != {"device", "rates", "sources"}:
        raise ValueError(f"{file}: must have the fields device, rates and sources")
    for field, value in found["rates"].items():
        if field not in _FIELDS:
            raise ValueError(f"{file}: rates.{field} is no field of Chip")
        if field not in found["sources"]:
            raise ValueError(f"{file}: sources.{field} is missing")
        for number in _numbers(value):
            if not (number > 0 and math.isfinite(number)):
                raise ValueError(f"{file}: rates.{field} cannot be {value}")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [value]


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
