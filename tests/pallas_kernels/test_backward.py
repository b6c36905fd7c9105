"""The backward kernel, in the interpreter: gradients against float64, and races."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels import backward_plan
from pallas_kernels.backward import Config, backward, default_config
from pallas_kernels.backward_config import count
from tests import gpu_interpreter, reference

ONE_CTA = Config(
    cluster=1, rows=32, warpgroups=2, x_stages=1, dy_stages=1, out_stages=1, ctas=1
)
TWO = Config(
    cluster=2, rows=32, warpgroups=2, x_stages=2, dy_stages=2, out_stages=2, ctas=2
)
TWO_CLUSTERS = Config(
    cluster=2, rows=32, warpgroups=1, x_stages=2, dy_stages=1, out_stages=1, ctas=4
)
FOUR = Config(
    cluster=4, rows=64, warpgroups=1, x_stages=1, dy_stages=1, out_stages=1, ctas=4
)
SMALL = Config(
    cluster=2, rows=32, warpgroups=2, x_stages=1, dy_stages=1, out_stages=1, ctas=2
)
MONARCH = [(1, 32, 16, 16), (16, 16, 32, 1)]
RUNS = [(1, 64, 16, 16), (8, 32, 32, 1)]  # A block makes two rows of h.
EMBEDDED = [(1, 16, 16, 32), (16, 32, 32, 1)]  # 16 × 16 blocks have no tile.

both_layouts = pytest.mark.parametrize("axis", [-1, 0])


def check(shapes, *, batch, axis, config, dtype="bfloat16", bias=None, activation=None):
    """Compares all gradients with float64 on random numbers."""
    patterns = bj.Chain(shapes)
    x = reference.draw((batch, patterns.in_features), dtype, seed=1)
    dy = reference.draw((batch, patterns.out_features), dtype, seed=2)
    factors = reference.draw_factors(patterns, dtype, seed=3)

    def gradients(x, factors, dy, bias):
        options = {"axis": axis, "activation": activation, "config": config}
        return backward(x, factors, dy, bias=bias, **options)

    def turned(array):
        return array if axis == -1 else array.T

    dx, dfactors, dbias = gpu_interpreter.run(
        gradients, turned(x), factors, turned(dy), bias
    )
    z = reference.apply(x, factors) + (0 if bias is None else reference.wide(bias))
    dz = reference.wide(dy) * slope(z, activation)
    expected = reference.gradients(x, factors, dz)
    bound = tolerance(dtype, len(shapes))
    assert turned(dx).dtype == dtype
    assert reference.relative_error(turned(dx), expected[0]) < bound
    for found, true, factor in zip(dfactors, expected[1], factors, strict=True):
        assert (found.shape, found.dtype) == (factor.shape, factor.dtype)
        assert reference.relative_error(found, true) < bound
    if bias is None:
        assert dbias is None
    else:
        assert dbias.dtype == bias.dtype
        assert reference.relative_error(dbias, dz.sum(0)) < bound


def slope(z, activation):
    """The activation's derivative, by differences."""
    step = 1e-6
    up, down = (reference.activate(z + s, activation) for s in (step, -step))
    return (up - down) / (2 * step)


@pytest.mark.parametrize(
    ("config", "axis"),
    [(ONE_CTA, -1), (ONE_CTA, 0), (TWO, -1), (TWO, 0), (FOUR, -1)],
    ids=str,
)
def test_configurations_and_ragged_batches(config, axis):
    check(MONARCH, batch=104, axis=axis, config=config)


def test_clusters_add_up():
    check(MONARCH, batch=104, axis=0, config=TWO_CLUSTERS, activation="silu")


@pytest.mark.parametrize(("shapes", "axis"), [(RUNS, -1), (EMBEDDED, 0)], ids=str)
def test_patterns(shapes, axis):
    bias = reference.draw((bj.Chain(shapes).out_features,), "float32", seed=4)
    check(shapes, batch=40, axis=axis, config=SMALL, bias=bias)


def test_float16():
    check(MONARCH, batch=40, axis=0, config=ONE_CTA, dtype="float16")


@pytest.mark.parametrize(("activation", "axis"), [("gelu", -1), ("silu", 0)])
def test_bias_and_activation(activation, axis):
    bias = reference.draw((512,), "float32", seed=4)
    check(MONARCH, batch=40, axis=axis, config=TWO, bias=bias, activation=activation)


def test_relu():
    # Far from its kink, where rounding would decide.
    bias = np.where(np.arange(512) % 3, 8, -8).astype("float32")
    check(MONARCH, batch=40, axis=0, config=ONE_CTA, bias=bias, activation="relu")


def test_a_bias_of_16_bits_and_a_batch_below_a_tile():
    bias = reference.draw((512,), "bfloat16", seed=4)
    check(MONARCH, batch=3, axis=-1, config=ONE_CTA, bias=bias)


def test_the_same_bits_twice():
    patterns = bj.Chain(MONARCH)
    x = reference.draw((40, 512), "bfloat16", seed=1)
    factors = reference.draw_factors(patterns, "bfloat16", seed=3)
    function = functools.partial(backward, config=TWO_CLUSTERS)
    once, again = (gpu_interpreter.run(function, x, factors, x) for _ in range(2))
    for first, second in zip(*map(jax.tree.leaves, (once, again)), strict=True):
        np.testing.assert_array_equal(first, second)


