import dataclasses

import pytest

import butterjax as bj
from benchmarks.reporting import groups
from benchmarks.workloads import DENSE_LAYER
from tests.benchmarks.test_results import ENVIRONMENT, measurement, row


def run(when, device="some CPU"):
    return dataclasses.replace(ENVIRONMENT, run=when, device=device)


def ratio(low, middle, high, *, seconds=1.0, **changes):
    """A measurement with these quartiles of the ratio to the dense layer."""
    return measurement(seconds, ratio_to_dense_layer=(low, middle, high), **changes)


def only(rows):
    (group,) = groups.groups(rows)
    return group


def test_the_latest_run_counts():
    group = only(
        [
            row("bmm", seconds=0.3, environment=run("2026-01-02")),
            row("bmm", seconds=0.1, environment=run("2026-01-01")),
            row("einsum", seconds=0.2, environment=run("2026-01-01")),
        ]
    )
    assert group.costs == {"bmm": (0.3, 0.3, 0.3), "einsum": (0.2, 0.2, 0.2)}
    assert group.fastest == "einsum"


def test_of_configurations_the_fastest_that_is_right():
    group = only(
        [
            row("pallas", seconds=0.3),
            row("pallas", seconds=0.2, configuration={"rows": 32}),
            row("pallas", seconds=0.1, configuration={"rows": 64}, error=1.0),
        ]
    )
    assert group.rows["pallas"].configuration == {"rows": 32}


@pytest.mark.parametrize(
    "other",
    [
        {"environment": run("2026-01-01", "other CPU")},
        {"work": {"batch": 9}},
        {"work": {"dtype": "bfloat16"}},
        {"work": {"layout": "feature_first"}},
        {"work": {"direction": "forward+backward"}},
    ],
)
def test_strata_are_apart(other):
    found = groups.groups([row("bmm"), row("bmm", **other)])
    assert len(found) == 2
    split = groups.strata(found)
    assert [len(members) for members in split.values()] == [1, 1]
    assert len({key.slug for key in split}) == 2


def test_workloads_of_one_stratum():
    wide = {"case": "monarch:64x64", "chain": bj.Chain.monarch(64, 64)}
    found = groups.groups([row("bmm"), row("bmm", work=wide), row("einsum")])
    (members,) = groups.strata(found).values()
    assert [sorted(group.rows) for group in members] == [["bmm", "einsum"], ["bmm"]]
    assert groups.implementations(members) == ["bmm", "einsum"]


def test_costs_are_ratios_where_all_have_them():
    # Fewer seconds, on a machine that was faster at that time.
    slow = ratio(0.4, 0.5, 0.6, seconds=1.0)
    fast = ratio(0.7, 0.8, 0.9, seconds=0.1)
    group = only([row("bmm", measured=slow), row("einsum", measured=fast)])
    assert group.fastest == "bmm"
    assert group.over_dense("bmm") == 2
    assert group.over_others("bmm") == pytest.approx(0.8 / 0.5)
    assert group.over_others("einsum") == pytest.approx(0.5 / 0.8)
    without = measurement(0.1, ratio_to_dense_layer=None)
    group = only([row("bmm", measured=slow), row("einsum", measured=without)])
    assert group.costs == {"bmm": (1.0, 1.0, 1.0), "einsum": (0.1, 0.1, 0.1)}
    assert group.over_dense("einsum") is None


def test_what_is_wrong_or_refused_does_not_win():
    group = only(
        [
            row(DENSE_LAYER, seconds=0.01),
            row("bmm", seconds=0.5),
            row("wrong", seconds=0.1, error=1.0),
            row("refused", measured=None, unsupported="no"),
            row("failed", measured=None, failed="boom"),
        ]
    )
    assert list(group.costs) == ["bmm"]
    assert group.fastest == "bmm"
    assert group.over_others("bmm") is None
    assert group.over_dense("wrong") is None
    assert group.over_dense("refused") is None
    assert only([row(DENSE_LAYER)]).fastest is None


@pytest.mark.parametrize(("second", "is_clear"), [(0.65, True), (0.55, False)])
def test_a_clear_win(second, is_clear):
    rows = [
        row("a", measured=ratio(0.4, 0.5, 0.6)),
        row("b", measured=ratio(second, 0.8, 0.9)),
    ]
    assert only(rows).is_clear("a") == is_clear
    assert not only(rows).is_clear("b")
