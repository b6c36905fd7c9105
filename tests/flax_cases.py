"""Sizes and chains that both Flax modules are tested with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import butterjax as bj
from tests import reference

# Of features in and out, and a chain.
SIZES = [
    (36, 64, None),
    (60, 100, None),
    (31, 47, None),  # Primes: padded and cut.
    (7, 1, None),  # One dense factor.
    (64, 64, bj.Chain.square_dyadic(64)),
    (50, 33, bj.Chain.square_dyadic(64)),
    (96, 20, bj.Chain([(1, 8, 8, 3), (6, 4, 16, 1)])),
]


def expected_output(x, factors, bias) -> np.ndarray:
    """Pads x, applies the matrix, cuts the result to the bias' size."""
    w = reference.dense(factors)
    rows = reference.wide(x).reshape(-1, x.shape[-1])
    y = rows @ w[: len(bias), : x.shape[-1]].T + reference.wide(bias)
    return y.reshape(*x.shape[:-1], len(bias))


def layers(in_features, out_features):
    """Each Flax module of these sizes and what it stands for, ready to be called."""
    x = jnp.ones((1, in_features))
    for module in (bj.linen.Butterfly, nn.Dense):
        layer = module(out_features)
        yield functools.partial(layer.apply, layer.init(jax.random.key(0), x))
    for module in (bj.nnx.Butterfly, nnx.Linear):
        yield module(in_features, out_features, rngs=nnx.Rngs(0))
