"""The report's plots: small enough for a phone, and readable without colour."""

import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from PIL import Image

from benchmarks.reporting import statistics
from benchmarks.reporting.groups import Group, implementations
from benchmarks.reporting.statistics import Fit, Standing
from benchmarks.workloads import DENSE_LAYER
from butterjax import Chain
from butterjax.planning import Rates

WIDTH = 5.2  # Inches; a phone shows it in full width, with letters still legible.
_MARKERS = "os^DvPX*<>hp"
_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(range(10, 100)))
_STYLE: Any = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.fontsize": 8,
}

Point = tuple[Chain, float]


def _looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Marker and colour of each implementation, and those of the dense layer."""
    ours = [name for name in names if name != DENSE_LAYER]
    looks = {
        name: {"marker": _MARKERS[i % len(_MARKERS)], "color": f"C{i % 10}"}
        for i, name in enumerate(ours)
    }
    return {DENSE_LAYER: {"marker": "+", "color": "black"}, **looks}


@matplotlib.rc_context(_STYLE)
def png(figure: Figure) -> bytes:
    """The contents of a PNG file; few colours do, and make it a third as large."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        few.save(small, format="png", optimize=True)
    return small.getvalue()


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _plain(axis: Axis) -> None:
    """A logarithmic axis with a few plain numbers; to be called at the end."""
    low, high = sorted(axis.get_view_interval())
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [step * 10.0**power for power in powers for step in steps]
        if len(inside := [tick for tick in ticks if low <= tick <= high]) >= 3:
            break
    axis.set_major_locator(FixedLocator(inside))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


