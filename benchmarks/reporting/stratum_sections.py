"""All sections on one stratum."""

from collections.abc import Sequence

from benchmarks.reporting import resource_sections, speed_sections, words
from benchmarks.reporting.groups import Group, Stratum, implementations
from benchmarks.reporting.page import Section, Table
from benchmarks.results import Row


def section(key: Stratum, found: Sequence[Group], title: str) -> Section:
    """What its rows tell; each part says so where they tell nothing of it."""
    return Section(
        key.slug,
        title,
        (f"{words.count(len(found), 'workload')} on {key.device}, {_clocks(found)}.",),
        sections=(
            speed_sections.wins(key, found),
            speed_sections.over_density(key, found),
            speed_sections.over_ratio(key, found),
            speed_sections.heat_maps(key, found),
            resource_sections.roofline(key, found),
            resource_sections.energy(key, found),
            resource_sections.rewriting(key, found),
            _everything(key, found),
        ),
    )


def _clocks(found: Sequence[Group]) -> str:
    clocks = {
        row.measured.clock
        for group in found
        for row in group.rows.values()
        if row.measured
    }
    names = {"wall": "the host's clock", "cupti": "the device's clock (CUPTI)"}
    told = words.listing([names[clock] for clock in sorted(clocks)])
    return f"timed by {told}" if told else "none of them timed"


def _everything(key: Stratum, found: Sequence[Group]) -> Section:
    names = implementations(found)
    rows = []
    for group in found:
        dense = group.dense
        fastest = group.fastest
        rows.append(
            (
                group.workload.case,
                words.milliseconds(dense.median) + _mark(dense) if dense else "–",
                *(_cell(group, name, name == fastest) for name in names),
            )
        )
    return Section(
        f"{key.slug}_all",
        "All workloads",
        tables=(
            Table(
                "Times in units of the dense layer beside them (ms where none is). "
                "* the fastest, ~ noisy",
                ("workload", "dense, ms", *names),
                tuple(rows),
                is_folded=True,
            ),
        ),
    )


def _mark(row: Row) -> str:
    return " ~" if row.measured and row.measured.is_noisy else ""


def _cell(group: Group, name: str, is_fastest: bool) -> str:
    row = group.rows.get(name)
    if row is None:
        return "not measured"
    if row.measured is None:
        return "failed" if row.failed else "refused"
    ratio = row.measured.ratio_to_dense_layer
    value = (
        words.number(ratio[1])
        if ratio
        else f"{words.milliseconds(row.measured.seconds[1])} ms"
    )
    return value + (" WRONG" if row.is_wrong else "") + _mark(row) + " *" * is_fastest
