import pytest

from benchmarks import measure


class Clock:
    """A clock that only the functions under test move."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def costing(self, name, seconds):
        def function():
            self.calls.append(name)
            self.now += next(seconds) if hasattr(seconds, "__next__") else seconds

        return function


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


def test_known_costs(clock):
    samples = measure.interleave(
        {"slow": clock.costing("slow", 0.3), "fast": clock.costing("fast", 0.1)},
        time_limit=100.0,
        max_rounds=20,
    )
    assert samples["slow"].seconds == pytest.approx([0.3] * 20)
    assert samples["fast"].quartiles() == pytest.approx((0.1, 0.1, 0.1))
    ratios = samples["slow"].ratio_to(samples["fast"])
    assert ratios == pytest.approx((3, 3, 3))


def test_calls_are_interleaved_in_random_order(clock):
    functions = {name: clock.costing(name, 1.0) for name in "abc"}
    measure.interleave(functions, time_limit=1000.0, max_rounds=30)
    assert clock.calls[:3] == ["a", "b", "c"]  # Warm-up.
    rounds = [tuple(clock.calls[i : i + 3]) for i in range(3, len(clock.calls), 3)]
    assert len(rounds) == 30
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) == 6


def test_a_slow_function_sits_out_and_the_others_go_on(clock):
    samples = measure.interleave(
        {"slow": clock.costing("slow", 10.0), "fast": clock.costing("fast", 0.1)},
        time_limit=2.05,
        min_rounds=3,
        max_rounds=50,
    )
    assert len(samples["slow"].seconds) == 3
    assert len(samples["fast"].seconds) == 11


def test_ratio_is_taken_round_by_round(clock):
    # The machine slows down tenfold half-way: the ratio does not notice.
    speeds = [1.0] * 5 + [10.0] * 6
    samples = measure.interleave(
        {
            "one": clock.costing("one", iter([2 * s for s in speeds])),
            "two": clock.costing("two", iter(speeds)),
        },
        time_limit=1000.0,
        max_rounds=10,
    )
    assert samples["one"].ratio_to(samples["two"]) == pytest.approx((2, 2, 2))
    low, _, high = samples["one"].quartiles()
    assert high / low > 5
