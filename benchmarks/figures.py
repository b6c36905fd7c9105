"""Plots, saved as PNG files; readable without colour."""

import functools
import pathlib
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.files import write_whole
from benchmarks.results import Row
from benchmarks.tables import by_workload, titles
from benchmarks.workloads import DENSE_LAYER

_MARKERS = "osD^vPX*<>hp"


def compare(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Time over that of the dense layer, for each workload and implementation.

    Args:
      rows: of one run.
      path: the file to write.
    """
    groups = by_workload(rows)
    names = list(dict.fromkeys(row.implementation for row in rows))
    if DENSE_LAYER in names:
        names.remove(DENSE_LAYER)
    figure = Figure(figsize=(9, 1.6 + 0.36 * len(groups)), layout="constrained")
    ax = figure.subplots()
    for index, name in enumerate(names):
        points = [
            (row.measured.ratio_to_dense_layer, position)
            for position, group in enumerate(groups)
            for row in group
            if row.implementation == name
            and row.measured
            and row.measured.ratio_to_dense_layer
        ]
        if not points:
            continue
        middles = [ratio[1] for ratio, _ in points]
        ax.errorbar(
            middles,
            [position for _, position in points],
            xerr=[
                [ratio[1] - ratio[0] for ratio, _ in points],
                [ratio[2] - ratio[1] for ratio, _ in points],
            ],
            fmt=_MARKERS[index % len(_MARKERS)],
            label=name,
            markersize=6,
            elinewidth=1,
            alpha=0.85,
        )
    ax.axvline(1, color="black", linewidth=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_yticks(
        range(len(groups)),
        [titles(rows)[group[0].workload] for group in groups],
        fontsize=8,
    )
    ax.invert_yaxis()
    ax.grid(axis="x", which="both", alpha=0.25)
    batches = ", ".join(dict.fromkeys(str(row.workload.batch) for row in rows))
    dtypes = ", ".join(dict.fromkeys(row.workload.dtype for row in rows))
    ax.set_xlabel("time ÷ time of the dense layer (median and quartiles)")
    ax.set_title(
        f"batch {batches}, {dtypes}, {rows[0].environment.device}\n"
        "left of the line is faster than the dense layer",
        fontsize=9,
    )
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=len(names))
    write_whole(path, functools.partial(figure.savefig, dpi=150))
