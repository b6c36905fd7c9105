"""Random and structured factors for a chain."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jax.typing import DTypeLike

from butterjax.pattern import Chain, Pattern


def init(
    key: jax.Array,
    chain: Chain,
    dtype: DTypeLike = jnp.float32,
    *,
    initializer: Initializer | None = None,
) -> tuple[jax.Array, ...]:
    """Factors for a chain, each block drawn like the kernel of a small dense layer.

    The default, LeCun normal with a block's c columns as fan-in (σ = √(1/c)), keeps
    the variance: W x has unit variance for x of independent entries of unit variance,
    whatever the chain.

    Args:
      key: a PRNG key.
      chain: the patterns.
      dtype: dtype of the factors.
      initializer: an initialiser of `jax.nn.initializers` or `flax`, called once for
        each block with the shape (c, b), that of a dense kernel (in, out).
        `orthogonal()` and `butterjax.initializers.identity()` make orthogonal and
        identity chains where b = c.

    Returns:
      Arrays of shapes (a, b, c, d).
    """
    initializer = lecun_normal() if initializer is None else initializer
    keys = jax.random.split(key, len(chain))
    return tuple(
        init_factor(initializer, one, pattern, dtype)
        for one, pattern in zip(keys, chain, strict=True)
    )


def init_factor(
    initializer: Initializer, key: jax.Array, pattern: Pattern, dtype: DTypeLike
) -> jax.Array:
    """One factor, its a·d blocks drawn independently by `initializer`.

    If the initialiser wraps its result in a pytree, as `flax.linen.with_partitioning`
    does, so is the factor.

    Args:
      initializer: called with (key, (c, b), dtype).
      key: a PRNG key.
      pattern: the factor's pattern.
      dtype: dtype of the factor.

    Returns:
      Array of shape (a, b, c, d).
    """
    a, b, c, d = pattern
    keys = jax.random.split(key, a * d)
    blocks = jax.vmap(lambda one: initializer(one, (c, b), dtype))(keys)
    return jax.tree.map(
        lambda leaf: leaf.reshape(a, d, c, b).transpose(0, 3, 2, 1), blocks
    )


def identity() -> Initializer:
    """An initialiser of ones on the diagonal and zeros elsewhere.

    A chain of square blocks made of it is the identity.
    """

    def fill(
        key: jax.Array,
        shape: Any,
        dtype: Any = jnp.float32,
        out_sharding: Any = None,
    ) -> jax.Array:
        del key, out_sharding
        rows, columns = shape
        return jnp.eye(rows, columns, dtype=dtype)

    return fill
