"""The kernel for weight gradients, in the interpreter: float64 values, and races."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.common import chip
from pallas_kernels.weight_gradient import (
    Config,
    cost,
    default_config,
    weight_gradient,
)
from pallas_kernels.weight_gradient.plan import make_plan
from tests import alignment, gpu_interpreter, reference

BATCH = 25_088


def check(shape, config, *, batch, dtype="bfloat16"):
    """Compares the kernel with float64 on random numbers."""
    a, b, c, d = shape
    x = reference.draw((batch, a * c * d), dtype, seed=1)
    dy = reference.draw((batch, a * b * d), dtype, seed=2)
    function = functools.partial(weight_gradient, shape=shape, config=config)
    dw = gpu_interpreter.run(function, x, dy)
    assert dw.dtype == jnp.float32
    truth = np.einsum(
        "nijk,nilk->ijlk",
        np.asarray(dy, np.float64).reshape(batch, a, b, d),
        np.asarray(x, np.float64).reshape(batch, a, c, d),
    )
    assert dw.shape == truth.shape
    # Products are exact, and sums of float32.
    assert reference.relative_error(dw, truth) < 1e-6


def arguments(shape, *, batch=BATCH, dtype="bfloat16"):
    a, b, c, d = shape
    return [jax.ShapeDtypeStruct((batch, a * n * d), dtype) for n in (c, b)]


@pytest.mark.parametrize(
    ("shape", "config", "batch"),
    [
        # Lines of two features; the last step is not full; a warp has two tiles.
        ((1, 32, 32, 32), Config(32, 32, 32, shares=1), 104),
        # Of four, without a step ahead; warps side by side along outputs or vectors.
        ((2, 32, 16, 16), Config(16, 32, 16, shares=2, stages=1), 72),
        ((2, 16, 16, 16), Config(16, 16, 16, shares=2), 200),
        # Of eight.
        ((1, 32, 32, 8), Config(8, 32, 32, shares=1), 72),
        # Rows of 64 and 32 neighbours, and of 8 without a swizzle.
        ((1, 16, 16, 64), Config(64, 16, 16, shares=1), 72),
        ((1, 32, 16, 64), Config(32, 32, 16, shares=1), 40),
        ((1, 64, 16, 24), Config(8, 64, 16, shares=1), 24),
    ],
)
def test_is_the_gradient(shape, config, batch):
    check(shape, config, batch=batch)


def test_ctas_of_a_cluster_share_what_they_read():
    check((1, 16, 32, 32), Config(32, 16, 16, shares=1, cluster=(1, 2)), batch=104)


def test_tiles_end_beyond_the_features():
    config = Config(16, 32, 16, shares=1, cluster=(2, 2), stages=3)
    check((1, 48, 32, 16), config, batch=24, dtype="float16")


@pytest.mark.parametrize(
    "shape",
    [
        *[(1, 32, 32, 32), (1, 64, 64, 64), (1, 48, 48, 16), (1, 64, 32, 24)],
        *[(2, 32, 96, 96), (1, 16, 16, 1024)],
    ],
)
def test_default_configuration_fits(shape):
    config = default_config(shape, "bfloat16", BATCH)
    plan = make_plan(shape, BATCH, config)
    a, b, c, d = shape
    # All sums of a share have a place, in one wave of CTAs if they find room.
    assert config.outputs * plan.clusters[2] * config.cluster[0] >= b
    assert config.inputs * plan.clusters[3] * config.cluster[1] >= c
    assert cost.usage(plan).ctas <= chip.load().multiprocessors
    # x and dy come from device memory once.
    read = 2 * BATCH * a * d * (b + c)
    assert read / chip.load().hbm < cost.seconds(plan, chip.load())
    alignment.check_alignment(
        functools.partial(weight_gradient, shape=shape), *arguments(shape)
    )


def test_nothing_is_launched_for_an_empty_batch():
    shape = (1, 32, 32, 32)
    x, dy = (jnp.zeros(one.shape, one.dtype) for one in arguments(shape, batch=0))
    np.testing.assert_array_equal(weight_gradient(x, dy, shape), np.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "batch", "dtype", "axis", "why"),
    [
        ((32, 64, 64, 1), BATCH, "bfloat16", -1, "d = 1"),
        ((1, 32, 32, 32), BATCH, "bfloat16", 0, "axis=0"),
        ((1, 32, 32, 32), BATCH, "float32", -1, "float32"),
        ((1, 32, 24, 32), BATCH, "bfloat16", -1, "multiples of 16"),
        ((1, 32, 32, 12), BATCH, "bfloat16", -1, "of 8"),
        ((1, 32, 32, 32), 64, "bfloat16", -1, "expected to be as fast"),
        ((1, 1024, 1024, 8), BATCH, "bfloat16", -1, "expected to be as fast"),
    ],
)
def test_leaves_the_rest_to_xla(shape, batch, dtype, axis, why):
    with pytest.raises(NotImplementedError, match=why):
        default_config(shape, dtype, batch, axis=axis)
    x, dy = arguments(shape, batch=batch, dtype=dtype)
    if axis == 0:
        x, dy = (jax.ShapeDtypeStruct(one.shape[::-1], one.dtype) for one in (x, dy))
    with pytest.raises(NotImplementedError, match=why):
        jax.eval_shape(
            functools.partial(weight_gradient, shape=shape, axis=axis), x, dy
        )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Config(24, 32, 32, shares=1), "neighbours"),
        (Config(32, 24, 32, shares=1), "whole 16"),
        (Config(64, 64, 64, shares=1), "registers"),
        (Config(64, 32, 16, shares=1, stages=3), "shared memory"),
        (Config(64, 16, 16, shares=1, cluster=(1, 16)), "cluster"),
    ],
)
def test_configuration_that_does_not_fit(config, why):
    with pytest.raises(NotImplementedError, match=why):
        make_plan((1, 64, 64, 64), BATCH, config)


@pytest.mark.parametrize(
    ("x", "dy", "axis", "why"),
    [
        ((8, 512), (8, 512), 1, "axis must be"),
        ((8, 256), (8, 512), -1, "x must have"),
        ((8, 512), (8, 256), -1, "dy must have"),
        ((8, 512), (16, 512), -1, "batch"),
    ],
)
def test_sizes_that_do_not_fit(x, dy, axis, why):
    x, dy = jnp.zeros(x, jnp.bfloat16), jnp.zeros(dy, jnp.bfloat16)
    with pytest.raises(ValueError, match=why):
        weight_gradient(x, dy, (1, 32, 32, 16), axis=axis)
