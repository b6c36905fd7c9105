"""Result rows as the timings that `butterjax.planning.recommend` chooses by."""

from collections.abc import Iterable, Iterator

from benchmarks.reporting.groups import Group
from butterjax.planning import Timing


def timings(found: Iterable[Group]) -> Iterator[Timing]:
    """Those of rows with right results that have a ratio to the dense layer."""
    for group in found:
        work = group.workload
        for name, row in group.rows.items():
            measured = row.measured
            if measured is None or row.is_wrong or not measured.ratio_to_dense_layer:
                continue
            yield Timing(
                device=group.device,
                chain=work.chain,
                batch=work.batch,
                dtype=work.dtype,
                axis=work.axis,
                backward=work.direction == "forward+backward",
                implementation=name,
                seconds=measured.seconds[1],
                ratio=measured.ratio_to_dense_layer,
                peak_bytes=measured.peak_bytes,
            )
