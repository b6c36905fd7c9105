"""The sections on speed: who wins, by how much, and on which patterns."""

import dataclasses
import statistics as standard
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.reporting import figures, statistics, words
from benchmarks.reporting.groups import Group, Stratum, implementations
from benchmarks.reporting.page import Picture, Section, Table
from benchmarks.reporting.statistics import Fit, Standing
from benchmarks.reporting.words import medians
from butterjax import Chain


@dataclasses.dataclass(frozen=True)
class _Speed:
    """A speed-up: what it is called, and its value for an implementation."""

    label: str
    of: Callable[[Group, str], float | None]


_OVER_DENSE = _Speed("speed-up over the dense layer", Group.over_dense)
_OVER_OTHERS = _Speed("speed-up over the best other", Group.over_others)


def wins(key: Stratum, found: Sequence[Group]) -> Section:
    """Which implementation is the fastest how often, and by how much."""
    anchor, title = f"{key.slug}_wins", "Win rate and speed-up"
    standings = statistics.standings(found)
    if not any(one.num_wins for one in standings):
        return Section(anchor, title, ("No implementation was measured here.",))
    pictures = [
        Picture(
            f"{key.slug}_wins",
            figures.png(figures.wins(standings)),
            "Share of the workloads on which an implementation is the fastest.",
            "Win rates: "
            + ", ".join(
                f"{one.implementation} {one.num_wins} of {one.num_workloads}"
                for one in standings
            ),
        )
    ]
    for name, speed in (("dense", _OVER_DENSE), ("others", _OVER_OTHERS)):
        if values := _values(_points(found, speed)):
            pictures.append(
                Picture(
                    f"{key.slug}_{name}",
                    figures.png(figures.distribution(values, speed.label)),
                    f"{speed.label.capitalize()}: a mark per workload, boxes between "
                    "the quartiles, whiskers to the 5th and 95th percentile. Right of "
                    "the dashed line is faster.",
                    medians(speed.label, values),
                )
            )
    return Section(
        anchor,
        title,
        pictures=tuple(pictures),
        tables=(_standing_table(standings),),
    )


def _points(found: Sequence[Group], speed: _Speed) -> dict[str, list[figures.Point]]:
    """Chains and speed-ups, by implementation."""
    points: dict[str, list[figures.Point]] = {}
    for group in found:
        for name in implementations([group]):
            if (value := speed.of(group, name)) is not None:
                points.setdefault(name, []).append((group.workload.chain, value))
    return points


def _values(points: Mapping[str, Sequence[figures.Point]]) -> dict[str, list[float]]:
    return {name: [value for _, value in there] for name, there in points.items()}


def _standing_table(standings: Sequence[Standing]) -> Table:
    return Table(
        "How the implementations stand",
        (
            "implementation",
            "fastest",
            "clearly so",
            "ahead of dense",
            "over dense",
            "over the best other",
            "refused",
            "failed",
            "wrong",
            "noisy",
        ),
        tuple(
            (
                one.implementation,
                f"{one.num_wins} of {one.num_workloads}",
                str(one.num_clear),
                str(one.num_ahead),
                words.spread(one.over_dense),
                words.spread(one.over_others),
                *(
                    str(number)
                    for number in (
                        one.num_refused,
                        one.num_failed,
                        one.num_wrong,
                        one.num_noisy,
                    )
                ),
            )
            for one in standings
        ),
    )


def over_density(key: Stratum, found: Sequence[Group]) -> Section:
    """How speed-ups over the dense layer depend on the density."""
    return _speed_ups(
        f"{key.slug}_density",
        "Speed-up and density",
        found,
        _OVER_DENSE,
        x=statistics.density,
        x_label="density: weights over those of the dense layer",
        line=Fit.over_density,
    )


