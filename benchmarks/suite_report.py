"""What `benchmarks.gpu_suite` found, on a page that fits a terminal."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table

from benchmarks import ceilings, jsonl, kernel_checks, launched, tables, targets
from benchmarks.results import Row
from benchmarks.suite_cases import XLA
from benchmarks.workloads import DENSE_LAYER, DTYPES, LAYOUTS, Workload

# Checks that were made on devices, of which rows are kept.
COMMITTED = pathlib.Path(__file__).parent / "results"

_LAYOUTS = {"feature_last": "last", "feature_first": "first"}
_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def committed() -> list[kernel_checks.Row]:
    """The checks whose rows lie among the committed results."""
    return [
        row
        for path in sorted(COMMITTED.glob("gpu_checks*.jsonl"))
        for row in jsonl.load(path, kernel_checks.Row)
    ]


def checks(rows: Sequence[kernel_checks.Row]) -> Table:
    """How many checks were right, wrong and lost: a line for kernels and direction."""
    refused = sum(row.unsupported is not None for row in rows)
    table = tables.plain(
        caption=f"{len(rows)} checks, {refused} of them refused; right ones, then "
        "those that are wrong (!) and in which the process was lost (x); at the end "
        "the largest error over what is allowed"
    )
    table.add_column("what was launched", no_wrap=True)
    kinds = list(itertools.product(LAYOUTS, DTYPES))
    for layout, dtype in kinds:
        table.add_column(f"{_LAYOUTS[layout]}\n{_DTYPES[dtype]}", justify="right")
    table.add_column("error", justify="right")
    groups: dict[str, list[kernel_checks.Row]] = {}
    for row in rows:
        if row.form is not None:
            words = "+".join(row.form.kernels) or "nothing"
            words += ", backward" if row.form.direction != "forward" else ""
            groups.setdefault(words, []).append(row)
    for words, group in sorted(groups.items()):
        errors = [row.error / row.tolerance for row in group if row.error is not None]
        cells = [
            _outcomes(
                [
                    row
                    for row in group
                    if (row.check.workload.layout, row.check.workload.dtype) == kind
                ]
            )
            for kind in kinds
        ]
        table.add_row(words, *cells, f"{max(errors):.2f}" if errors else "")
    return table


def _outcomes(rows: Sequence[kernel_checks.Row]) -> str:
    lost = sum(row.is_lost for row in rows)
    wrong = sum(row.failed is not None for row in rows) - lost
    right = len(rows) - lost - wrong
    counts = ((right, ""), (wrong, "!"), (lost, "x"))
    return " ".join(f"{count}{mark}" for count, mark in counts if count)


def never_run(rows: Iterable[kernel_checks.Row]) -> Table:
    """The dtypes in which no check has ever run a kernel on a device, by layout.

    Args:
      rows: of checks, this run's and those that are kept.
    """
    ran = {
        (kernel, row.form.dtype, row.form.layout)
        for row in rows
        if row.form is not None and row.error is not None
        for kernel in row.form.kernels
    }
    table = tables.plain()
    table.add_column("never run on a device")
    for layout in LAYOUTS:
        table.add_column(layout)
    for name in launched.names():
        missing = [
            ", ".join(one for one in DTYPES if (name, one, layout) not in ran)
            for layout in LAYOUTS
        ]
        if any(missing):
            table.add_row(name, *missing)
    return table


def cases(
    rows: Iterable[Row],
    ceiling_rows: Iterable[ceilings.Row],
    wanted: Sequence[targets.Target],
) -> Table:
    """What was measured of each workload, but of the paper's many."""
    table = tables.plain(
        caption="µs, medians; floor: the time that the device needs for the bytes or "
        "the products, over ours; ~ noisy, ! wrong",
    )
    table.add_column("", no_wrap=True)
    for heading in ("ours", "XLA", "dense", "× XLA", "floor"):
        table.add_column(heading, justify="right")
    table.add_column("targets", no_wrap=True)
    of_run = targets.rates(ceiling_rows)
    ratio = targets.faster_than(XLA)
    for work, group in targets.by_workload(rows).items():
        rates = of_run.get(group[0].environment.run)
        if rates is None or any(work in t.workloads and t.share < 1 for t in wanted):
            continue
        best = targets.best_kernel(group)
        rivals = [row for row in group if row.implementation in XLA and row.measured]
        rival = min(rivals, key=lambda row: row.median, default=None)
        layer = [row for row in rivals if row.implementation == DENSE_LAYER]
        gain = ratio(group, rates)
        has_rate = work.dtype in rates.matmul
        share = targets.share_of_floor(group, rates) if has_rate else None
        table.add_row(
            _title(work),
            *map(_microseconds, (best, rival, next(iter(layer), None))),
            "" if gain is None else f"{gain:.2f}",
            "" if share is None else f"{share:.2f}",
            ", ".join(_judged(work, group, rates, wanted)),
        )
    return table


def _title(work: Workload) -> str:
    words = [work.case, _LAYOUTS[work.layout]]
    words += [work.dtype] if work.dtype != "bfloat16" else []
    return " ".join([*words, *(["+grad"] if work.direction != "forward" else [])])


def _microseconds(row: Row | None) -> str:
    if row is None or row.measured is None:
        return "none"
    mark = "~" if row.measured.is_noisy else ""
    return f"{1e6 * row.median:.1f}{mark}{'!' if row.is_wrong else ''}"


def _judged(
    work: Workload,
    group: Sequence[Row],
    rates: targets.Rates,
    wanted: Sequence[targets.Target],
) -> Iterator[str]:
    for target in wanted:
        if work in target.workloads:
            value = target.value(group, rates)
            sign = "≥" if value is not None and value >= target.threshold else "below"
            yield f"{sign} {target.threshold:g} {target.unit}"


def judgements(found: Iterable[targets.Judgement]) -> Table:
    """Which targets are met."""
    table = tables.plain()
    for heading in ("target", "at least", "", "measured"):
        table.add_column(heading)
    for judgement in found:
        target = judgement.target
        share = "" if target.share == 1 else f" on {target.share:.0%}"
        table.add_row(
            target.text,
            f"{target.threshold:g} {target.unit}{share}",
            judgement.verdict,
            judgement.found,
        )
    return table


def rates(ceiling_rows: Iterable[ceilings.Row]) -> str:
    """The ceilings of the last run."""
    of_run = targets.rates(ceiling_rows)
    if not of_run:
        return "no ceilings were measured"
    run, last = list(of_run.items())[-1]
    products = ", ".join(
        f"{dtype} {rate / 1e12:.0f}" for dtype, rate in last.matmul.items()
    )
    return (
        f"{run}: copies {last.copy / 1e12:.2f} TB/s, read and written; products "
        f"{products} TFLOP/s"
    )
