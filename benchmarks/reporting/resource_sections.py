"""The sections on what calls use: the device's rates, energy, and memory traffic."""

from collections.abc import Mapping, Sequence

from benchmarks.reporting import figures, statistics, words
from benchmarks.reporting.groups import Group, Stratum
from benchmarks.reporting.page import Picture, Section, Table
from benchmarks.timings import timings
from benchmarks.workloads import DENSE_LAYER
from butterjax import planning


def roofline(key: Stratum, found: Sequence[Group]) -> Section:
    """Work done per second, and what the device was seen to do at most."""
    anchor, title = f"{key.slug}_roofline", "Roofline"
    if key.direction != "forward":
        return Section(anchor, title, ("Rooflines are drawn of forward passes alone.",))
    known = list(timings(found))
    if DENSE_LAYER not in {timing.implementation for timing in known}:
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


def energy(key: Stratum, found: Sequence[Group]) -> Section:
    """Energy in units of that of the dense layer."""
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
                words.medians(label, values),
            ),
        ),
        tables=(_median_table(label, values),),
    )


def rewriting(key: Stratum, found: Sequence[Group]) -> Section:
    """Share of bytes and time that goes into transposes and copies."""
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
                    words.medians(label, values),
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
