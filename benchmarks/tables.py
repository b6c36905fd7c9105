"""Tables for the terminal."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from benchmarks.results import Row
from benchmarks.workloads import DENSE_LAYER, Workload


def plain(**options: Any) -> Table:
    """An empty table in the style of all of them; options are those of rich's Table."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **options)


def by_workload(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows measured side by side, one list per workload, in the order they came."""
    return [list(group) for _, group in itertools.groupby(rows, lambda r: r.workload)]


def best(group: Sequence[Row]) -> Row:
    """The fastest butterfly implementation of a workload; its first row if it has none.

    It has none where a run was killed in between.
    """
    return min(
        (row for row in group if row.implementation != DENSE_LAYER),
        key=lambda row: row.median,
        default=group[0],
    )


def titles(rows: Iterable[Row]) -> dict[Workload, str]:
    """The workloads of rows in a few words: what all have in common is left out."""
    works = list(dict.fromkeys(row.workload for row in rows))

    def words(work: Workload) -> Iterator[str]:
        yield work.case
        if len({one.batch for one in works}) > 1:
            yield f"batch {work.batch}"
        if len({one.dtype for one in works}) > 1:
            yield work.dtype
        if any(one.layout == "feature_first" for one in works):
            yield work.layout
        yield work.direction

    return {work: ", ".join(words(work)) for work in works}


def compare(rows: Sequence[Row]) -> Table:
    """Times, ratios to the dense layer and to the best, and errors."""
    table = plain(
        caption="* is what implementation=None takes. ms: median; ±: half the "
        "interquartile range, ~ where noisy; error: relative, against float64",
    )
    table.add_column("", no_wrap=True)
    for heading in ("ms", "±", "÷ dense layer", "÷ best", "error"):
        table.add_column(heading, justify="right")
    names = titles(rows)
    for group in by_workload(rows):
        table.add_row(names[group[0].workload], style="bold")
        fastest = best(group)
        for row in group:
            name = f"  {row.implementation}{' *' if row.is_default else ''}"
            if row.measured is None:
                table.add_row(f"{name}: {'failed' if row.failed else 'unsupported'}")
                continue
            low, middle, high = row.measured.seconds
            ratio, error = row.measured.ratio_to_dense_layer, row.measured.error
            table.add_row(
                name,
                f"{1e3 * middle:.2f}",
                f"{(high - low) / 2 / middle:.0%}"
                + ("~" if row.measured.is_noisy else ""),
                f"{ratio[1]:.2f}" if ratio else "",
                f"{row.median / fastest.median:.2f}" if fastest.measured else "",
                ("not finite" if error is None else f"{error:.0e}")
                + (" WRONG" if row.is_wrong else ""),
            )
        table.add_section()
    return table


def overview(rows: Sequence[Row]) -> Table:
    """How each implementation does over many workloads; a line each."""
    fastest = {
        group[0].workload: min(group, key=lambda row: row.median)
        for group in by_workload(rows)
    }
    table = plain(
        caption="÷: median over the workloads; fastest: of all, the dense layer among "
        "them; moved: share of the bytes written that transposes and copies write",
    )
    table.add_column("", no_wrap=True)
    for heading in (
        "measured",
        "fastest",
        "÷ dense layer",
        "÷ fastest",
        "noisy",
        "moved",
    ):
        table.add_column(heading, justify="right")
    for direction in dict.fromkeys(row.workload.direction for row in rows):
        table.add_row(direction, style="bold")
        chosen = [row for row in rows if row.workload.direction == direction]
        for name in dict.fromkeys(row.implementation for row in chosen):
            mine = [row for row in chosen if row.implementation == name]
            done = [(row, row.measured) for row in mine if row.measured]
            table.add_row(
                f"  {name}",
                f"{len(done)} of {len(mine)}",
                str(sum(fastest[row.workload] is row for row in mine)),
                _median(
                    m.ratio_to_dense_layer[1] for _, m in done if m.ratio_to_dense_layer
                ),
                _median(row.median / fastest[row.workload].median for row, _ in done),
                str(sum(m.is_noisy for _, m in done)),
                _median(
                    m.moved_bytes / m.written_bytes
                    for _, m in done
                    if m.moved_bytes is not None and m.written_bytes
                ),
            )
        table.add_section()
    return table


def _median(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.2f}" if known else ""


def summary(rows: Sequence[Row]) -> str:
    """How far the default is from the best, where butterflies beat dense layers, and
    why an implementation refuses what it does.
    """
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
            f"implementation ({titles(rows)[row.workload]})"
        )
    ahead = [
        group
        for group in groups
        if (taken := best(group).measured)
        and taken.ratio_to_dense_layer
        and taken.ratio_to_dense_layer[2] < 1
    ]
    lines.append(
        f"The best implementation beats the dense layer, quartiles and all, in "
        f"{len(ahead)} of {len(groups)} workloads"
    )
    return "\n".join([*lines, *refusals(rows)])


def refusals(rows: Sequence[Row]) -> list[str]:
    """Why implementations are unsupported, a line for each: the reason met first."""
    found = []
    for name in dict.fromkeys(row.implementation for row in rows if row.unsupported):
        mine = [row for row in rows if row.implementation == name]
        reasons = [row.unsupported for row in mine if row.unsupported]
        others = len(set(reasons)) - 1
        found.append(
            f"{name} is unsupported in {len(reasons)} of {len(mine)} workloads: "
            f"{reasons[0]}" + (f" (and {others} more)" if others else "")
        )
    return found


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with rows, a line each."""
    names = titles(rows)
    found = []
    for row in rows:
        name = f"{row.implementation}, {names[row.workload]}"
        if row.failed:
            found.append(f"{name}: {row.failed}")
        if row.is_wrong:
            found.append(
                f"{name}: WRONG, an output is further from float64 than "
                f"{row.tolerance:.0e}"
            )
    return found
