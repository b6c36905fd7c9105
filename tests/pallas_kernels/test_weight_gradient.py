"""The kernel for weight gradients, in the interpreter: float64 values, and races."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.weight_gradient.api import (
    Config,
    weight_gradient,
)
from tests import gpu_interpreter, reference


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


@pytest.mark.parametrize(
    ("shape", "config", "batch"),
    [
        # Lines of two features; a last step that is not full; a warp of two tiles.
        ((1, 32, 32, 32), Config(32, 32, 32, shares=1), 104),
        # Of four: four warps by two groups, and outputs, inputs or vectors.
        ((2, 32, 16, 16), Config(16, 32, 16, shares=2, stages=1), 72),
        ((1, 16, 32, 16), Config(16, 16, 32, shares=1, stages=3), 40),
        ((2, 16, 16, 16), Config(16, 16, 16, shares=2), 200),
        # Of eight.
        ((1, 32, 32, 8), Config(8, 32, 32, shares=1), 72),
        ((1, 16, 16, 8), Config(8, 16, 16, shares=1, stages=1), 100),
        # Rows of 64, 32 and 16 neighbours, and of 8 without a swizzle.
        ((1, 16, 16, 64), Config(64, 16, 16, shares=1), 72),
        ((1, 32, 16, 64), Config(32, 32, 16, shares=1), 40),
        ((1, 16, 32, 48), Config(16, 16, 32, shares=1), 24),
        ((1, 64, 16, 24), Config(8, 64, 16, shares=1), 24),
        # Tiles that end beyond the features, in three warpgroups and several CTAs.
        ((1, 48, 48, 16), Config(16, 48, 32, shares=1), 24),
    ],
)
def test_is_the_gradient(shape, config, batch):
    check(shape, config, batch=batch)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((1, 16, 32, 32), Config(32, 16, 16, shares=1, cluster=(1, 2))),
        ((1, 32, 16, 64), Config(64, 16, 16, shares=1, cluster=(2, 1))),
        ((1, 48, 32, 16), Config(16, 32, 16, shares=1, cluster=(2, 2))),
    ],
)
def test_clusters_share_what_they_read(shape, config):
    check(shape, config, batch=104)


def test_float16():
    check((1, 32, 16, 32), Config(32, 32, 16, shares=2), batch=40, dtype="float16")


def test_default_configuration():
    check((1, 32, 32, 32), None, batch=2000)
