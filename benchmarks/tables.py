"""Tables for the terminal."""

import itertools
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from benchmarks.results import Row
from benchmarks.workloads import DENSE_LAYER


def by_workload(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows measured side by side, one list per workload, in the order they came."""
    groups = itertools.groupby(rows, lambda r: (r.case, r.layout, r.direction))
    return [list(group) for _, group in groups]


def best(group: Sequence[Row]) -> Row:
    """The fastest butterfly implementation of a workload."""
    return min(
        (row for row in group if row.implementation != DENSE_LAYER),
        key=lambda row: row.median,
    )


def title(row: Row) -> str:
    """A workload in a few words; feature-last goes without saying."""
    layout = ", feature_first" if row.layout == "feature_first" else ""
    return f"{row.case}{layout}, {row.direction}"


def compare(rows: Sequence[Row]) -> Table:
    """Times, ratios to the dense layer and to the best, and errors."""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="* is what implementation=None takes. ms: median; ±: half the "
        "interquartile range; error: relative, against float64",
    )
    table.add_column("", no_wrap=True)
    for heading in ("ms", "±", "÷ dense layer", "÷ best", "error"):
        table.add_column(heading, justify="right")
    for group in by_workload(rows):
        table.add_row(title(group[0]), style="bold")
        fastest = best(group)
        for row in group:
            name = f"  {row.implementation}{' *' if row.is_default else ''}"
            if row.measured is None:
                table.add_row(f"{name}: unsupported")
                continue
            low, middle, high = row.measured.seconds
            table.add_row(
                name,
                f"{1e3 * middle:.2f}",
                f"{(high - low) / 2 / middle:.0%}",
                f"{row.measured.ratio_to_dense_layer[1]:.2f}",
                f"{row.median / fastest.median:.2f}",
                f"{row.measured.error:.0e}" + (" WRONG" if row.is_wrong else ""),
            )
        table.add_section()
    return table


def summary(rows: Sequence[Row]) -> str:
    """How far the default is from the best, and where butterflies beat dense layers."""
    groups = by_workload(rows)
    lines = []
    defaults = [
        (row.median / best(group).median, row)
        for group in groups
        for row in group
        if row.is_default and row.measured
    ]
    if defaults:
        ratio, row = max(defaults, key=lambda pair: pair[0])
        lines.append(
            f"implementation=None takes at most {ratio:.2f} times as long as the best "
            f"implementation ({title(row)})"
        )
    ahead = [
        group
        for group in groups
        if (taken := best(group).measured) and taken.ratio_to_dense_layer[2] < 1
    ]
    lines.append(
        f"The best implementation beats the dense layer, quartiles and all, in "
        f"{len(ahead)} of {len(groups)} workloads"
    )
    return "\n".join(lines)
