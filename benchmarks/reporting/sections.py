"""The sections on all rows: what to use, what changed, and what went wrong."""

import collections
from collections.abc import Sequence

from benchmarks.reporting import words
from benchmarks.reporting.changes import Change, Comparison
from benchmarks.reporting.groups import Group, Stratum
from benchmarks.reporting.page import Section, Table
from benchmarks.timings import timings
from benchmarks.workloads import LAYOUTS
from butterjax import planning


def answers(found: Sequence[Group]) -> Section:
    """What `butterjax.planning.recommend` chooses for every layer that was measured."""
    anchor, title = "answer", "Which one should I use?"
    known = list(timings(found))
    layers = {
        (group.stratum, group.workload.chain.in_features, chain.out_features)
        for group in found
        if any(group.over_dense(name) for name in group.costs)
        and planning.replaces_dense(chain := group.workload.chain)
    }
    rows: dict[Stratum, list[tuple[str, ...]]] = {}
    for stratum, n_in, n_out in sorted(layers):
        chosen = planning.recommend(
            n_in,
            n_out,
            batch=stratum.batch,
            dtype=stratum.dtype,
            device=stratum.device,
            axis=LAYOUTS[stratum.layout],
            backward=stratum.direction == "forward+backward",
            timings=known,
        )
        line = (f"{n_in} → {n_out}", *_answer(chosen))
        rows.setdefault(stratum, []).append(line)
    if not rows:
        return Section(
            anchor,
            title,
            (
                "No chain in these rows could take the place of a dense layer: none "
                "was measured, or the products of all have zeros or no fewer weights. "
                "The tables of all workloads name the fastest for each pattern.",
            ),
        )
    return Section(
        anchor,
        title,
        (
            "For each size that was measured, the chain and the implementation with "
            "the lowest time in units of the dense layer beside it; or the dense "
            "layer, where not even three quarters of their calls beat it. Only chains "
            "count whose product is a full matrix and that have fewer weights than "
            "that. For other sizes: python -m benchmarks.recommend --help.",
        ),
        tables=tuple(
            Table(
                f"{stratum.name}, on {stratum.device}",
                (
                    "layer",
                    "use",
                    "ms",
                    "dense, ms",
                    "speed-up",
                    "weights, of dense",
                    "peak memory, of dense",
                ),
                tuple(lines),
                num_words=2,
            )
            for stratum, lines in rows.items()
        ),
    )


def _answer(chosen: planning.Recommendation) -> tuple[str, ...]:
    best, dense = chosen.best, chosen.dense
    return (
        words.option(best),
        words.milliseconds(best.seconds),
        words.milliseconds(dense.seconds),
        words.number(1 / best.ratio[1]),
        f"{best.weight_bytes / dense.weight_bytes:.1%}",
        _share(best.peak_bytes, dense.peak_bytes),
    )


def _share(part: int | None, whole: int | None) -> str:
    return f"{part / whole:.0%}" if part is not None and whole else "–"


def changes(comparison: Comparison, baseline: str, threshold: float) -> Section:
    """What is slower, faster or gone since the baseline."""
    regressions = comparison.regressions
    texts = [
        f"{words.count(comparison.num_compared, 'measurement')} of {baseline} were "
        f"made again: {words.count(len(regressions), 'regression')}, "
        f"{len(comparison.changes) - len(regressions)} faster, by more than "
        f"{threshold:.0%} and by more than the quartiles overlap. "
        f"{comparison.num_missing} are missing here, {comparison.num_added} are new."
    ]
    if comparison.dense_factor is not None:
        texts.append(
            "Times are compared in units of the dense layer beside them. It took "
            f"{words.number(comparison.dense_factor)} times as long as in the baseline "
            "(median)."
        )
    return Section(
        "baseline",
        "Compared with the baseline",
        tuple(texts),
        tables=(
            Table(
                "Regressions first",
                ("workload", "implementation", "what", "new ÷ old"),
                tuple(map(_change_words, comparison.changes)),
                num_words=3,
            ),
        )
        if comparison.changes
        else (),
    )


def _change_words(change: Change) -> tuple[str, ...]:
    what = change.kind if change.is_regression else f"{change.kind} (better)"
    factor = words.number(change.factor) if change.factor else change.reason or "–"
    configuration = "" if change.configuration == "null" else f" {change.configuration}"
    return (
        f"{change.workload.name}, {change.device}",
        change.implementation + configuration,
        what,
        factor,
    )


def troubles(found: Sequence[Group]) -> Section:
    """What was refused, failed, came out wrong or is noisy, by reason."""
    reasons: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for group in found:
        for name, row in group.rows.items():
            if row.unsupported:
                reasons[name, "refused", row.unsupported] += 1
            elif row.failed:
                reasons[name, "failed", row.failed] += 1
            elif row.is_wrong:
                reasons[name, "WRONG", "further from float64 than allowed"] += 1
            elif row.measured and row.measured.is_noisy:
                reasons[name, "noisy", "quartiles far apart at the time limit"] += 1
    if not reasons:
        return Section(
            "troubles",
            "Refused, failed, wrong and noisy",
            ("Nothing was refused or failed, no result was wrong and no time noisy.",),
        )
    return Section(
        "troubles",
        "Refused, failed, wrong and noisy",
        (
            "Wrong results count in no statistic. Noisy times do; ~ marks them in "
            "the tables.",
        ),
        tables=(
            Table(
                "Reasons",
                ("implementation", "what", "reason", "workloads"),
                tuple(
                    (name, what, reason, str(number))
                    for (name, what, reason), number in sorted(
                        reasons.items(), key=lambda item: (item[0][1], item[0][0])
                    )
                ),
                num_words=3,
            ),
        ),
    )
