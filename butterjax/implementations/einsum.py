"""`einsum`: one contraction per factor; XLA picks the layouts."""

import jax
from jax.typing import DTypeLike

from butterjax.factors import apply_factor
from butterjax.implementations.registry import (
    FeatureAxis,
    apply_one_by_one,
    register,
)


@register("einsum")
def einsum(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """y[i,j,k] = Σ_l w[i,j,l,k] · x[i,l,k] as `jnp.einsum`, factor by factor."""
    return apply_one_by_one(
        apply_factor,
        x,
        factors,
        axis=axis,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
