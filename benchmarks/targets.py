"""The targets of `benchmarks.gpu_suite`, and whether rows meet them."""

import dataclasses
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal

from benchmarks import ceilings, suite_cases
from benchmarks.results import Row
from benchmarks.suite_cases import FACTOR_BY_FACTOR, OURS, XLA
from benchmarks.workloads import DENSE_LAYER, LAYOUTS, Workload


@dataclasses.dataclass(frozen=True)
class Rates:
    """Ceilings of one run: bytes per second, and operations per second by dtype."""

    copy: float
    matmul: Mapping[str, float]

    def memory_seconds(self, row: Row) -> float:
        """The time to move x, the factors and y once."""
        return row.floor_bytes / self.copy

    def compute_seconds(self, row: Row) -> float:
        """The time for the chain's operations at the rate of dense products."""
        return row.flops / self.matmul[row.workload.dtype]


def rates(rows: Iterable[ceilings.Row]) -> dict[str, Rates]:
    """The ceilings of each run, by its start."""
    copies: dict[str, float] = {}
    products: dict[str, dict[str, float]] = {}
    for row in rows:
        run = row.environment.run
        if row.name == "copy":
            copies[run] = row.bytes_per_second
        else:
            products.setdefault(run, {})[row.dtype] = row.flops_per_second
    return {run: Rates(copy, products.get(run, {})) for run, copy in copies.items()}


# Of the rows of one workload, measured side by side, and the ceilings of their run;
# None where the target does not apply.
Value = Callable[[Sequence[Row], Rates], float | None]


@dataclasses.dataclass(frozen=True)
class Target:
    """Something that is to be reached.

    Attributes:
      text: what, in words.
      unit: what the value is, in a word or two.
      workloads: on which.
      value: what is to reach the threshold.
      threshold: how much it should be at least.
      share: of the workloads that have to reach it.
    """

    text: str
    unit: str
    workloads: tuple[Workload, ...]
    value: Value
    threshold: float
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What became of a target.

    Attributes:
      target: which.
      verdict: "not measured" until all of its workloads are, unless it is missed
        already.
      values: of the workloads that were measured and to which it applies.
      num_left: workloads that were not measured.
    """

    target: Target
    verdict: Literal["PASS", "MISS", "not measured"]
    values: tuple[float, ...]
    num_left: int

    @property
    def found(self) -> str:
        """What was measured, in words."""
        words = []
        if self.values:
            reached = sum(value >= self.target.threshold for value in self.values)
            words = [
                f"{reached} of {len(self.values)}",
                f"worst {min(self.values):.2f}",
                f"median {statistics.median(self.values):.2f}",
            ]
        return ", ".join(
            [*words, *([f"{self.num_left} left"] if self.num_left else [])]
        )


def targets(num_patterns: int) -> list[Target]:
    """All targets, with so many of the paper's patterns."""
    parts = {
        part: tuple(
            suite_cases.workloads_of(part, list(LAYOUTS), num_patterns=num_patterns)
        )
        for part in suite_cases.PARTS
    }

    def of(part: suite_cases.Part, *cases: str) -> tuple[Workload, ...]:
        return tuple(work for work in parts[part] if work.case in cases)

    small, middle, large = suite_cases.TWO_FACTORS
    strided = of("factors", *suite_cases.STRIDED)
    dense = faster_than([DENSE_LAYER])
    xla = faster_than(XLA)
    found = [
        Target(
            "one factor, d = 1, bound by memory",
            "of a copy",
            of("factors", *suite_cases.LAST_IN_BLOCK),
            share_of_copy,
            0.85,
        ),
        Target(
            "one factor, d > 1, blocks of 16 to 128, features last",
            "of a copy",
            tuple(work for work in strided if work.layout == "feature_last"),
            share_of_copy,
            0.8,
        ),
        Target(small, "of the floor", of("chains", small), share_of_floor, 0.8),
    ]
    for case, threshold in ((small, 2.2), (middle, 2.5), (large, 2.0)):
        found.append(Target(case, "× XLA", of("chains", case), xla, threshold))
    found.append(Target(large, "× dense", of("chains", large), dense, 4.5))
    for case, threshold in ((small, 1.5), (middle, 2.0)):
        text = f"{case}, forward and backward"
        found.append(Target(text, "× XLA", of("training", case), xla, threshold))
    one_by_one = faster_than(FACTOR_BY_FACTOR)
    return [
        *found,
        Target("radix-2 chains", "× XLA by factor", parts["radix"], one_by_one, 6.0),
        Target("the paper's patterns, float16", "× XLA", parts["paper"], xla, 1.0, 0.9),
    ]


def judge(
    wanted: Iterable[Target], rows: Iterable[Row], ceiling_rows: Iterable[ceilings.Row]
) -> list[Judgement]:
    """Whether rows meet targets; only rows of one run are compared."""
    groups, of_run = by_workload(rows), rates(ceiling_rows)
    return [_judge(target, groups, of_run) for target in wanted]


def by_workload(rows: Iterable[Row]) -> dict[Workload, list[Row]]:
    """The rows of each workload that the latest run has of it."""
    groups: dict[Workload, list[Row]] = {}
    for row in rows:
        group = groups.setdefault(row.workload, [])
        if group and group[0].environment.run < row.environment.run:
            group.clear()
        if not group or group[0].environment.run == row.environment.run:
            group.append(row)
    return groups


def _judge(
    target: Target,
    groups: Mapping[Workload, Sequence[Row]],
    of_run: Mapping[str, Rates],
) -> Judgement:
    values, num_left = [], 0
    for workload in target.workloads:
        group = groups.get(workload, [])
        if not group or group[0].environment.run not in of_run:
            num_left += 1
            continue
        value = target.value(group, of_run[group[0].environment.run])
        if value is not None:
            values.append(value)
    missed = sum(value < target.threshold for value in values)
    # Those that are left could still all reach it.
    may_miss = (1 - target.share) * (len(values) + num_left)
    verdict: Literal["PASS", "MISS", "not measured"] = "PASS"
    if missed > may_miss + 1e-9:
        verdict = "MISS"
    elif num_left or not values:
        verdict = "not measured"
    return Judgement(target, verdict, tuple(values), num_left)


def best_kernel(group: Iterable[Row]) -> Row | None:
    """The fastest of the hand-written kernels, as the library takes them."""
    right = [
        row
        for row in group
        if row.implementation in OURS
        and row.configuration is None
        and row.measured
        and not row.is_wrong
    ]
    return min(right, key=lambda row: row.median, default=None)


def faster_than(rivals: Collection[str]) -> Value:
    """How many times as long as the best kernel the best of the rivals takes.

    A workload that no kernel takes counts as 0: it is not faster there.
    """

    def value(group: Sequence[Row], rates: Rates) -> float | None:
        del rates
        others = [row.median for row in group if row.implementation in rivals]
        best = best_kernel(group)
        if not others or min(others) == float("inf"):
            return None
        return min(others) / best.median if best else 0.0

    return value


def share_of_copy(group: Sequence[Row], rates: Rates) -> float | None:
    if rates.memory_seconds(group[0]) < rates.compute_seconds(group[0]):
        return None
    best = best_kernel(group)
    return rates.memory_seconds(best) / best.median if best else 0.0


def share_of_floor(group: Sequence[Row], rates: Rates) -> float | None:
    best = best_kernel(group)
    if best is None:
        return 0.0
    floor = max(rates.memory_seconds(best), rates.compute_seconds(best))
    return floor / best.median
