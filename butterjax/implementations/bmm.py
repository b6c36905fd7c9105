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
    before, after = (x.shape[:-1], ()) if axis == -1 else ((), x.shape[1:])
    blocks = x.reshape(*before, a, c, d, *after)
    if axis == -1:
        lhs = jnp.moveaxis(blocks, (-3, -1), (0, 1)).reshape(a * d, *before, c)
        rhs = factor.transpose(0, 3, 2, 1).reshape(a * d, c, b)
    else:
        lhs = factor.transpose(0, 3, 1, 2).reshape(a * d, b, c)
        rhs = jnp.moveaxis(blocks, 2, 1).reshape(a * d, c, *after)
    # Rounded before it is permuted: the permutation then moves fewer bytes.
    y = jax.lax.dot_general(
        lhs,
        rhs,
        (((lhs.ndim - 1,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=accumulation_dtype(x.dtype, preferred_element_type),
    ).astype(preferred_element_type)
    if axis == -1:
        y = jnp.moveaxis(y.reshape(a, d, *before, b), (0, 1), (-3, -1))
    else:
        y = jnp.moveaxis(y.reshape(a, d, b, *after), 1, 2)
    return y.reshape(*before, a * b * d, *after)
