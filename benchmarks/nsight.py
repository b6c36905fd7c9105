"""Profiles kernels with Nsight Compute: its details, and where their warps wait.

`benchmarks.gpu_suite --profile` starts this; a profile of a case is taken in a process
of its own, in which only one call is seen:

  ncu ... python -m benchmarks.nsight CASE IMPLEMENTATION
"""

import collections
import csv
import ctypes
import dataclasses
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
from absl import flags
from rich.console import Console

from benchmarks import files, gpu_cases, runs, suite_cases, workloads
from benchmarks.workloads import Workload

_NCU = ("--profile-from-start", "off", "--set", "full", "--clock-control", "none")
_PLACES = ("/usr/local/cuda*/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu")
_STALL = "stall_"
_NOT_ISSUED = "(Not Issued)"
_HOTTEST = 8  # Instructions that are shown.
_REASONS = 7
_SECONDS = 170.0  # A case, each of its kernels run some forty times.


@dataclasses.dataclass(frozen=True)
class Line:
    """An instruction of a kernel.

    Attributes:
      text: with its predicate and operands.
      samples: how often a warp was found at it.
      executed: how often a warp executed it.
      stalls: samples by the reason that the warp waited for; "selected" for none.
      wavefronts: of shared memory.
      ideal_wavefronts: of these without bank conflicts.
    """

    text: str
    samples: int
    executed: int
    stalls: Mapping[str, int]
    wavefronts: int
    ideal_wavefronts: int

    @property
    def opcode(self) -> str:
        """Without its predicate, operands and suffixes."""
        words = self.text.split()
        return words[1 if words[0].startswith("@") else 0].split(".")[0]


@dataclasses.dataclass(frozen=True)
class Profile:
    """One run of one kernel."""

    kernel: str
    lines: tuple[Line, ...]


def parse(text: str) -> list[Profile]:
    """The kernels on Nsight Compute's source page, printed as CSV."""
    found: list[tuple[str, list[Line]]] = []
    header: list[str] = []
    for row in csv.reader(io.StringIO(text)):
        if row and row[0] == "Kernel Name":
            found.append((row[1], []))
        elif "Source" in row and "# Samples" in row:
            header = row
        elif found and header and len(row) >= len(header):
            cells = dict(zip(header, row, strict=False))
            found[-1][1].append(_line(cells))
    return [Profile(name, tuple(lines)) for name, lines in found]


def _line(cells: Mapping[str, str]) -> Line:
    def number(name: str) -> int:
        return int(float(cells.get(name) or 0))

    reasons = [
        name
        for name in cells
        if name.startswith(_STALL) and not name.endswith(_NOT_ISSUED)
    ]
    return Line(
        text=" ".join(cells["Source"].split()),
        samples=number("# Samples"),
        executed=number("Instructions Executed"),
        stalls={name.removeprefix(_STALL): number(name) for name in reasons},
        wavefronts=number("L1 Wavefronts Shared"),
        ideal_wavefronts=number("L1 Wavefronts Shared Ideal"),
    )


def describe(profile: Profile) -> Iterator[str]:
    """Lines that tell what the warps of a kernel waited for, and where."""
    stalls: collections.Counter[str] = collections.Counter()
    sampled: collections.Counter[str] = collections.Counter()
    executed: collections.Counter[str] = collections.Counter()
    for line in profile.lines:
        stalls.update(line.stalls)
        sampled[line.opcode] += line.samples
        executed[line.opcode] += line.executed
    yield f"{profile.kernel}: {stalls.total()} samples, {executed.total()} instructions"
    yield f"  waits for: {_shares(stalls)}"
    yield f"  at: {_shares(sampled)}"
    yield f"  executed: {_shares(executed)}"
    if (mma := executed["HMMA"] + executed["HGMMA"]) > 0:
        yield f"  {executed.total() / mma:.1f} instructions for each HMMA or HGMMA"
    wavefronts = sum(line.wavefronts for line in profile.lines)
    ideal = sum(line.ideal_wavefronts for line in profile.lines)
    if ideal:
        yield f"  shared memory: {wavefronts / ideal:.2f} of the ideal wavefronts"
    hottest = sorted(profile.lines, key=lambda line: -line.samples)[:_HOTTEST]
    for line in hottest:
        reasons = collections.Counter(line.stalls)
        yield f"  {line.samples:6d} {line.text[:60]:60s} {_shares(reasons, 2)}"


