"""The section on whole networks."""

from collections.abc import Sequence

from benchmarks.network_rows import DENSE_LAYERS, Row, Workload
from benchmarks.reporting import words
from benchmarks.reporting.page import Section, Table


def networks(rows: Sequence[Row]) -> Section:
    """Latency, throughput, size and memory of each network; of the latest run."""
    tables: dict[tuple[str, Workload], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row.environment.run):
        place = (row.environment.device, row.workload)
        tables.setdefault(place, {})[row.implementation] = row
    return Section(
        "networks",
        "Whole networks",
        (
            f"The same network with {DENSE_LAYERS} and with butterfly layers in their "
            "places, timed side by side, end to end. ~ marks noisy times.",
        ),
        tables=tuple(
            Table(
                f"{workload.name}, {workload.dtype}, {workload.sizes.depth} blocks, "
                f"on {device}",
                (
                    "layers",
                    "ms",
                    "÷ dense (quartiles)",
                    "inputs per second",
                    "weights",
                    "peak memory",
                ),
                tuple(map(_line, sorted(members.values(), key=_is_butterfly))),
            )
            for (device, workload), members in tables.items()
        ),
    )


def _is_butterfly(row: Row) -> bool:
    return row.implementation != DENSE_LAYERS


def _line(row: Row) -> tuple[str, ...]:
    measured = row.measured
    if measured is None:
        why = f"failed: {row.failed}" if row.failed else f"refused: {row.unsupported}"
        return (f"{row.implementation} ({why})", *["–"] * 5)
    seconds = measured.seconds[1]
    return (
        row.implementation + " WRONG" * row.is_wrong,
        words.milliseconds(seconds) + " ~" * measured.is_noisy,
        words.spread(measured.ratio_to_dense_layer),
        words.number(row.workload.batch / seconds),
        f"{row.num_weights:,}",
        words.size(measured.peak_bytes),
    )
