import functools
import time
import types

import jax
import jax.numpy as jnp
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
        min_rounds=20,
    )
    assert samples["slow"].seconds == pytest.approx([0.3] * 20)
    assert samples["fast"].quartiles() == pytest.approx((0.1, 0.1, 0.1))
    ratios = samples["slow"].ratio_to(samples["fast"])
    assert ratios == pytest.approx((3, 3, 3))


def test_calls_are_interleaved_in_random_order(clock):
    functions = {name: clock.costing(name, 1.0) for name in "abc"}
    measure.interleave(functions, time_limit=1000.0, min_rounds=30)
    assert clock.calls[:3] == ["a", "b", "c"]  # Warm-up.
    rounds = [tuple(clock.calls[i : i + 3]) for i in range(3, len(clock.calls), 3)]
    assert len(rounds) == 30
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) == 6


def test_a_slow_function_sits_out_and_the_others_go_on(clock):
    noisy = iter([0.05, 0.15] * 100)
    samples = measure.interleave(
        {"slow": clock.costing("slow", 10.0), "fast": clock.costing("fast", noisy)},
        time_limit=2.05,
        min_rounds=3,
        max_rounds=50,
    )
    assert len(samples["slow"].seconds) == 3
    assert len(samples["fast"].seconds) == 11


def test_rounds_end_when_nothing_is_noisy(clock):
    # Quartiles 0.8 and 1.2 after five rounds, then ever closer to one.
    settling = iter([1.0, 0.8, 1.2, 0.8, 1.2, 1.0] + [1.0] * 100)
    samples = measure.interleave(
        {"calm": clock.costing("calm", 1.0), "settling": clock.costing("s", settling)},
        time_limit=1000.0,
        max_rounds=50,
    )
    assert 5 < len(samples["calm"].seconds) == len(samples["settling"].seconds) < 20
    assert not samples["settling"].is_noisy


def test_noise_that_stays_is_marked(clock):
    noisy = iter([1.0, 2.0] * 100)
    samples = measure.interleave(
        {"calm": clock.costing("calm", 1.0), "noisy": clock.costing("noisy", noisy)},
        time_limit=1000.0,
        max_rounds=20,
    )
    assert len(samples["noisy"].seconds) == 20
    assert samples["noisy"].is_noisy
    assert not samples["calm"].is_noisy


def test_ratio_is_taken_round_by_round(clock):
    # The machine slows down tenfold half-way: the ratio does not notice.
    speeds = [1.0] * 5 + [10.0] * 6
    samples = measure.interleave(
        {
            "one": clock.costing("one", iter([2 * s for s in speeds])),
            "two": clock.costing("two", iter(speeds)),
        },
        time_limit=1000.0,
        min_rounds=10,
        max_rounds=10,
    )
    assert samples["one"].ratio_to(samples["two"]) == pytest.approx((2, 2, 2))
    low, _, high = samples["one"].quartiles()
    assert high / low > 5


def test_a_sleep_of_known_length():
    def sleeping(seconds):
        def sleep(x):
            time.sleep(seconds)
            return x

        kind = jax.ShapeDtypeStruct((), "float32")
        function = jax.jit(lambda x: jax.pure_callback(sleep, kind, x))
        return functools.partial(function, jnp.float32(1))

    samples = measure.interleave(
        {"short": sleeping(0.02), "long": sleeping(0.06)},
        time_limit=1.0,
        clock=measure.WallClock(),
    )
    assert samples["short"].quartiles()[1] == pytest.approx(0.02, rel=0.5)
    assert samples["long"].ratio_to(samples["short"])[1] == pytest.approx(3, rel=0.3)


def test_cpu_is_timed_by_the_wall():
    assert measure.device_clock().name == "wall"


