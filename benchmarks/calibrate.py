"""Measures what a GPU can do, for the model that chooses how kernels are laid out.

  residency   limits of the device, and clusters of 2 to 16 that run at once
  launch      of a kernel with nothing to do
  copy        bytes a second in device memory
  product     operations a second of a large product
  mma         clocks of a multiprocessor for an mma.sync, operands in registers
  runs        clocks for a run of 16, 32, 64 and 128 bytes that TMA moves, in and out,
              and bytes a second between multiprocessors and the L2 cache
  lines       clocks for a line that a warp's 16-byte loads touch
  meeting     of four warpgroups at a barrier

Takes about a minute on an NVIDIA GPU from Hopper on:

  python -m benchmarks.calibrate

Each is measured by itself: one that fails is reported, and keeps the rate that was
there. Writes --output, a table of rates that says of each where it is from; by default
the one that `pallas_kernels.common.chip` reads for the device. Rates that nothing
measures by itself are kept; `benchmarks.predictions.fit` fits them to rows.
"""

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from rich.console import Console

from benchmarks import chip_kernels, devices, files, measure, residency
from pallas_kernels.common import chip as chips


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
      copied: bytes of the array that is copied, more than any cache.
      matrices: rows and columns of the matrices that are multiplied.
      cached: bytes of an array that fits the L2 cache twice.
      times: how often a kernel does the same.
      seconds: for a measurement.
    """

    copied: int = 2**30
    matrices: int = 8192
    cached: int = 2**23
    times: int = 1000
    seconds: float = 2.0


@dataclasses.dataclass(frozen=True)
class Bench:
    """What measurements share.

    Attributes:
      chip: rates that are known; clocks are told by its clock.
      sizes: how much is done.
      clock: that times a call.
    """

    chip: chips.Chip
    sizes: Sizes
    clock: measure.Clock

    def time(self, function: Callable[..., Any], *arguments: Any) -> float:
        """Median seconds of a call, compiled."""
        compiled = measure.build(function, arguments).compiled
        (samples,) = measure.interleave(
            {"": functools.partial(compiled, *arguments)},
            time_limit=self.sizes.seconds,
            clock=self.clock,
        ).values()
        return samples.quartiles()[1]

    def clocks(self, seconds: float, count: float) -> float:
        """Clocks of a multiprocessor for each of so many on all of them."""
        return seconds * self.chip.clock * self.chip.multiprocessors / count


Rates = dict[str, Any]


def copy(bench: Bench) -> Rates:
    array = _random((bench.sizes.copied // 4,), "float32")
    # A copy that XLA makes a kernel, as the clock sees kernels alone.
    return {"hbm": 2 * array.nbytes / bench.time(operator.neg, array)}


def product(bench: Bench) -> Rates:
    n = bench.sizes.matrices
    pair = _random((n, n), "bfloat16"), _random((n, n), "bfloat16")
    return {"wgmma": 2 * n**3 / bench.time(jnp.matmul, *pair)}


def mma(bench: Bench) -> Rates:
    times, ctas = bench.sizes.times, bench.chip.multiprocessors
    call = functools.partial(chip_kernels.multiply, times=times, ctas=ctas)
    pair = _random((64, 16), "bfloat16"), _random((16, 32), "bfloat16")
    seconds = bench.time(call, *pair) - bench.chip.launch_seconds
    count = chip_kernels.products(times=times, ctas=ctas)
    return {"mma_clocks": bench.clocks(seconds, count)}


def runs(bench: Bench) -> Rates:
    """Copies within the L2 cache, so that device memory does not bind."""
    features = 64 * 128
    x = _random((bench.sizes.cached // (2 * features), features), "bfloat16")
    times = max(1, bench.sizes.times // 50)
    ctas = bench.chip.multiprocessors
    found = []
    for run in (16, 32, 64, 128):
        call = functools.partial(
            chip_kernels.copy_runs, run=run, times=times, ctas=ctas
        )
        seconds = bench.time(call, x) - bench.chip.launch_seconds
        found.append([run, bench.clocks(seconds, 2 * times * x.nbytes / run)])
    # Runs of whole lines are taken to be what the cache gives and takes.
    return {"run_clocks": found, "l2": 2 * times * x.nbytes / seconds}


def lines(bench: Bench) -> Rates:
    ctas = 2 * bench.chip.multiprocessors
    x = _random((ctas * chip_kernels.LOAD_ROWS, 64), "float32")
    times = max(1, bench.sizes.times // 10)
    call = functools.partial(chip_kernels.strided_loads, times=times, ctas=ctas)
    seconds = bench.time(call, x) - bench.chip.launch_seconds
    loads = times * x.nbytes / chip_kernels.LOAD_BYTES
    return {"line_clocks": bench.clocks(seconds, loads)}


def meeting(bench: Bench) -> Rates:
    times, ctas = bench.sizes.times, bench.chip.multiprocessors
    call = functools.partial(chip_kernels.meet, times=times, ctas=ctas)
    seconds = bench.time(call) - bench.chip.launch_seconds
    return {"meeting_seconds": seconds / times}


def launch(bench: Bench) -> Rates:
    """A kernel whose warpgroups meet once."""
    ctas = bench.chip.multiprocessors
    call = functools.partial(chip_kernels.meet, times=1, ctas=ctas)
    return {"launch_seconds": bench.time(call)}


def resident(bench: Bench) -> Rates:
    del bench
    return residency.measure()


# First what others need: how many multiprocessors, and the time of a launch.
MEASUREMENTS: dict[str, Callable[[Bench], Rates]] = {
    "residency": resident,
    "launch": launch,
    "copy": copy,
    "product": product,
    "mma": mma,
    "runs": runs,
    "lines": lines,
    "meeting": meeting,
}


def _random(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape, dtype)


def measure_all(
    chip: chips.Chip,
    *,
    sizes: Sizes,
    clock: measure.Clock,
    report: Callable[[str], None],
) -> tuple[chips.Chip, tuple[str, ...]]:
    """The chip with the rates that could be measured.

    Args:
      chip: rates to begin with.
      sizes: how much is done.
      clock: that times a call.
      report: is told what came out, a line for each measurement.

    Returns:
      The chip, and the measurements that failed.
    """
    failed = []
    for name, take in MEASUREMENTS.items():
        try:
            rates = take(Bench(chip, sizes, clock))
            for field, value in rates.items():
                _check(field, value)
        except Exception as error:  # Whatever it is, others may succeed.
            logging.exception("%s could not be measured", name)
            report(f"{name}: failed: {error}")
            failed.append(name)
            continue
        report(", ".join(f"{field} {_words(value)}" for field, value in rates.items()))
        sources = {**dict(chip.sources), **dict.fromkeys(rates, "measured")}
        chip = dataclasses.replace(
            chip,
            **{field: _tuples(value) for field, value in rates.items()},
            sources=tuple(sorted(sources.items())),
        )
    return chip, tuple(failed)


def _check(field: str, value: Any) -> None:
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, list):
            _check(field, number)
        elif not 0 < number < float("inf"):
            raise ValueError(f"{field} cannot be {value}")


def _words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write(chip: chips.Chip, path: pathlib.Path) -> None:
    """Writes the table of a chip's rates, whole or not at all."""
    fields = dataclasses.asdict(chip)
    sources = dict(fields.pop("sources"))
    device = fields.pop("device")
    text = chips.dumps(device, fields, {name: sources[name] for name in fields})
    files.write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_string(
        "output", None, "File to write; by default the device's own table of rates."
    )


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    console = Console(markup=False, highlight=False)
    if problem := devices.problem():
        console.print(f"calibrate {problem}")
        return 1
    device = jax.devices()[0].device_kind
    given = flags.FLAGS.output
    path = chips.path(device) if given is None else pathlib.Path(given)
    chip, failed = measure_all(
        chips.load(device),
        sizes=Sizes(),
        clock=measure.device_clock(),
        report=console.print,
    )
    write(chip, path)
    console.print(
        f"wrote {path}" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
