"""Says which chain and implementation to use for a layer, or to stay with dense.

Goes by the rows that were measured of this very layer on the device. Where there are
none, by a floor model: what the device's memory bandwidth and arithmetic allow at most.
It says which of the two it was.

  python -m benchmarks.recommend --in 1024 --out 4096 --batch 8192 --dtype bf16
  python -m benchmarks.recommend --in 1024 --out 1024 --batch 512 my_rows.jsonl
  python -m benchmarks.recommend --in 4096 --out 4096 --batch 8192 --dtype bf16 \\
      --device "NVIDIA H200" --direction=forward+backward

Reads the result files that are named, or else those that the benchmarks come with and
those that they have written into results/ below the current folder.

The same as a function: butterjax.planning.recommend.
"""

import pathlib
from collections.abc import Iterable, Sequence

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

import butterjax as bj
from benchmarks import cases, runs, tables, workloads
from benchmarks.environment import Environment
from benchmarks.reporting import words
from benchmarks.reporting.groups import groups
from benchmarks.reporting.rows import load
from benchmarks.timings import timings
from butterjax import array_checks
from butterjax.planning import ASSUMED, Option, Recommendation, Timing

_DTYPES = ("f32", "bf16", "f16", "float32", "bfloat16", "float16")
_SHIPPED = pathlib.Path(__file__).parent / "results"
_WRITTEN = pathlib.Path("results")  # By compare, ks_grid and chains, by default.
_PROGRAMS = ("compare", "ks_grid", "chains")


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_integer("in", None, "Features of x.", lower_bound=1, required=True)
    flags.DEFINE_integer(
        "out", None, "Features of the result.", lower_bound=1, required=True
    )
    flags.DEFINE_integer("batch", None, "Rows of x.", lower_bound=1, required=True)
    flags.DEFINE_enum("dtype", "float32", _DTYPES, "Type of x and the weights.")
    flags.DEFINE_enum(
        "layout",
        "feature_last",
        list(workloads.LAYOUTS),
        "feature_last for x of shape (batch, features), feature_first for the other.",
    )
    flags.DEFINE_enum(
        "direction",
        "forward",
        list(workloads.DIRECTIONS),
        "Forward, as in inference, or with all gradients, as in training.",
    )
    flags.DEFINE_string(
        "device",
        None,
        "Name of the device, or a part of it, as in the rows; this machine's if not "
        "given.",
    )
    cases.define_flag(
        (),
        "Choose among this chain, and others given in the same way, only; else among "
        "all that can take the place of a dense layer.",
    )


def result_files(named: Sequence[str]) -> list[pathlib.Path]:
    """The files that are named, or those that come with this or were written here."""
    if named:
        return [pathlib.Path(name) for name in named]
    # Other programs' files hold rows of other things.
    shipped = (
        path for name in _PROGRAMS for path in sorted(_SHIPPED.glob(f"{name}_*.jsonl"))
    )
    written = (_WRITTEN / name / f"{name}.jsonl" for name in _PROGRAMS)
    return [*shipped, *filter(pathlib.Path.exists, written)]


def device_named(wanted: str, known: Iterable[str]) -> str:
    """The known device that is meant, or what was written where none is.

    Raises:
      ValueError: if several are meant.
    """
    devices = sorted(set(known))
    if wanted in devices:
        return wanted
    found = [device for device in devices if wanted.lower() in device.lower()]
    if len(found) > 1:
        raise ValueError(f"--device={wanted} could be any of: {'; '.join(found)}")
    return found[0] if found else wanted


def table(found: Recommendation) -> Table:
    """All options, the fastest first."""
    shown = tables.plain()
    shown.add_column("", no_wrap=True)
    shown.add_column("chain", overflow="fold")
    milliseconds = "ms" if found.is_measured else "ms, at least"
    for heading in (milliseconds, "÷ dense layer", "weights", "peak memory"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for option in found.options:
        is_best = option is found.best
        shown.add_row(
            option.implementation + " *" * is_best,
            words.patterns(option.chain) if option.chain else "",
            words.milliseconds(option.seconds),
            words.spread(option.ratio)
            if found.is_measured
            else words.number(option.ratio[1]),
            words.size(option.weight_bytes),
            words.size(option.peak_bytes),
            style="bold" if is_best else None,
        )
    return shown


def advice(best: Option) -> str:
    """What to write into a program."""
    if best.chain is None:
        return "Stay with a dense layer."
    return (
        f"Use bj.butterfly(x, factors, implementation={best.implementation!r}) with "
        f"factors of bj.{best.chain!r}"
    )


def source(found: Recommendation, dtype: str) -> str:
    """Where the times are from."""
    if found.is_measured:
        return f"{found.source} Ratios are quartiles."
    rates = found.rates
    assert rates is not None
    return (
        f"{found.source} The rates: {words.rate(rates.copy_rate)}B/s of memory, "
        f"{words.rate(rates.matmul_rates[dtype])}FLOP/s of {dtype} products, "
        f"{1e6 * rates.launch_seconds:.3g} µs per launch."
    )


def measured_batches(
    known: Iterable[Timing], device: str, chain_ends: tuple[int, int], dtype: str
) -> list[int]:
    """Batch sizes for which there are rows of such a layer."""
    return sorted(
        {
            one.batch
            for one in known
            if (one.device, one.dtype) == (device, dtype)
            and (one.chain.in_features, one.chain.out_features) == chain_ends
        }
    )


def main(argv: Sequence[str]) -> int:
    console = Console()
    ends: tuple[int, int] = (flags.FLAGS.get_flag_value("in", 0), flags.FLAGS.out)
    dtype = array_checks.dtype("recommend", "dtype", flags.FLAGS.dtype).name
    try:
        known = list(timings(groups(load(result_files(argv[1:])).layers)))
        device = device_named(
            flags.FLAGS.device or Environment.now().device,
            [one.device for one in known] + [one.device for one in ASSUMED],
        )
        found = bj.planning.recommend(
            *ends,
            batch=flags.FLAGS.batch,
            dtype=dtype,
            device=device,
            axis=workloads.LAYOUTS[flags.FLAGS.layout],
            backward=flags.FLAGS.direction == "forward+backward",
            chains=[cases.parse_chain(spec) for spec in flags.FLAGS.chain] or None,
            timings=known,
        )
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    layout = flags.FLAGS.layout.replace("_", " ")
    console.print(
        f"{ends[0]} → {ends[1]}, {flags.FLAGS.direction}, {dtype}, {layout}, batch "
        f"{flags.FLAGS.batch:,}, on {device}",
        style="bold",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table(found))
    console.print(advice(found.best), markup=False, highlight=False, soft_wrap=True)
    console.print(source(found, dtype), highlight=False, soft_wrap=True)
    batches = measured_batches(known, device, ends, dtype)
    if not found.is_measured and batches:
        console.print(
            "There are rows of layers of this size with a batch of "
            f"{words.listing([str(batch) for batch in batches])}.",
            highlight=False,
            soft_wrap=True,
        )
    return 0


if __name__ == "__main__":
    define_flags()
    runs.show_flags()
    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    app.run(main)
