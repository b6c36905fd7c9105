import pytest

from benchmarks.reporting import changes
from benchmarks.workloads import DENSE_LAYER
from tests.benchmarks.reporting.test_groups import ratio, run
from tests.benchmarks.test_results import measurement, row

OLD = {"environment": run("2026-01-01")}
NEW = {"environment": run("2026-01-02")}


def compare(before, after, threshold=0.1):
    return changes.compare(before, after, threshold=threshold)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ((0.9, 1.0, 1.05), (1.1, 1.2, 1.3), "slower"),
        ((0.9, 1.0, 1.15), (1.1, 1.2, 1.3), None),  # The quartiles overlap.
        ((0.99, 1.0, 1.01), (1.04, 1.05, 1.06), None),  # Less than a tenth.
        ((1.1, 1.2, 1.3), (0.9, 1.0, 1.05), "faster"),
        ((1.1, 1.2, 1.3), (0.9, 1.0, 1.15), None),
        ((1.04, 1.05, 1.06), (0.99, 1.0, 1.01), None),
    ],
)
def test_times(old, new, kind):
    found = compare(
        [row(measured=ratio(*old), **OLD)], [row(measured=ratio(*new), **NEW)]
    )
    assert [change.kind for change in found.changes] == ([kind] if kind else [])
    assert len(found.regressions) == (kind == "slower")
    if kind:
        assert found.changes[0].factor == pytest.approx(new[1] / old[1])
    assert (found.num_compared, found.num_missing, found.num_added) == (1, 0, 0)


def test_threshold():
    old = [row(measured=ratio(0.99, 1.0, 1.01))]
    new = [row(measured=ratio(1.04, 1.05, 1.06))]
    assert len(compare(old, new, threshold=0.04).regressions) == 1
    assert compare(old, new, threshold=0.06).changes == ()


def test_a_slower_machine_is_no_regression():
    old = [row(DENSE_LAYER, seconds=1.0), row(measured=ratio(0.5, 0.5, 0.5))]
    slow = ratio(0.5, 0.5, 0.5, seconds=2.0)
    twice = measurement(2.0, ratio_to_dense_layer=(1.0, 1.0, 1.0))
    found = compare(old, [row(DENSE_LAYER, measured=twice), row(measured=slow)])
    assert found.changes == ()
    assert found.dense_factor == 2


def test_seconds_where_there_is_no_dense_layer():
    old = row(measured=measurement(1.0, ratio_to_dense_layer=None))
    new = row(measured=measurement(2.0, ratio_to_dense_layer=None))
    found = compare([old], [new])
    assert found.regressions[0].factor == 2
    device = measurement(2.0, ratio_to_dense_layer=None, clock="cupti")
    assert compare([old], [row(measured=device)]).changes == ()


@pytest.mark.parametrize(
    ("after", "kind", "reason"),
    [
        (
            {"measured": None, "unsupported": "too wide"},
            "no longer measured",
            "too wide",
        ),
        ({"measured": None, "failed": "boom"}, "no longer measured", "boom"),
        ({"error": 1.0, "seconds": 0.01}, "wrong", ""),
    ],
)
def test_what_no_longer_works(after, kind, reason):
    found = compare([row()], [row(**after)])
    (change,) = found.regressions
    assert (change.kind, change.reason) == (kind, reason)
    assert change.implementation == "bmm"


def test_what_never_worked_is_no_regression():
    broken = [row(error=1.0), row("refusing", measured=None, unsupported="no")]
    found = compare(broken, [row(error=1.0), row("refusing")])
    assert found.changes == ()
    assert found.num_compared == 1


def test_only_the_same_things_are_compared():
    old = [row("gone"), row(), row("latest", seconds=9.0), row("latest", seconds=0.1)]
    new = [row(work={"batch": 9}), row("latest"), row(configuration={"rows": 1})]
    found = compare(old, new)
    assert (found.num_compared, found.num_missing, found.num_added) == (1, 2, 2)
    assert found.changes == ()
    assert found.dense_factor is None


def test_order():
    old = [row(name, seconds=1.0) for name in "abcd"]
    new = [
        row("a", seconds=0.5),
        row("b", seconds=2.0),
        row("c", seconds=3.0),
        row("d", measured=None, failed="boom"),
    ]
    found = compare(old, new)
    assert [change.implementation for change in found.changes] == ["d", "c", "b", "a"]
