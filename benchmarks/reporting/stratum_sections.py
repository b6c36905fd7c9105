"""The sections on one stratum: what each says of the rows, or that it has none."""

import statistics as standard
from collections.abc import Mapping, Sequence

from benchmarks.reporting import figures, statistics, words
from benchmarks.reporting.groups import Group, Stratum, implementations
from benchmarks.reporting.page import Picture, Section, Table
from benchmarks.reporting.statistics import Fit, Standing
from benchmarks.results import Row
from benchmarks.timings import timings
from benchmarks.workloads import DENSE_LAYER
from butterjax import Chain, planning

_OVER_DENSE = "speed-up over the dense layer"
_OVER_OTHERS = "speed-up over the best other"


def section(key: Stratum, found: Sequence[Group], title: str) -> Section:
    """All about one stratum."""
    return Section(
        key.slug,
        title,
        (f"{words.count(len(found), 'workload')} on {key.device}, {_clocks(found)}.",),
        sections=(
            _wins(key, found),
            _speed_ups(key, found, "density"),
            _speed_ups(key, found, "ratio"),
            _heat_maps(key, found),
            _roofline(key, found),
            _energy(key, found),
            _rewriting(key, found),
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


def _wins(key: Stratum, found: Sequence[Group]) -> Section:
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
    for label, values in (
        (_OVER_DENSE, _values(found, "dense")),
        (_OVER_OTHERS, _values(found, "others")),
    ):
        if values:
            pictures.append(
                Picture(
                    f"{key.slug}_{'dense' if label == _OVER_DENSE else 'others'}",
                    figures.png(figures.distribution(values, label)),
                    f"{label.capitalize()}: a mark per workload, boxes between the "
                    "quartiles, whiskers to the 5th and 95th percentile. Right of "
                    "the dashed line is faster.",
                    _alt_medians(label, values),
                )
            )
    return Section(
        anchor,
        title,
        pictures=tuple(pictures),
        tables=(_standing_table(standings),),
    )


def _values(found: Sequence[Group], over: str) -> dict[str, list[float]]:
    values = {}
    for name in implementations(found):
        there = statistics.known(
            group.over_dense(name) if over == "dense" else group.over_others(name)
            for group in found
        )
        if there:
            values[name] = there
    return values


def _alt_medians(label: str, values: Mapping[str, Sequence[float]]) -> str:
    medians = ", ".join(
        f"{name} {words.number(standard.median(there))}"
        for name, there in values.items()
    )
    return f"Medians of the {label}: {medians}"


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


_AXES = {
    "density": (
        "Speed-up and density",
        "density: weights over those of the dense layer",
        statistics.density,
        Fit.over_density,
        "dense",
        _OVER_DENSE,
    ),
    "ratio": (
        "Speed-up and (b + c)/(bc)",
        "(b + c)/(bc): elements moved per product",
        statistics.bytes_per_flop,
        Fit.over_ratio,
        "others",
        _OVER_OTHERS,
    ),
}


def _speed_ups(key: Stratum, found: Sequence[Group], axis: str) -> Section:
    title, x_label, x, line, over, y_label = _AXES[axis]
    pictures, tables, texts = [], [], []
    for kind, members in (
        ("single factors", [g for g in found if len(g.workload.chain) == 1]),
        ("chains", [g for g in found if len(g.workload.chain) > 1]),
    ):
        points = _points(members, over)
        if not points:
            continue
        fits = {name: statistics.fit(there) for name, there in points.items()}
        if any(fits.values()):
            tables.append(_fit_table(fits, kind, y_label))
        else:
            texts.append(
                f"Of {kind}, there are too few or too similar ones to fit a line."
            )
        pictures.append(
            Picture(
                f"{key.slug}_{axis}_{kind.split()[-1]}",
                figures.png(
                    figures.scatter(
                        points,
                        fits,
                        x=x,
                        line=line,
                        x_label=x_label,
                        y_label=y_label,
                    )
                ),
                f"{kind.capitalize()}. Above the dashed line is faster; the solid line "
                "is the fit, drawn at the mean of the other variable.",
                _alt_medians(y_label, {n: [v for _, v in p] for n, p in points.items()})
                + f", over {x_label}",
            )
        )
    if not pictures:
        texts = ["No two implementations, or none and a dense layer, were measured."]
    return Section(
        f"{key.slug}_{axis}", title, tuple(texts), tuple(pictures), tuple(tables)
    )


def _points(found: Sequence[Group], over: str) -> dict[str, list[tuple[Chain, float]]]:
    points: dict[str, list[tuple[Chain, float]]] = {}
    for group in found:
        for name in implementations([group]):
            value = (
                group.over_dense(name) if over == "dense" else group.over_others(name)
            )
            if value is not None:
                points.setdefault(name, []).append((group.workload.chain, value))
    return points


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


def _heat_maps(key: Stratum, found: Sequence[Group]) -> Section:
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
            medians = {block: standard.median(there) for block, there in cells.items()}
            best = max(medians, key=lambda block: medians[block])
            pictures.append(
                Picture(
                    f"{key.slug}_blocks_{name}",
                    figures.png(
                        figures.heat_map(medians, f"{name}: {_OVER_DENSE}, median")
                    ),
                    f"{name}: medians over all a and d with blocks of b × c.",
                    f"Heat map of the {_OVER_DENSE} of {name} over block sizes, from "
                    f"{words.number(min(medians.values()))} to "
                    f"{words.number(medians[best])} at b = {best[0]}, c = {best[1]}",
                )
            )
    if not pictures:
        return Section(
            anchor, title, ("No single factors were measured beside a dense layer.",)
        )
    return Section(anchor, title, pictures=tuple(pictures))


def _roofline(key: Stratum, found: Sequence[Group]) -> Section:
    anchor, title = f"{key.slug}_roofline", "Roofline"
    if key.direction != "forward":
        return Section(anchor, title, ("Rooflines are drawn of forward passes alone.",))
    known = list(timings(found))
    if not known:
        return Section(anchor, title, ("Nothing was measured beside a dense layer.",))
    try:
        assumed = planning.rates_of(key.device)
    except ValueError:
        return Section(anchor, title, (f"No ceilings of {key.device} are known.",))
    roofs = {"highest seen in these rows": planning.calibrate(assumed, known)}
    if assumed.runs_kernels:
        roofs[f"{assumed.device}, {assumed.source}"] = assumed
    seen = roofs["highest seen in these rows"]
    return Section(
        anchor,
        title,
        pictures=(
            Picture(
                anchor,
                figures.png(figures.roofline(found, roofs, key.dtype)),
                "Work that the chain as given needs, per second. The slanted line is "
                "the highest rate at which x, the weights and y were moved in these "
                "rows, the level one the highest FLOP rate of a dense layer: what was "
                "reached, not what the hardware allows at most.",
                f"Roofline: {seen.copy_rate / 1e9:.3g} GB/s and "
                f"{seen.matmul_rates[key.dtype] / 1e9:.4g} GFLOP/s were reached",
            ),
        ),
    )


def _energy(key: Stratum, found: Sequence[Group]) -> Section:
    anchor, title = f"{key.slug}_energy", "Energy"
    values = statistics.energy(found)
    values.pop(DENSE_LAYER, None)
    if not values:
        return Section(
            anchor,
            title,
            ("No energy was metered: rows have it on GPUs that tell it.",),
        )
    label = "energy of a call, over that of the dense layer"
    return Section(
        anchor,
        title,
        pictures=(
            Picture(
                anchor,
                figures.png(figures.distribution(values, label)),
                "A mark per workload; left of the dashed line is less energy.",
                _alt_medians(label, values),
            ),
        ),
        tables=(_median_table(label, values),),
    )


def _rewriting(key: Stratum, found: Sequence[Group]) -> Section:
    anchor, title = f"{key.slug}_rewriting", "Memory rewriting"
    pictures, tables = [], []
    for what, label, values in (
        (
            "bytes",
            "share of the bytes written that transposes and copies write",
            statistics.rewritten_bytes(found),
        ),
        (
            "time",
            "share of the time that transposes and copies take",
            statistics.rewriting_time(found),
        ),
    ):
        if values:
            tables.append(_median_table(label, values))
            pictures.append(
                Picture(
                    f"{anchor}_{what}",
                    figures.png(figures.distribution(values, label, is_log=False)),
                    f"{label.capitalize()}: a mark per workload.",
                    _alt_medians(label, values),
                )
            )
    texts = []
    if not pictures:
        texts = ["The rows do not tell what transposes and copies rewrite."]
    elif len(pictures) == 1:
        texts = ["Their share of the time is known only where a device's clock is."]
    return Section(anchor, title, tuple(texts), tuple(pictures), tuple(tables))


def _median_table(label: str, values: Mapping[str, Sequence[float]]) -> Table:
    return Table(
        label.capitalize(),
        ("implementation", "median (quartiles)", "most", "workloads"),
        tuple(
            (
                name,
                words.spread(statistics.quartiles(there)),
                words.number(max(there)),
                str(len(there)),
            )
            for name, there in values.items()
        ),
    )


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