@both_layouts
def test_empty_batch(axis):
    factors = reference.draw_factors(bj.Chain(MONARCH), "bfloat16")
    x = jnp.zeros((0, 512) if axis == -1 else (512, 0), "bfloat16")
    dx, dfactors, dbias = backward(x, factors, x, axis=axis)
    assert dx.shape == x.shape
    for found, factor in zip(dfactors, factors, strict=True):
        np.testing.assert_array_equal(found, np.zeros_like(factor))
    assert dbias is None


def arrays(shapes, *, batch=32, axis=-1, dtype="bfloat16", dy_dtype=None):
    """Shapes and dtypes of a call, without numbers."""
    n_in, n_out = bj.Chain(shapes).in_features, bj.Chain(shapes).out_features

    def array(features, dtype):
        shape = (batch, features) if axis == -1 else (features, batch)
        return jax.ShapeDtypeStruct(shape, dtype)

    factors = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    return array(n_in, dtype), factors, array(n_out, dy_dtype or dtype)


@pytest.mark.parametrize(
    ("call", "options", "reason"),
    [
        (arrays(MONARCH, dtype="float32"), {}, "bfloat16 or float16, got float32"),
        (arrays(MONARCH, dy_dtype="float32"), {}, "dy has dtype float32, but x has bf"),
        (arrays([(2, 16, 16, 1)]), {}, "two chainable factors .* got"),
        (arrays([(16, 16, 16, 1), (1, 16, 16, 16)]), {}, "two chainable factors"),
        (arrays(MONARCH, batch=12, axis=0), {"axis": 0}, "16 bytes.* of x .* has 24"),
        (arrays(MONARCH), {"config": Config(cluster=16)}, "not shared out to 16 CTAs"),
        (
            arrays([(1, 128, 128, 128), (128, 128, 128, 1)]),
            {"config": Config(cluster=2)},
            "bytes of shared memory",
        ),
    ],
)
def test_what_is_unsupported_is_refused_while_tracing(call, options, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(backward, **options), *call)


@both_layouts
@pytest.mark.parametrize(
    ("in_features", "out_features"),
    [(512, 512), (1024, 1024), (2048, 2048), (4096, 4096), (1024, 4096)],
)
def test_default_configuration_fits(in_features, out_features, axis):
    shapes = bj.Chain.monarch(in_features, out_features).shapes
    config = default_config(shapes, "bfloat16", 25_088, axis=axis)
    made = backward_plan.plan(shapes, config, axis)
    assert made.smem_bytes <= 232_448
    # All sums of a cluster are in its registers.
    weights = sum(a * b * c * d for a, b, c, d in shapes)
    threads = config.cluster * config.warpgroups * 128
    assert made.sums * threads >= weights


def test_sums_that_no_cluster_holds_are_refused():
    shapes = bj.Chain.monarch(8192, 8192).shapes
    with pytest.raises(NotImplementedError, match="no configuration takes"):
        default_config(shapes, "bfloat16", 25_088)


def test_counted_bytes():
    """By hand, for n = 1024 = 32·32 over four CTAs, features first."""
    shapes = bj.Chain.monarch(1024, 1024).shapes
    config = Config(cluster=4, rows=64, warpgroups=4, x_stages=1)
    traffic = count(backward_plan.plan(shapes, config, 0))
    assert traffic.hbm == 3 * 2 * 1024
    assert traffic.peers == 2 * 2 * 1024 * 3 / 4  # h and its gradient.
    # A (64 × 32)(32 × 32) product is read by four warps along its rows, each its own
    # rows and all of the weights; a (32 × 64)(64 × 32) one by two by two warps.
    applied = 2 * (32 * (64 * 1 + 32 * 4) + 64 * 32)
    summed = 2 * 64 * (32 * 2 + 32 * 2)
    products = 32 * (3 * applied + 2 * summed) / 64
    assert traffic.shared == 3 * 2 * 1024 + 2 * 4 * 1024 + products
    assert traffic.once == 2 * 4 * 2 * 32**3


def test_a_dy_that_does_not_fit_is_refused():
    x, factors, _ = arrays(MONARCH)
    dy = jax.ShapeDtypeStruct((32, 256), "bfloat16")
    with pytest.raises(ValueError, match=r"shape of the result, \(32, 512\), got"):
        jax.eval_shape(backward, x, factors, dy)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"cluster": 3}, "cluster must be 1, 2, 4, 8 or 16, got 3"),
        ({"rows": 48}, "rows must be 16, 32 or 64, got 48"),
        ({"x_stages": 0}, "x_stages must be positive, got 0"),
        ({"warpgroups": 9}, "warpgroups must be at most 8, got 9"),
        ({"cluster": 8, "ctas": 4}, "ctas must be at least those of a cluster"),
    ],
)
def test_configurations_that_cannot_be(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Config(**fields)


def test_vmap_over_vectors_and_factors():
    patterns = bj.Chain(MONARCH)
    xs, dys = (reference.draw((2, 32, 512), "bfloat16", seed) for seed in (1, 2))
    factors = [reference.draw_factors(patterns, "bfloat16", seed) for seed in (3, 4)]
    stacked = tuple(np.stack(pair) for pair in zip(*factors, strict=True))
    function = jax.vmap(functools.partial(backward, config=SMALL))
    dxs, dfactors, _ = gpu_interpreter.run(function, xs, stacked, dys)
    for at in range(2):
        dx, dws = reference.gradients(xs[at], factors[at], dys[at])
        found = [dxs[at], *(d[at] for d in dfactors)]
        for one, expected in zip(found, [dx, *dws], strict=True):
            assert reference.relative_error(one, expected) < tolerance("bfloat16", 2)