@matplotlib.rc_context(_STYLE)
def wins(standings: Sequence[Standing]) -> Figure:
    """Bars of the share of workloads won, hatched where the win is clear."""
    figure = _figure(1.0 + 0.34 * len(standings))
    ax = figure.subplots()
    positions = range(len(standings))
    shares = [100 * one.num_wins / one.num_workloads for one in standings]
    clear = [100 * one.num_clear / one.num_workloads for one in standings]
    ax.barh(positions, shares, color="white", edgecolor="black", label="fastest")
    ax.barh(
        positions,
        clear,
        color="lightgrey",
        edgecolor="black",
        hatch="///",
        label="fastest, quartiles and all",
    )
    for position, one, share in zip(positions, standings, shares, strict=True):
        ax.annotate(
            f"{one.num_wins} of {one.num_workloads}",
            (share, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_yticks(positions, [one.implementation for one in standings])
    ax.invert_yaxis()
    ax.set_xlim(0, 118)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("% of workloads")
    ax.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(_STYLE)
def distribution(
    values: Mapping[str, Sequence[float]], label: str, *, is_log: bool = True
) -> Figure:
    """A box of each implementation's values, and the values themselves.

    Args:
      values: by implementation.
      label: of the axis.
      is_log: whether they are ratios; a line is drawn at 1 then.
    """
    names = list(values)
    figure = _figure(1.0 + 0.42 * len(names))
    ax = figure.subplots()
    ax.boxplot(
        [values[name] for name in names],
        orientation="horizontal",
        positions=range(len(names)),
        widths=0.6,
        showfliers=False,
        whis=(5, 95),
        medianprops={"color": "black", "linewidth": 2},
    )
    looks = _looks(names)
    rng = np.random.default_rng(0)  # Apart from one another, up and down.
    for index, name in enumerate(names):
        there = values[name]
        ax.plot(
            there,
            index + rng.uniform(-0.2, 0.2, len(there)),
            linestyle="none",
            markersize=3.5,
            markerfacecolor="none",
            alpha=0.7,
            **looks[name],
        )
    ax.set_yticks(
        range(len(names)), [f"{name} ({len(values[name])})" for name in names]
    )
    ax.invert_yaxis()
    if is_log:
        ax.axvline(1, color="black", linewidth=1, linestyle="--")
        ax.set_xscale("log")
        _plain(ax.xaxis)
    ax.set_xlabel(label)
    return figure


@matplotlib.rc_context(_STYLE)
def scatter(
    points: Mapping[str, Sequence[Point]],
    fits: Mapping[str, Fit | None],
    *,
    x: Callable[[Chain], float],
    line: Callable[[Fit, np.ndarray], np.ndarray],
    x_label: str,
    y_label: str,
) -> Figure:
    """Speed-up over a property of the chain: a panel per implementation.

    Args:
      points: chains and speed-ups, by implementation.
      fits: through them, None where there is none.
      x: the property.
      line: the speed-ups that a fit has at some values of the property.
      x_label: name of the property.
      y_label: what the speed-up is over.
    """
    columns = 2 if len(points) > 1 else 1
    rows = -(-len(points) // columns)
    figure = _figure(0.5 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    everything = [x(chain) for chain, _ in itertools.chain(*points.values())]
    span = np.geomspace(min(everything), max(everything), 50)
    looks = _looks(points)
    for ax in panels.flat[len(points) :]:
        ax.set_axis_off()
    for index, (ax, name) in enumerate(zip(panels.flat, points, strict=False)):
        ax.plot(
            [x(chain) for chain, _ in points[name]],
            [speed_up for _, speed_up in points[name]],
            linestyle="none",
            markersize=3.5,
            markerfacecolor="none",
            alpha=0.8,
            **looks[name],
        )
        if found := fits[name]:
            ax.plot(span, line(found, span), color="black", linewidth=1.5)
        ax.axhline(1, color="black", linewidth=0.8, linestyle="--")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(name, fontsize=9)
        if index + columns >= len(points):
            ax.tick_params(labelbottom=True)
    _plain(panels[0, 0].xaxis)  # The panels share their axes.
    _plain(panels[0, 0].yaxis)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    return figure


@matplotlib.rc_context(_STYLE | {"axes.grid": False})
def heat_map(values: Mapping[tuple[int, int], float], label: str) -> Figure:
    """One number for each (b, c), written into its field.

    Args:
      values: by (b, c).
      label: what they are.
    """
    bs = sorted({b for b, _ in values})
    cs = sorted({c for _, c in values})
    grid = np.array([[values.get((b, c), np.nan) for c in cs] for b in bs])
    figure = _figure(1.3 + 0.32 * len(bs))
    ax = figure.subplots()
    bound = max(float(np.nanmax(np.abs(np.log2(grid)))), 0.1)
    image = ax.imshow(
        np.log2(grid),
        cmap="PuOr",
        vmin=-2 * bound,  # Light enough everywhere for black numbers.
        vmax=2 * bound,
        aspect="auto",
        origin="lower",
    )
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            text = f"{value:.2g}" if value < 10 else f"{value:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7)
    ax.set_xticks(range(len(cs)), [str(c) for c in cs], rotation=45, fontsize=8)
    ax.set_yticks(range(len(bs)), [str(b) for b in bs], fontsize=8)
    ax.set_xlabel("c, features that a block takes")
    ax.set_ylabel("b, features that it gives")
    bar = figure.colorbar(image, ax=ax, location="top", shrink=0.8, aspect=35)
    ticks = np.linspace(-bound, bound, 5)
    bar.set_ticks(ticks.tolist(), labels=[f"{2**tick:.3g}" for tick in ticks])
    bar.ax.set_xlim(-bound, bound)
    bar.set_label(label)
    return figure


@matplotlib.rc_context(_STYLE)
def roofline(found: Sequence[Group], roofs: Mapping[str, Rates], dtype: str) -> Figure:
    """Useful FLOPs per second over FLOPs per byte, and what a device allows.

    Args:
      found: workloads of one stratum, forward.
      roofs: ceilings, by what to call them.
      dtype: of the stratum.
    """
    figure = _figure(3.9)
    ax = figure.subplots()
    intensities = []
    highest = max(rates.matmul_rates[dtype] for rates in roofs.values())
    name, unit = ("TFLOP/s", 1e12) if highest > 1e13 else ("GFLOP/s", 1e9)
    ax.set_ylabel(f"useful {name}")
    looks = _looks(implementations(found))
    for name in looks:
        points = []
        for group in found:
            row = group.rows.get(name)
            if row is None or row.measured is None or row.is_wrong:
                continue
            flops = statistics.useful_flops(group.workload, name)
            moved = statistics.least_bytes(group.workload, name)
            points.append((flops / moved, flops / row.measured.seconds[1] / unit))
        if points:
            intensities += [point[0] for point in points]
            ax.plot(
                *zip(*points, strict=True),
                linestyle="none",
                markersize=4.5,
                markerfacecolor="none",
                alpha=0.85,
                label=name,
                **looks[name],
            )
    span = np.geomspace(min(intensities) / 1.5, max(intensities) * 1.5, 100)
    for (name, rates), style in zip(roofs.items(), ("-", "--"), strict=False):
        top = np.minimum(span * rates.copy_rate, rates.matmul_rates[dtype]) / unit
        ax.plot(span, top, style, color="black", linewidth=1.2, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    _plain(ax.xaxis)
    _plain(ax.yaxis)
    ax.set_xlabel("useful FLOPs per byte of x, the weights and y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure
