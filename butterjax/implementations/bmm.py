"""`bmm`: permute, batched matrix product over the a·d blocks, permute back."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.implementations.registry import FeatureAxis, one_by_one, register
from butterjax.numerics import accumulation_dtype


@register("bmm")
@one_by_one
def bmm(
    x: jax.Array,
    factor: jax.Array,
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """One batched matrix product of a·d blocks (b × c) per factor."""
    a, b, c, d = factor.shape
    batch = x.shape[1 + axis]  # The axis that does not hold the features.
    if axis == -1:
        lhs = x.reshape(batch, a, c, d).transpose(1, 3, 0, 2).reshape(a * d, batch, c)
        rhs = factor.transpose(0, 3, 2, 1).reshape(a * d, c, b)
    else:
        lhs = factor.transpose(0, 3, 1, 2).reshape(a * d, b, c)
        rhs = x.reshape(a, c, d, batch).transpose(0, 2, 1, 3).reshape(a * d, c, batch)
    # Rounded before it is permuted: the permutation then moves fewer bytes.
    y = jnp.matmul(
        lhs,
        rhs,
        precision=precision,
        preferred_element_type=accumulation_dtype(x.dtype, preferred_element_type),
    ).astype(preferred_element_type)
    if axis == -1:
        y = y.reshape(a, d, batch, b).transpose(2, 0, 3, 1)
        return y.reshape(batch, a * b * d)
    return y.reshape(a, d, b, batch).transpose(0, 2, 1, 3).reshape(a * b * d, batch)