def _shares(counts: "collections.Counter[str]", most: int = _REASONS) -> str:
    total = max(1, counts.total())
    return ", ".join(
        f"{name} {count / total:.0%}"
        for name, count in counts.most_common(most)
        if count
    )


def workload(name: str) -> Workload:
    """A case CHAIN/BATCH/DTYPE/LAYOUT, forward, or with /DIRECTION.

    Raises:
      ValueError: if it is none.
    """
    for direction in workloads.DIRECTIONS:
        if name.endswith(f"/{direction}"):
            case = gpu_cases.new_case(name.removesuffix(f"/{direction}"))
            return case.workload(direction)
    return gpu_cases.new_case(name).workload("forward")


def main(cases: Sequence[str], console: Console) -> int:
    """Profiles what the library launches for cases; returns the exit status."""
    try:
        works = [workload(name) for name in cases]
    except ValueError as error:
        console.print(f"error: --profile: {error}", markup=False, soft_wrap=True)
        return runs.FAILED
    ncu = _find()
    if ncu is None:
        console.print("error: --profile needs Nsight Compute: no ncu on the PATH")
        return runs.FAILED
    folder = pathlib.Path(flags.FLAGS.output_dir)
    files.make_folder(folder)
    status = 0
    with (
        (folder / "nsight_details.txt").open("a") as details,
        (folder / "nsight_stalls.txt").open("a") as stalls,
    ):
        for work in works:
            for name in suite_cases.implementations(work):
                if name not in suite_cases.OURS:
                    continue
                title = f"== {work.name} {name}"
                try:
                    pages = profile(ncu, work, name)
                except (subprocess.SubprocessError, OSError) as error:
                    console.print(f"{title}: {error}", markup=False, soft_wrap=True)
                    status = runs.FAILED
                    continue
                text = "\n".join([title, *_stall_lines(parse(pages.source))])
                console.print(text, markup=False, highlight=False, soft_wrap=True)
                print(text, file=stalls, flush=True)
                print(title, pages.details, sep="\n", file=details, flush=True)
    console.print(f"pages: {folder}/nsight_*.txt", soft_wrap=True)
    return status


def _stall_lines(profiles: Iterable[Profile]) -> Iterator[str]:
    for one in profiles:
        yield from describe(one)


@dataclasses.dataclass(frozen=True)
class Pages:
    """What Nsight Compute prints of a report."""

    details: str
    source: str


def profile(ncu: str, work: Workload, implementation: str) -> Pages:
    """Takes a profile of one call.

    Raises:
      subprocess.SubprocessError: if ncu fails or does not come to an end.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = str(pathlib.Path(folder) / "report")
        call = (sys.executable, "-m", __name__, work.name, implementation)
        _run(ncu, *_NCU, "-o", report, *call)
        shown = (ncu, "--import", f"{report}.ncu-rep", "--page")
        return Pages(
            details=_run(*shown, "details"), source=_run(*shown, "source", "--csv")
        )


def _run(*command: str) -> str:
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, timeout=_SECONDS
    ).stdout


def _find() -> str | None:
    if (found := shutil.which("ncu")) is not None:
        return found
    root = pathlib.Path("/")
    places = (path for place in _PLACES for path in root.glob(place.removeprefix("/")))
    return next(map(str, places), None)


def call_once(work: Workload, implementation: str) -> None:
    """Calls an implementation twice, the second time with the profiler on."""
    inputs = workloads.draw(work, 0, has_kernel=False)
    function, arguments = workloads.program(work, implementation, inputs)
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuProfilerStart()
    jax.block_until_ready(compiled(*arguments))
    driver.cuProfilerStop()


if __name__ == "__main__":
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    call_once(workload(sys.argv[1]), sys.argv[2])
