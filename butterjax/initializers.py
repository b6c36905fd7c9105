"""Random and structured factors for a chain."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, lecun_normal
from jax.typing import DTypeLike

from butterjax import array_checks, checks
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
      dtype: dtype of the factors, or its name ("bfloat16" or "bf16").
      initializer: an initialiser of `jax.nn.initializers` or `flax`, called once for
        each block with the shape (c, b), that of a dense kernel (in, out).
        `orthogonal()` and `butterjax.initializers.identity()` make orthogonal and
        identity chains where b = c.

    Returns:
      Arrays of shapes (a, b, c, d).

    Raises:
      TypeError: if an argument is of another kind (`chain` a list, say).
      ValueError: if the initialiser returns another shape than it is asked for.
    """
    key = array_checks.key("init", "key", key)
    array_checks.chain("init", "chain", chain)
    dtype = array_checks.stored_dtype("init", "dtype", dtype)
    initializer = lecun_normal() if initializer is None else initializer
    keys = jax.random.split(key, len(chain))
    return tuple(
        init_factor(initializer, one, pattern, dtype, caller="init", name="initializer")
        for one, pattern in zip(keys, chain, strict=True)
    )


def init_factor(
    initializer: Initializer,
    key: jax.Array,
    pattern: Pattern,
    dtype: DTypeLike,
    *,
    caller: str = "Butterfly",
    name: str = "kernel_init",
) -> jax.Array:
    """One factor, its a·d blocks drawn independently by `initializer`.

    If the initialiser wraps its result in a pytree, as `flax.linen.with_partitioning`
    does, so is the factor.

    Args:
      initializer: called with (key, (c, b), dtype).
      key: a PRNG key.
      pattern: the factor's pattern.
      dtype: dtype of the factor.
      caller: who asks, for messages.
      name: of the argument that the initialiser is, for messages.

    Returns:
      Array of shape (a, b, c, d).

    Raises:
      TypeError: if the initialiser is no function.
      ValueError: if it returns anything but one array of the shape (c, b).
    """
    a, b, c, d = pattern
    draw = checked(initializer, caller=caller, name=name)
    keys = jax.random.split(key, a * d)
    blocks = jax.vmap(lambda one: draw(one, (c, b), dtype))(keys)
    return jax.tree.map(
        lambda leaf: leaf.reshape(a, d, c, b).transpose(0, 3, 2, 1), blocks
    )


def checked(
    initializer: Initializer,
    *,
    caller: str,
    name: str,
    content: Callable[[Any], Any] = jax.tree.leaves,
) -> Callable[..., Any]:
    """The initialiser, which raises ValueError where it returns another shape.

    Args:
      initializer: called with (key, shape, dtype).
      caller: who asks, for messages.
      name: of the argument that the initialiser is, for messages.
      content: what is in the box that the initialiser wraps its result in, as a list.

    Raises:
      TypeError: if the initialiser is no function.
    """
    checks.function(caller, name, initializer)

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        made = initializer(key, shape, dtype)
        if [getattr(leaf, "shape", None) for leaf in content(made)] != [shape]:
            raise ValueError(
                f"{caller}: {name} must return an array of the shape it is called "
                f"with, {shape}, got {checks.shown(made)}"
            )
        return made

    return draw


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
        if len(shape) != 2:
            raise ValueError(
                "identity: shape must be that of a matrix, (rows, columns), got "
                f"{shape}"
            )
        rows, columns = shape
        return jnp.eye(rows, columns, dtype=dtype)

    return fill
