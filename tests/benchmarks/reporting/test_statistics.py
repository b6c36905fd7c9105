"""Against numbers worked out by hand."""

import math

import numpy as np
import pytest

import butterjax as bj
from benchmarks.reporting import groups, statistics
from benchmarks.workloads import DENSE_LAYER
from tests.benchmarks.reporting.test_groups import ratio
from tests.benchmarks.test_results import measurement, row


def workload(index):
    return {"case": f"case {index}"}


def test_standings():
    # Ratios to the dense layer over four workloads; a third quartile 10 % higher.
    table = {
        "a": [0.5, 0.5, 2.0, 0.95],
        "b": [1.0, 0.52, 1.0, None],
        "c": [4.0, 4.0, "refused", "wrong"],
    }
    rows = []
    for name, values in table.items():
        for index, value in enumerate(values):
            work = workload(index)
            if value is None:
                rows.append(row(name, work=work, measured=None, failed="boom"))
            elif value == "refused":
                rows.append(row(name, work=work, measured=None, unsupported="no"))
            elif value == "wrong":
                rows.append(row(name, work=work, error=1.0))
            else:
                made = ratio(value, value, 1.1 * value, is_noisy=value == 2.0)
                rows.append(row(name, work=work, measured=made))
    first, second, third = statistics.standings(groups.groups(rows))
    assert (first.implementation, first.num_wins, first.num_workloads) == ("a", 3, 4)
    assert first.num_clear == 2  # 0.5 against 1.0, and 0.95 alone; not 0.5 and 0.52.
    assert first.num_ahead == 2  # Not 0.95, whose third quartile is 1.045.
    assert first.num_noisy == 1
    assert first.over_dense == pytest.approx(
        np.quantile([0.5, 1 / 0.95, 2, 2], [0.25, 0.5, 0.75])
    )
    # 1.0/0.5, 0.52/0.5 and 1.0/2.0; alone on the last.
    assert first.over_others == pytest.approx((0.77, 1.04, 1.52))
    assert (second.implementation, second.num_wins, second.num_failed) == ("b", 1, 1)
    assert second.num_ahead == 1
    assert (third.implementation, third.num_wins) == ("c", 0)
    assert (third.num_refused, third.num_wrong) == (1, 1)
    assert third.over_dense == pytest.approx((0.25, 0.25, 0.25))


def test_properties_of_chains():
    factor = bj.Chain([(4, 32, 48, 2)])
    assert statistics.density(factor) == 1 / 8
    assert statistics.bytes_per_flop(factor) == pytest.approx((32 + 48) / (32 * 48))
    # Two factors of 1024 weights and 2·64·... numbers each.
    monarch = bj.Chain.monarch(64, 64)
    assert statistics.density(monarch) == 2 * 512 / 64**2
    assert statistics.bytes_per_flop(monarch) == pytest.approx((8 + 8) / 64)


PATTERNS = [
    (a, b, c, d) for a in (1, 3) for b in (8, 32) for c in (16, 48) for d in (1, 4)
]


def test_fit_of_exact_data():
    points = [
        (
            bj.Chain([(a, b, c, d)]),
            math.exp(1.5) * (a * d) ** 0.25 * ((b + c) / (b * c)) ** 0.75,
        )
        for a, b, c, d in PATTERNS
    ]
    found = statistics.fit(points)
    assert found.constant == pytest.approx(1.5)
    assert found.by_density == pytest.approx(-0.25)
    assert found.by_ratio == pytest.approx(0.75)
    assert found.adjusted_r2 == pytest.approx(1)
    assert found.num_points == 16
    # The lines pass through the point of means.
    middle = math.exp(np.mean([math.log(value) for _, value in points]))
    density = math.exp(np.mean([-math.log(a * d) for a, _, _, d in PATTERNS]))
    assert found.over_density(np.array([density])) == pytest.approx(middle)
    slope = found.over_ratio(np.array([0.1, 0.2]))
    assert slope[1] / slope[0] == pytest.approx(2**0.75)


def test_adjusted_r2():
    rng = np.random.default_rng(0)
    logs = rng.standard_normal(len(PATTERNS))
    chains = [bj.Chain([pattern]) for pattern in PATTERNS]
    found = statistics.fit(list(zip(chains, np.exp(logs), strict=True)))
    x = np.array(
        [(-math.log(a * d), math.log(1 / b + 1 / c)) for a, b, c, d in PATTERNS]
    )
    # Correlation of the logarithms with the fit, from the normal equations.
    x = x - x.mean(axis=0)
    y = logs - logs.mean()
    explained = y @ x @ np.linalg.inv(x.T @ x) @ x.T @ y / (y @ y)
    assert found.adjusted_r2 == pytest.approx(1 - (1 - explained) * 15 / 13)


@pytest.mark.parametrize(
    "patterns",
    [
        PATTERNS[:4],  # Too few.
        [(1, 8 * i, 8, 4) for i in range(1, 9)],  # One density.
        [(i, 8, 8, 1) for i in range(1, 9)],  # One block.
        [(2**i, 2**i, 2**i, 1) for i in range(1, 9)],  # One decides the other.
    ],
)
def test_no_fit(patterns):
    chains = [bj.Chain([pattern]) for pattern in patterns]
    assert statistics.fit([(chain, 2.0) for chain in chains]) is None


def test_work_and_bytes():
    # 16 -> 16 features, 128 weights, batch 8, float32.
    group = groups.groups([row("bmm")])[0].workload
    assert statistics.useful_flops(group, "bmm") == 2 * 8 * 128
    assert statistics.useful_flops(group, DENSE_LAYER) == 2 * 8 * 256
    assert statistics.least_bytes(group, "bmm") == 4 * (8 * 32 + 128)
    assert statistics.least_bytes(group, DENSE_LAYER) == 4 * (8 * 32 + 256)


def test_rewriting_and_energy():
    dense = {"moved_bytes": 0, "written_bytes": 100, "joules": 10.0}
    rows = [
        row(DENSE_LAYER, measured=measurement(1.0, **dense)),
        row(
            "bmm",
            measured=measurement(
                0.5,
                moved_bytes=100,
                written_bytes=400,
                moved_seconds=0.2,
                joules=4.0,
            ),
        ),
        row("einsum", measured=measurement(0.5, moved_bytes=None)),
    ]
    found = groups.groups(rows)
    assert statistics.rewritten_bytes(found) == {DENSE_LAYER: [0.0], "bmm": [0.25]}
    assert statistics.rewriting_time(found) == {"bmm": [pytest.approx(0.4)]}
    assert statistics.energy(found) == {DENSE_LAYER: [1.0], "bmm": [0.4]}
    assert statistics.energy(groups.groups(rows[1:])) == {}