class FakeCupti:
    """The part of Mosaic GPU's C++ that talks to CUPTI; logs like one that works."""

    def __init__(self):
        self.log = None
        self.finalized = []

    def _cupti_init(self):
        self.log = []

    def _cupti_get_timings(self, finalize):
        self.finalized.append(finalize)
        found, self.log = self.log, None
        return found

    def run(self, *kernels):
        if self.log is not None:
            self.log += kernels


@pytest.fixture
def cupti(monkeypatch):
    fake = FakeCupti()
    library = types.SimpleNamespace(_mosaic_gpu_ext=fake)
    monkeypatch.setattr(measure.profiler, "mosaic_gpu_lib", library)
    return fake


def test_device_time_is_that_of_the_kernels(cupti):
    def function():
        cupti.run(("gemm", 2.0), ("loop_transpose_fusion", 1.0))  # milliseconds
        return jnp.zeros(3)

    samples = measure.interleave(
        {"f": function}, time_limit=1.0, clock=measure.CuptiClock()
    )
    assert samples["f"].quartiles() == pytest.approx((3e-3,) * 3)
    assert samples["f"].seconds_in({"loop_transpose_fusion"}) == pytest.approx(1e-3)
    assert samples["f"].seconds_in(()) == 0
    assert len(samples["f"].seconds) == len(cupti.finalized) == 5
    assert not any(cupti.finalized)


def test_no_kernel_is_an_error_not_zero(cupti):
    with pytest.raises(RuntimeError, match="no kernel"):
        measure.CuptiClock().time(lambda: jnp.zeros(3))


def test_build_tells_time_and_memory():
    def sleepy(x):
        time.sleep(0.1)  # While it is traced.
        return x @ x

    built = measure.build(sleepy, (jnp.ones((256, 256)),))
    assert 0.1 < built.seconds < 10
    assert 2 * 4 * 256**2 <= built.peak_bytes < 10 * 4 * 256**2
    assert float(built.compiled(jnp.ones((256, 256)))[0, 0]) == 256


def test_rotation_goes_through_copies_larger_than_the_cache():
    x, w = jnp.arange(1000.0), jnp.arange(24.0)
    rotation = measure.Rotation((x, {"w": w}), cache_bytes=10_000, max_copies=99)
    assert rotation.num_bytes > 10_000
    seen = []

    def function(x, tree):
        seen.append((x.unsafe_buffer_pointer(), tree["w"].unsafe_buffer_pointer()))
        assert (x == jnp.arange(1000.0)).all()
        assert (tree["w"] == w).all()

    one, two = rotation.calling(function), rotation.calling(function)
    num_copies = rotation.num_bytes // (4 * 1024)
    for _ in range(num_copies):
        one()
        two()
    assert len(set(seen)) == len({x for x, _ in seen}) == num_copies
    assert seen[:num_copies] == seen[num_copies:]


@pytest.mark.parametrize(
    ("cache_bytes", "max_copies", "num_copies"),
    [(0, 99, 1), (4000, 99, 1), (4001, 99, 3), (10**6, 7, 7), (10**6, 0, 1)],
)
def test_rotation_makes_no_more_copies_than_it_needs(
    cache_bytes, max_copies, num_copies
):
    rotation = measure.Rotation(
        (jnp.zeros(1000),), cache_bytes=cache_bytes, max_copies=max_copies
    )
    assert rotation.num_bytes == num_copies * 4000


def test_device_peak(monkeypatch):
    stats = {"bytes_in_use": 100, "peak_bytes_in_use": 500}
    device = types.SimpleNamespace(memory_stats=lambda: dict(stats))
    monkeypatch.setattr(jax, "devices", lambda: [device])

    def function(peak):
        stats["peak_bytes_in_use"] = max(peak, stats["peak_bytes_in_use"])

    peaks = [
        measure.device_peak_bytes(functools.partial(function, peak))
        for peak in (400, 700, 700)
    ]
    assert peaks == [None, 600, None]
    device.memory_stats = lambda: None
    assert measure.device_peak_bytes(lambda: None) is None