def over_ratio(key: Stratum, found: Sequence[Group]) -> Section:
    """How speed-ups over the other implementations depend on (b + c)/(bc)."""
    return _speed_ups(
        f"{key.slug}_ratio",
        "Speed-up and (b + c)/(bc)",
        found,
        _OVER_OTHERS,
        x=statistics.bytes_per_flop,
        x_label="(b + c)/(bc): elements moved per product",
        line=Fit.over_ratio,
    )


def _speed_ups(
    anchor: str,
    title: str,
    found: Sequence[Group],
    speed: _Speed,
    *,
    x: Callable[[Chain], float],
    x_label: str,
    line: Callable[[Fit, np.ndarray], np.ndarray],
) -> Section:
    pictures, tables, texts = [], [], []
    for kind, members in (
        ("single factors", [g for g in found if len(g.workload.chain) == 1]),
        ("chains", [g for g in found if len(g.workload.chain) > 1]),
    ):
        points = _points(members, speed)
        if not points:
            continue
        fits = {name: statistics.fit(there) for name, there in points.items()}
        if any(fits.values()):
            tables.append(_fit_table(fits, kind, speed.label))
        else:
            texts.append(
                f"Of {kind}, there are too few or too similar ones to fit a line."
            )
        pictures.append(
            Picture(
                f"{anchor}_{kind.split()[-1]}",
                figures.png(
                    figures.scatter(
                        points,
                        fits,
                        x=x,
                        line=line,
                        x_label=x_label,
                        y_label=speed.label,
                    )
                ),
                f"{kind.capitalize()}. Above the dashed line is faster; the solid line "
                "is the fit, drawn at the mean of the other variable.",
                f"{medians(speed.label, _values(points))}, over {x_label}",
            )
        )
    if not pictures:
        texts = ["No two implementations, or none and a dense layer, were measured."]
    return Section(anchor, title, tuple(texts), tuple(pictures), tuple(tables))


def _fit_table(fits: Mapping[str, Fit | None], kind: str, label: str) -> Table:
    return Table(
        f"Fit for {kind}: log({label}) = α + β·log(density) + γ·log((b + c)/(bc)), "
        "natural logarithms, the model of arXiv 2405.15013",
        ("implementation", "α", "β", "γ", "adjusted R²", "points"),
        tuple(
            (
                name,
                f"{one.constant:.2f}",
                f"{one.by_density:.3f}",
                f"{one.by_ratio:.3f}",
                f"{one.adjusted_r2:.2f}",
                str(one.num_points),
            )
            if one
            else (name, *["too few"] * 5)
            for name, one in fits.items()
        ),
    )


def heat_maps(key: Stratum, found: Sequence[Group]) -> Section:
    """Speed-ups over the dense layer for each size of the blocks."""
    anchor, title = f"{key.slug}_blocks", "Speed-up over block sizes"
    single = [group for group in found if len(group.workload.chain) == 1]
    pictures = []
    for name in implementations(single):
        cells: dict[tuple[int, int], list[float]] = {}
        for group in single:
            (pattern,) = group.workload.chain
            if (value := group.over_dense(name)) is not None:
                cells.setdefault((pattern.b, pattern.c), []).append(value)
        if cells:
            middles = {block: standard.median(there) for block, there in cells.items()}
            best = max(middles, key=lambda block: middles[block])
            pictures.append(
                Picture(
                    f"{key.slug}_blocks_{name}",
                    figures.png(
                        figures.heat_map(
                            middles, f"{name}: {_OVER_DENSE.label}, median"
                        )
                    ),
                    f"{name}: medians over all a and d with blocks of b × c.",
                    f"{name}: {_OVER_DENSE.label} over block sizes, from "
                    f"{words.number(min(middles.values()))} to "
                    f"{words.number(middles[best])} at b = {best[0]}, c = {best[1]}",
                )
            )
    if not pictures:
        return Section(
            anchor, title, ("No single factors were measured beside a dense layer.",)
        )
    return Section(anchor, title, pictures=tuple(pictures))
