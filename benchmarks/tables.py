"""Tables for the terminal."""

import itertools
from collections.abc import Iterable, Sequence

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


def compare(rows: Sequence[Row]) -> Table:
    """Times, ratios to the dense layer and to the best, and errors."""
    table = Table(caption="* is what implementation=None takes; times are medians")
    for title in ("chain", "layout", "direction", "implementation"):
        table.add_column(title, no_wrap=True)
    for title in ("ms", "quartiles", "÷ dense layer", "÷ best", "error"):
        table.add_column(title, justify="right", no_wrap=True)
    for group in by_workload(rows):
        fastest = best(group)
        for i, row in enumerate(group):
            where = (row.case, row.layout, row.direction) if i == 0 else ("",) * 3
            name = row.implementation + (" *" if row.is_default else "")
            if row.seconds is None or row.ratio_to_dense_layer is None:
                table.add_row(*where, name, "–", "unsupported")
                continue
            low, middle, high = (1e3 * value for value in row.seconds)
            table.add_row(
                *where,
                name,
                f"{middle:.2f}",
                f"{low:.2f} – {high:.2f}",
                f"{row.ratio_to_dense_layer[1]:.2f}",
                f"{row.median / fastest.median:.2f}",
                f"{row.error:.0e}" + (" WRONG" if row.is_wrong else ""),
                style="bold" if row is fastest else None,
                end_section=i == len(group) - 1,
            )
    return table


def summary(rows: Sequence[Row]) -> str:
    """How far the default is from the best, and where butterflies beat dense layers."""
    groups = by_workload(rows)
    lines = []
    defaults = [
        (row.median / best(group).median, row)
        for group in groups
        for row in group
        if row.is_default and row.seconds
    ]
    if defaults:
        ratio, row = max(defaults, key=lambda pair: pair[0])
        lines.append(
            f"implementation=None: at worst {ratio:.2f} times the best, on {row.case}, "
            f"{row.layout}, {row.direction}"
        )
    ahead = [
        group
        for group in groups
        if (ratios := best(group).ratio_to_dense_layer) and ratios[2] < 1
    ]
    lines.append(
        f"the best butterfly is faster than the dense layer in {len(ahead)} of "
        f"{len(groups)} workloads"
    )
    return "\n".join(lines)
