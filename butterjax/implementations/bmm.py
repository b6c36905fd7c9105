"""`bmm`: permute, batched matrix product over the a·d blocks, permute back."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.implementations.registry import (
    FeatureAxis,
    apply_one_by_one,
    register,
)


def _product(
    x: jax.Array,
    factor: jax.Array,
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    accumulator: DTypeLike,
) -> jax.Array:
    a, b, c, d = factor.shape
    batch = x.shape[1 + axis]  # The axis that does not hold the features.
    w = factor.transpose(0, 3, 1, 2).reshape(a * d, b, c)
    if axis == -1:
        blocks = x.reshape(batch, a, c, d).transpose(1, 3, 0, 2)
        lhs, rhs = blocks.reshape(a * d, batch, c), jnp.swapaxes(w, 1, 2)
    else:
        blocks = x.reshape(a, c, d, batch).transpose(0, 2, 1, 3)
        lhs, rhs = w, blocks.reshape(a * d, c, batch)
    y = jnp.matmul(lhs, rhs, precision=precision, preferred_element_type=accumulator)
    if axis == -1:
        y = y.reshape(a, d, batch, b).transpose(2, 0, 3, 1)
        return y.reshape(batch, a * b * d)
    return y.reshape(a, d, b, batch).transpose(0, 2, 1, 3).reshape(a * b * d, batch)


@register("bmm")
def bmm(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """One batched matrix product of a·d blocks (b × c) per factor."""
    return apply_one_by_one(
        _product,
        x,
        factors,
        axis=axis,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
