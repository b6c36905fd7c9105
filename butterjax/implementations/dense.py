"""`dense`: multiply the factors out, then one matrix product."""

import jax
from jax.typing import DTypeLike

from butterjax.factors import to_dense
from butterjax.implementations.registry import FeatureAxis, register
from butterjax.numerics import accumulation_dtype


@register("dense")
def dense(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """y = W x with W = K₁K₂…K_L formed at every call."""
    w = to_dense(factors, precision=precision)
    lhs, rhs = (x, w) if axis == -1 else (w, x)
    contracted = ((lhs.ndim - 1,), (1 if axis == -1 else 0,))
    return jax.lax.dot_general(
        lhs,
        rhs,
        (contracted, ((), ())),
        precision=precision,
        preferred_element_type=accumulation_dtype(x.dtype, preferred_element_type),
    ).astype(preferred_element_type)
