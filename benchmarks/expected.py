"""What the library's GPU launches should take: predicted, beside what XLA took.

For the workloads of `benchmarks.gpu_suite`, on an H200: the floor, which moves x, the
factors and y once at the rate of a copy; what the launches that the library plans
should take, by the model that plans them (`pallas_kernels.common.chip`); and where
committed rows have them, the best of XLA's implementations, a dense layer included, and
the dense layer alone.

  python -m benchmarks.expected
  python -m benchmarks.expected --part=factors --part=paper
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import results, suite_cases, tables, targets
from benchmarks.results import Row
from benchmarks.workloads import DENSE_LAYER, LAYOUTS, Workload
from butterjax.gpu import plan_backward, plan_launches
from pallas_kernels.common import chip

ROWS = pathlib.Path(__file__).parent / "results" / "h200_2026-11-27.jsonl"


@dataclasses.dataclass(frozen=True)
class Expected:
    """A workload, and what it should take.

    Attributes:
      workload: the case.
      floor: seconds to move x, the factors and y once, and with gradients x, dy and dx.
      seconds: predicted; None if no kernel takes the case.
      xla: of the fastest of XLA's implementations as measured, None if none was.
      dense: of the dense layer as measured, None if it was not.
    """

    workload: Workload
    floor: float
    seconds: float | None
    xla: float | None
    dense: float | None


def expect(workload: Workload, rows: Mapping[Workload, Sequence[Row]]) -> Expected:
    """What a workload should take, beside rows of an H200."""
    moved = workload.floor_bytes
    if workload.direction == "forward+backward":
        x = jnp.dtype(workload.dtype).itemsize * workload.chain.in_features
        moved += workload.floor_bytes + x * workload.batch
    xla = {
        row.implementation: row.median
        for row in rows.get(workload, ())
        if row.implementation in suite_cases.XLA and row.measured
    }
    return Expected(
        workload,
        moved / chip.load().hbm,
        predicted_seconds(workload),
        min(xla.values(), default=None),
        xla.get(DENSE_LAYER),
    )


def predicted_seconds(workload: Workload) -> float | None:
    """What the library's launches should take; None if no kernel takes the workload."""
    options: dict[str, Any] = {
        "dtype": workload.dtype,
        "batch": workload.batch,
        "axis": workload.axis,
    }
    try:
        launches = plan_launches(workload.chain, **options)
    except NotImplementedError:
        return None
    seconds = sum(launch.seconds for launch in launches)
    if workload.direction == "forward":
        return seconds
    return seconds + plan_backward(workload.chain, **options).seconds


def table(expected: Iterable[Expected]) -> Table:
    """Microseconds, the share of the floor, and how many times as long others take."""
    made = tables.plain(
        caption="microseconds on an H200, batch 25,088 but for wide factors; XLA: the "
        "fastest, a dense layer included, measured; expected: predicted"
    )
    made.add_column("", no_wrap=True)
    for heading in ("floor", "expected", "of floor", "XLA", "× XLA", "× dense"):
        made.add_column(heading, justify="right")
    for one in expected:
        made.add_row(
            f"{one.workload.case} {_how(one.workload)}",
            _number(one.floor, 1e6),
            _number(one.seconds, 1e6),
            _ratio(one.floor, one.seconds),
            _number(one.xla, 1e6),
            _ratio(one.xla, one.seconds),
            _ratio(one.dense, one.seconds),
        )
    return made


def _how(workload: Workload) -> str:
    layout = workload.layout.removeprefix("feature_")
    words = [workload.dtype.replace("bfloat", "bf").replace("float", "f"), layout]
    if workload.direction == "forward+backward":
        words.append("+ gradients")
    return " ".join(words)


def _number(value: float | None, unit: float) -> str:
    return "–" if value is None else f"{value * unit:.0f}"


def _ratio(value: float | None, over: float | None) -> str:
    return "–" if value is None or over is None else f"{value / over:.2f}"


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_multi_enum(
        "part",
        ["chains", "training", "radix", "factors"],
        suite_cases.PARTS,
        "Which workloads of the suite; may be given several times.",
    )
    flags.DEFINE_integer(
        "patterns",
        suite_cases.NUM_PATTERNS,
        "How many of the paper's patterns to take.",
        lower_bound=1,
    )


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    rows = targets.by_workload(results.load(ROWS))
    Console().print(
        table(
            expect(workload, rows)
            for part in flags.FLAGS.part
            for workload in suite_cases.workloads_of(
                part, list(LAYOUTS), num_patterns=flags.FLAGS.patterns
            )
        )
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
