"""Numbers and chains as the report's tables show them."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.reporting.groups import Quartiles
from butterjax import Chain
from butterjax.planning import Option

_BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def number(value: float) -> str:
    """Three digits, and all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """A time, without its unit."""
    return number(1e3 * seconds)


def spread(values: Quartiles | None) -> str:
    """A median with its quartiles."""
    if values is None:
        return "–"
    low, middle, high = map(number, values)
    return f"{middle} ({low}–{high})"


def size(num_bytes: int | None) -> str:
    """Bytes in a fitting unit."""
    if num_bytes is None:
        return "–"
    for unit, factor in _BYTES:
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} B"


def rate(per_second: float) -> str:
    """A rate with the prefix of its unit, which follows."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if per_second >= factor:
            return f"{per_second / factor:.3g} {prefix}"
    return f"{per_second:.3g} "


def patterns(chain: Chain) -> str:
    """The patterns of a chain; of a long one the first and the last."""
    names = [f"({p.a},{p.b},{p.c},{p.d})" for p in chain]
    if len(names) > 4:
        return f"{names[0]} … {names[-1]}, {len(names)} factors"
    return " ".join(names)


def option(choice: Option) -> str:
    """What an option is, in a few words."""
    if choice.chain is None:
        return choice.implementation
    return f"{choice.implementation} on {patterns(choice.chain)}"


def count(number: int, noun: str) -> str:
    """So many of something."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def medians(label: str, values: Mapping[str, Sequence[float]]) -> str:
    """For a picture's alternative text: the medians of its values."""
    middles = ", ".join(
        f"{name} {number(statistics.median(there))}" for name, there in values.items()
    )
    return f"Medians of the {label}: {middles}"


def listing(words: Sequence[str]) -> str:
    """One, two and three."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
