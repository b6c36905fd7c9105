"""`recommend` against choices worked out by hand."""

import hypothesis
import numpy as np
import pytest

import butterjax as bj
from butterjax import sizes
from butterjax.planning import DENSE_LAYER, Timing
from tests import reference, strategies

MONARCH = bj.Chain.monarch(64, 64)
RADIX2 = bj.Chain.square_dyadic(64)
SPARSE = bj.Chain([(4, 16, 16, 1)])
CPU = "Some CPU, 2 threads"
LAYER = {"batch": 512, "dtype": "float32", "device": CPU}


def timing(chain, implementation, ratio, seconds=None, **other):
    low, high = other.pop("spread", (ratio, ratio))
    fields = {
        "device": CPU,
        "chain": chain,
        "batch": 512,
        "dtype": "float32",
        "axis": -1,
        "backward": False,
        "implementation": implementation,
        "seconds": 1e-3 * ratio if seconds is None else seconds,
        "ratio": (low, ratio, high),
        "peak_bytes": 1000,
    }
    return Timing(**fields | other)


DENSE = timing(MONARCH, DENSE_LAYER, 1.0)


def test_the_lowest_measured_ratio_wins():
    found = bj.planning.recommend(
        64,
        64,
        **LAYER,
        timings=[
            DENSE,
            timing(MONARCH, "bmm", 0.5),
            # Fewer seconds, but beside a dense layer that took even fewer.
            timing(RADIX2, "einsum", 0.7, seconds=1e-6),
            timing(RADIX2, "elementwise", 0.4),
            timing(RADIX2, "elementwise", 0.45),
        ],
    )
    assert found.is_measured
    assert found.rates is None
    assert (found.best.chain, found.best.implementation) == (RADIX2, "elementwise")
    assert found.best.seconds == pytest.approx(0.4e-3)
    assert found.best.weight_bytes == 4 * 6 * 2 * 64
    assert found.dense.weight_bytes == 4 * 64 * 64
    ranked = [(o.implementation, o.ratio[1]) for o in found.options]
    assert ranked == [
        ("elementwise", 0.4),
        ("bmm", 0.5),
        ("einsum", 0.7),
        (DENSE_LAYER, 1.0),
    ]


@pytest.mark.parametrize(
    ("spread", "expected"),
    [((0.8, 0.95), "bmm"), ((0.8, 1.02), DENSE_LAYER), ((0.8, 1.0), DENSE_LAYER)],
)
def test_stay_with_dense_unless_all_but_the_slowest_quarter_wins(spread, expected):
    rows = [DENSE, timing(MONARCH, "bmm", 0.9, spread=spread)]
    found = bj.planning.recommend(64, 64, **LAYER, timings=rows)
    assert found.best.implementation == expected
    assert found.options[0].implementation == "bmm"


def test_a_matrix_with_zeros_is_no_replacement_unless_asked_for():
    rows = [DENSE, timing(MONARCH, "bmm", 0.5), timing(SPARSE, "bmm", 0.1)]
    found = bj.planning.recommend(64, 64, **LAYER, timings=rows)
    assert found.best.chain == MONARCH
    found = bj.planning.recommend(64, 64, **LAYER, chains=[SPARSE], timings=rows)
    assert found.best.chain == SPARSE


@pytest.mark.parametrize(
    "other",
    [
        {"batch": 511},
        {"dtype": "bfloat16"},
        {"axis": 0},
        {"backward": True},
        {"device": "Other CPU, 2 threads"},
        {"chain": bj.Chain.monarch(64, 128)},
    ],
)
def test_other_rows_do_not_count(other):
    chain = other.pop("chain", MONARCH)
    rows = [timing(chain, DENSE_LAYER, 1.0, **other), timing(chain, "bmm", 2, **other)]
    found = bj.planning.recommend(64, 64, **LAYER, timings=rows)
    assert not found.is_measured


def test_the_dense_layer_is_that_beside_the_best_chain():
    rows = [
        timing(MONARCH, DENSE_LAYER, 1.0, seconds=1.0),
        timing(MONARCH, "bmm", 0.9, seconds=0.9),
        timing(RADIX2, DENSE_LAYER, 1.0, seconds=3.0),
        timing(RADIX2, "bmm", 0.5, seconds=1.5),
    ]
    found = bj.planning.recommend(64, 64, **LAYER, timings=rows)
    assert (found.best.seconds, found.dense.seconds) == (1.5, 3.0)
    assert len(found.options) == 3


def test_a_ratio_tells_what_the_dense_layer_took():
    rows = [timing(MONARCH, "bmm", 0.5, seconds=3.0)]
    found = bj.planning.recommend(64, 64, **LAYER, timings=rows)
    assert found.dense.seconds == 6.0
    assert found.dense.peak_bytes is None
    assert found.options == (found.best, found.dense)


def test_model_on_an_h200():
    found = bj.planning.recommend(
        4096, 4096, batch=25088, dtype="bfloat16", device="NVIDIA H200"
    )
    assert not found.is_measured
    assert found.rates.source == "assumed"
    # FLOPs at 828e12 a second, and a launch.
    dense = 2 * 25088 * 4096**2 / 828e12 + 3e-6
    assert found.dense.seconds == pytest.approx(dense, rel=1e-6)
    assert found.best.chain == bj.Chain.monarch(4096, 4096)
    assert found.best.weight_bytes == 2 * 2 * 64 * 4096
    lengths = {option.num_factors for option in found.options}
    assert lengths == {0, 2, 3, 4, 12}
    assert [o.seconds for o in found.options] == sorted(
        o.seconds for o in found.options
    )


