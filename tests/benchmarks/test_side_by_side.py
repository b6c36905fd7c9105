import contextlib
import dataclasses
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from benchmarks import layers, measure, side_by_side, workloads
from tests.benchmarks.test_results import ENVIRONMENT, WORKLOAD

X = jnp.arange(1.0, 513.0).reshape(2, 256)


def outcomes(**functions):
    candidates = {
        name: side_by_side.Candidate(function, (X,), [2 * np.asarray(X, float)])
        for name, function in functions.items()
    }
    return side_by_side.measure_candidates(
        candidates, reference="good", time_limit=0.0, seed=0, cache_bytes=10_000
    )


def refuse(x):
    raise NotImplementedError("not this")


def crash(x):
    raise TypeError("nonsense " * 1000)


def test_each_candidate_has_an_outcome_of_its_own():
    found = outcomes(
        refused=refuse,
        good=lambda x: 2 * x,
        wrong=lambda x: (2 * x).at[0, 0].set(100.0),
        nan=lambda x: jnp.log(-x),
        crashed=crash,
    )
    assert list(found) == ["refused", "good", "wrong", "nan", "crashed"]
    assert found["refused"] == side_by_side.Outcome(unsupported="not this")
    assert found["crashed"].failed.startswith("TypeError: nonsense")
    assert len(found["crashed"].failed) < 600
    assert found["good"].measured.error == 0
    exact = 2 * np.asarray(X, float)
    assert found["wrong"].measured.error == pytest.approx(98 / np.linalg.norm(exact))
    assert found["nan"].measured.error is None
    good = found["good"].measured
    assert good.ratio_to_dense_layer == (1, 1, 1)
    assert good.num_samples == 5
    assert good.clock == "wall"
    assert good.rotated_bytes >= 10_000
    assert good.peak_bytes >= 2 * X.nbytes
    assert good.joules is good.moved_seconds is good.device_peak_bytes is None


def test_without_the_reference_there_is_no_ratio():
    found = outcomes(good=crash, other=lambda x: 2 * x)
    assert found["other"].measured.ratio_to_dense_layer is None


def test_none_may_run():
    found = outcomes(good=refuse)
    assert found == {"good": side_by_side.Outcome(unsupported="not this")}


def test_transposes_are_counted():
    assert outcomes(good=lambda x: 2 * x)["good"].measured.moved_bytes == 0
    candidate = side_by_side.Candidate(lambda x: x.T, (X,), [np.asarray(X, float).T])
    (outcome,) = side_by_side.measure_candidates(
        {"t": candidate}, reference=None, time_limit=0.0, seed=0, cache_bytes=None
    ).values()
    assert outcome.measured.moved_bytes == X.nbytes
    assert outcome.measured.written_bytes == X.nbytes


class DeviceClock:
    """As CUPTI on a device where a transpose takes two thirds of the time."""

    name = "cupti"

    def time(self, function):
        function()
        kernels = (("transpose_1", 2e-3), ("gemm", 1e-3))
        return measure.Timing(3e-3, kernels)


def test_device_time_of_transposes(monkeypatch):
    monkeypatch.setattr(
        side_by_side.hlo, "moving_kernels", lambda launches: {"transpose_1"}
    )
    candidate = side_by_side.Candidate(lambda x: x.T, (X,), [np.asarray(X, float).T])
    (outcome,) = side_by_side.measure_candidates(
        {"t": candidate},
        reference=None,
        time_limit=0.0,
        seed=0,
        cache_bytes=None,
        clock=DeviceClock(),
    ).values()
    assert outcome.measured.clock == "cupti"
    assert outcome.measured.seconds[1] == pytest.approx(3e-3)
    assert outcome.measured.moved_seconds == pytest.approx(2e-3)


def test_energy_is_in_the_row_where_there_is_a_meter(monkeypatch):
    class Meter:
        def joules(self):
            return 100 * time.perf_counter()

    monkeypatch.setattr(
        side_by_side.energy, "meter", lambda: contextlib.nullcontext(Meter())
    )
    monkeypatch.setattr(side_by_side.energy, "joules_per_call", lambda f, meter: 0.25)
    assert outcomes(good=lambda x: 2 * x)["good"].measured.joules == 0.25


def test_rows_of_a_layer():
    rows = layers.rows(
        WORKLOAD,
        ["bmm", "elementwise"],
        environment=ENVIRONMENT,
        seed=0,
        time_limit=0.0,
    )
    names = [row.implementation for row in rows]
    assert names == [workloads.DENSE_LAYER, "bmm", "elementwise"]
    for row in rows:
        assert row.workload == WORKLOAD
        assert not row.is_wrong
        assert row.measured.error > 0
        assert row.flops == 8 * 2 * WORKLOAD.chain.num_weights
        assert row.floor_bytes == 4 * (8 * 32 + WORKLOAD.chain.num_weights)
        assert math.isfinite(row.median)
    default = bj.planning.choose(WORKLOAD.chain, batch=8, axis=-1)
    assert [row.implementation for row in rows if row.is_default] == [default]


def test_rows_without_a_dense_layer():
    # Its matrix would take a terabyte.
    wide = dataclasses.replace(WORKLOAD, chain=bj.Chain([(2**18, 2, 2, 1)]), batch=1)
    (row,) = layers.rows(
        wide,
        ["bmm"],
        environment=ENVIRONMENT,
        seed=0,
        time_limit=0.0,
        has_dense_layer=False,
    )
    assert row.implementation == "bmm"
    assert row.measured.ratio_to_dense_layer is None
