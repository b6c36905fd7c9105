"""`elementwise`: c multiply-adds per output, no matrix product; for tiny blocks."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.implementations.registry import FeatureAxis, one_by_one, register
from butterjax.numerics import accumulation_dtype

# The terms are written out one by one, so the program grows with c.
MAX_BLOCK = 64


def _materialised(x: jax.Array) -> jax.Array:
    """x, kept out of its consumers: fused, each would compute it again."""
    barrier: Callable[[jax.Array], jax.Array] = jax.lax.optimization_barrier
    return barrier(x)


def _over_batch(factor: jax.Array, x: jax.Array) -> jax.Array:
    """The factor with axes of size one for the batch axes of x (a, c, d, *batch)."""
    return jnp.expand_dims(factor, tuple(range(4, 1 + x.ndim)))


@jax.custom_jvp
def _multiply_add(factor: jax.Array, x: jax.Array) -> jax.Array:
    """(a, b, c, d), (a, c, d, *batch) -> (a, b, d, *batch) as a sum of c terms."""
    weights = _over_batch(factor, x)
    terms = (weights[:, :, i] * x[:, None, i] for i in range(factor.shape[2]))
    return _materialised(functools.reduce(operator.add, terms))


@_multiply_add.defjvp
def _multiply_add_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The same sums as reductions: the transposes of sliced terms would be scattered one
    # by one. That of a stack are the slices of dy, summed in turn to dx: a reduction
    # over rows does not become vector instructions on a CPU if x has two batch axes.
    factor, x = primals
    factor_dot, x_dot = tangents
    weights = _over_batch(factor, x)
    if factor.shape[1] <= MAX_BLOCK:
        rows = [(weights[:, row] * x_dot).sum(1) for row in range(factor.shape[1])]
        from_x = jnp.stack(rows, 1)
    else:
        from_x = (weights * x_dot[:, None]).sum(2)
    from_factor = (_over_batch(factor_dot, x) * x[:, None]).sum(2)
    y_dot = _materialised(from_x) + from_factor
    return _multiply_add(factor, x), y_dot


@one_by_one
def _features_first(
    x: jax.Array,
    factor: jax.Array,
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """(a·c·d, *batch) -> (a·b·d, *batch)."""
    del axis, precision  # Each product is exact.
    a, b, c, d = factor.shape
    batch = x.shape[1:]
    accumulator = accumulation_dtype(x.dtype, preferred_element_type)
    blocks = x.astype(accumulator).reshape(a, c, d, *batch)
    y = _multiply_add(factor.astype(accumulator), blocks)
    return y.reshape(a * b * d, *batch).astype(preferred_element_type)


@register("elementwise")
def elementwise(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """Broadcast multiply-add with the batch innermost.

    With axis=-1 the whole chain runs between two transposes.

    Raises:
      NotImplementedError: for blocks of more than `MAX_BLOCK` columns.
    """
    widest = max(factor.shape[2] for factor in factors)
    if widest > MAX_BLOCK:
        raise NotImplementedError(
            f"implementation 'elementwise' writes out one term per column of a block: "
            f"at most {MAX_BLOCK}, got c = {widest}"
        )
    y = _features_first(
        jnp.moveaxis(x, axis, 0),
        factors,
        axis=0,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    return jnp.moveaxis(y, 0, axis)