def test_model_takes_the_kernel_where_it_fits():
    layer = {"batch": 25088, "dtype": "bfloat16", "device": "NVIDIA H200"}
    found = bj.planning.recommend(1024, 1024, **layer)
    assert found.best.implementation == "pallas_chain"
    # x and y, 2·25088·1024 numbers of 2 bytes, and the weights, at 4.29e12 bytes/s.
    assert found.best.seconds == pytest.approx(
        2 * (2 * 25088 * 1024 + 2 * 32 * 1024) / 4.29e12 + 3e-6, rel=1e-6
    )
    narrow = bj.planning.recommend(1024, 1024, **layer | {"dtype": "float16"})
    assert narrow.best.implementation == "pallas_chain"
    cpu = bj.planning.recommend(1024, 1024, **layer | {"device": "cpu"})
    assert "pallas_chain" not in {o.implementation for o in cpu.options}


def test_small_layers_stay_dense():
    found = bj.planning.recommend(
        64, 64, batch=8192, dtype="bfloat16", device="NVIDIA H200"
    )
    assert found.best is found.dense
    prime = bj.planning.recommend(7, 7, batch=8, dtype="float32", device="cpu")
    assert prime.best is prime.dense
    assert prime.options == (prime.dense,)


def test_rates_that_rows_have_shown():
    rates = bj.planning.rates_of(CPU)
    rows = [
        # 2·512·64² FLOPs in 1e-3 s, and in half the time.
        timing(MONARCH, DENSE_LAYER, 1.0, seconds=1e-3),
        timing(MONARCH, DENSE_LAYER, 1.0, seconds=5e-4),
        # 4·(512·128 + 1024) bytes in 1e-5 s.
        timing(MONARCH, "bmm", 0.1, seconds=1e-5),
        timing(MONARCH, "bmm", 0.1, seconds=1e-9, backward=True),
    ]
    seen = bj.planning.calibrate(rates, rows)
    assert seen.matmul_rates["float32"] == pytest.approx(2 * 512 * 64**2 / 5e-4)
    assert seen.matmul_rates["bfloat16"] == rates.matmul_rates["bfloat16"]
    assert seen.copy_rate == pytest.approx(4 * (512 * 128 + 1024) / 1e-5)
    assert seen.source == "the highest seen in 3 measured calls"
    assert bj.planning.calibrate(rates, rows[3:]) == rates
    found = bj.planning.recommend(64, 64, **LAYER | {"batch": 9}, timings=rows)
    assert found.rates == seen


def test_candidates():
    found = bj.planning.candidates(1024, 4096)
    assert [len(chain) for chain in found] == [2, 3, 4]
    assert bj.planning.candidates(16, 16)[-1] == bj.Chain.square_dyadic(16)
    assert len(bj.planning.candidates(16, 16)) == 3  # Radix-2 has 4 factors.
    assert bj.planning.candidates(7, 16) == ()


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(strategies.chains())
def test_replaces_dense(chain):
    matrix = reference.dense([np.ones(shape) for shape in chain.shapes])
    expected = bool(matrix.all()) and chain.num_weights < matrix.size
    assert bj.planning.replaces_dense(chain) == expected


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([(1, 128, 128, 3), (6, 64, 256, 1)], True),
        ([(1, 6, 6, 2), (4, 3, 6, 1)], True),
        ([(1, 4, 4, 3), (6, 2, 4, 1)], False),
    ],
)
def test_replaces_dense_where_factors_do_not_chain(patterns, expected):
    chain = bj.Chain(patterns)
    assert not chain.is_chainable
    matrix = np.ones((1, 1))
    for pattern in chain:
        support = pattern.support().astype(float)
        matrix = support if matrix.size == 1 else np.minimum(matrix @ support, 1)
    assert bool(matrix.all()) == expected
    assert bj.planning.replaces_dense(chain) == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"dtype": "complex64"}, TypeError, "real floating type, got complex64"),
        ({"axis": 1}, ValueError, "axis must be 0 or -1, got 1"),
        ({"device": "Abacus"}, ValueError, "no rates are known for device='Abacus'"),
        (
            {"chains": [RADIX2, bj.Chain.monarch(16, 64)]},
            ValueError,
            r"chains\[1\] must map 64 to 64 features, got 16 -> 64",
        ),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        bj.planning.recommend(64, 64, **LAYER | change)


def test_source_says_whether_times_were_measured():
    rows = [DENSE, timing(MONARCH, "bmm", 0.5)]
    found = bj.planning.recommend(64, 64, **LAYER, timings=rows)
    assert found.source == ("Times were measured on this device, beside a dense layer.")
    unmeasured = bj.planning.recommend(64, 64, **LAYER)
    assert "lower bounds of a model whose rates are assumed" in unmeasured.source
    assert "not predictions" in unmeasured.source
    seen = bj.planning.recommend(64, 64, **LAYER | {"batch": 9}, timings=rows)
    assert "rates are the highest seen in 2 measured calls" in seen.source


def test_sizes_with_many_divisors(monkeypatch):
    monkeypatch.setattr(sizes, "_MOST_STEPS", 5_000)
    sizes._best_split.cache_clear()
    found = bj.planning.recommend(30720, 122880, batch=8, dtype="bf16", device="cpu")
    assert {option.num_factors for option in found.options} == {0, 2, 3, 4}
