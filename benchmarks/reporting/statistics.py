"""Win rates, speed-ups, fits, memory rewriting and energy, over one stratum."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from benchmarks.reporting.groups import Group, Quartiles, implementations
from benchmarks.results import Measurement
from benchmarks.workloads import DENSE_LAYER, Workload
from butterjax import Chain


@dataclasses.dataclass(frozen=True)
class Standing:
    """How an implementation stands among the others.

    Attributes:
      implementation: its name.
      num_workloads: of the stratum.
      num_refused, num_failed, num_wrong, num_noisy: how many workloads it does not
        support, fails on, returns wrong results for, and has noisy times on.
      num_wins: workloads on which it has the lowest median.
      num_clear: those of them where three quarters of its calls beat three quarters
        of those of any other.
      num_ahead: workloads on which three quarters of its calls beat the dense layer.
      over_dense: quartiles of its speed-up over the dense layer, None without one.
      over_others: the same over the best other implementation.
    """

    implementation: str
    num_workloads: int
    num_refused: int
    num_failed: int
    num_wrong: int
    num_noisy: int
    num_wins: int
    num_clear: int
    num_ahead: int
    over_dense: Quartiles | None
    over_others: Quartiles | None


def standings(found: Sequence[Group]) -> list[Standing]:
    """Of all implementations of a stratum, the one with the most wins first."""
    made = [_standing(name, found) for name in implementations(found)]
    return sorted(made, key=lambda one: (-one.num_wins, one.implementation))


def _standing(name: str, found: Sequence[Group]) -> Standing:
    rows = [group.rows[name] for group in found if name in group.rows]
    won = [group for group in found if group.fastest == name]
    ahead = [
        row
        for row in rows
        if row.measured
        and not row.is_wrong
        and row.measured.ratio_to_dense_layer
        and row.measured.ratio_to_dense_layer[2] < 1
    ]
    return Standing(
        implementation=name,
        num_workloads=len(found),
        num_refused=sum(row.unsupported is not None for row in rows),
        num_failed=sum(row.failed is not None for row in rows),
        num_wrong=sum(row.is_wrong for row in rows),
        num_noisy=sum(bool(row.measured and row.measured.is_noisy) for row in rows),
        num_wins=len(won),
        num_clear=sum(group.is_clear(name) for group in won),
        num_ahead=len(ahead),
        over_dense=quartiles(known(group.over_dense(name) for group in found)),
        over_others=quartiles(known(group.over_others(name) for group in found)),
    )


def known(values: Iterable[float | None]) -> list[float]:
    """The values that are not None."""
    return [value for value in values if value is not None]


def quartiles(values: Sequence[float]) -> Quartiles | None:
    """First quartile, median and third quartile; None of nothing."""
    if not values:
        return None
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def density(chain: Chain) -> float:
    """Weights over those of a dense layer: 1/(ad) for one factor."""
    return chain.num_weights / (chain.in_features * chain.out_features)


def bytes_per_flop(chain: Chain) -> float:
    """Elements moved over products done: (b + c)/(bc) for one factor (a, b, c, d).

    For a chain, both are added up over the factors.
    """
    return chain.bytes_per_row(itemsize=1) / chain.num_weights


@dataclasses.dataclass(frozen=True)
class Fit:
    """log(speed-up) = constant + by_density·log(density) + by_ratio·log((b+c)/(bc)).

    The model of arXiv 2405.15013, by least squares with natural logarithms.

    Attributes:
      constant, by_density, by_ratio: the coefficients.
      adjusted_r2: share of the variance that is explained, less what three
        coefficients would explain of noise.
      num_points: that were fitted.
      mean_log_density, mean_log_ratio: of the points; a line over one of the two is
        drawn at the mean of the other.
    """

    constant: float
    by_density: float
    by_ratio: float
    adjusted_r2: float
    num_points: int
    mean_log_density: float
    mean_log_ratio: float

    def over_density(self, values: np.ndarray) -> np.ndarray:
        """Speed-ups at these densities."""
        rest = self.constant + self.by_ratio * self.mean_log_ratio
        return np.exp(rest + self.by_density * np.log(values))

    def over_ratio(self, values: np.ndarray) -> np.ndarray:
        """Speed-ups at these (b + c)/(bc)."""
        rest = self.constant + self.by_density * self.mean_log_density
        return np.exp(rest + self.by_ratio * np.log(values))


def fit(points: Sequence[tuple[Chain, float]]) -> Fit | None:
    """Fits the speed-ups of chains; None where they are too few or too much alike."""
    if len(points) < 5:
        return None
    x = np.array(
        [
            (1.0, math.log(density(chain)), math.log(bytes_per_flop(chain)))
            for chain, _ in points
        ]
    )
    y = np.log([speed_up for _, speed_up in points])
    spread = x[:, 1:] - x[:, 1:].mean(axis=0)
    if np.linalg.matrix_rank(spread, tol=1e-9) < 2:
        return None
    coefficients, *_ = np.linalg.lstsq(x, y)
    left = np.sum((y - x @ coefficients) ** 2)
    total = np.sum((y - y.mean()) ** 2)
    num_points, num_coefficients = x.shape
    unexplained = left / total if total else 0.0
    constant, by_density, by_ratio = map(float, coefficients)
    return Fit(
        constant=constant,
        by_density=by_density,
        by_ratio=by_ratio,
        adjusted_r2=float(
            1 - unexplained * (num_points - 1) / (num_points - num_coefficients)
        ),
        num_points=num_points,
        mean_log_density=float(x[:, 1].mean()),
        mean_log_ratio=float(x[:, 2].mean()),
    )


def useful_flops(workload: Workload, implementation: str) -> int:
    """That the forward pass of the chain, or of the dense layer, needs."""
    chain = workload.chain
    if implementation == DENSE_LAYER:
        return 2 * workload.batch * chain.in_features * chain.out_features
    return workload.batch * chain.flops


def least_bytes(workload: Workload, implementation: str) -> int:
    """Of x, the weights and y, each moved once."""
    if implementation != DENSE_LAYER:
        return workload.floor_bytes
    chain = workload.chain
    per_weight = workload.weight_bytes // chain.num_weights
    weights = chain.in_features * chain.out_features
    return workload.floor_bytes - workload.weight_bytes + per_weight * weights


def per_implementation(
    found: Sequence[Group], value: Callable[[Group, Measurement], float | None]
) -> dict[str, list[float]]:
    """A value of each measurement, by implementation; where none is known, left out."""
    values: dict[str, list[float]] = {}
    for name in [DENSE_LAYER, *implementations(found)]:
        there = known(
            value(group, row.measured)
            for group in found
            if (row := group.rows.get(name)) and row.measured
        )
        if there:
            values[name] = there
    return values


def rewritten_bytes(found: Sequence[Group]) -> dict[str, list[float]]:
    """Share of all bytes written by a call that transposes and copies write."""

    def value(group: Group, measured: Measurement) -> float | None:
        if measured.moved_bytes is None or not measured.written_bytes:
            return None
        return measured.moved_bytes / measured.written_bytes

    return per_implementation(found, value)


def rewriting_time(found: Sequence[Group]) -> dict[str, list[float]]:
    """Share of the time of a call that transposes and copies take."""

    def value(group: Group, measured: Measurement) -> float | None:
        if measured.moved_seconds is None:
            return None
        return measured.moved_seconds / measured.seconds[1]

    return per_implementation(found, value)


def energy(found: Sequence[Group]) -> dict[str, list[float]]:
    """Energy of a call over that of the dense layer."""

    def value(group: Group, measured: Measurement) -> float | None:
        dense = group.dense.measured if group.dense else None
        if measured.joules is None or dense is None or not dense.joules:
            return None
        return measured.joules / dense.joules

    return per_implementation(found, value)
