"""`einsum`: one contraction per factor; XLA picks the layouts."""

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
    if axis == -1:
        formula, blocks = "nilk,ijlk->nijk", (batch, a, c, d)
    else:
        formula, blocks = "ilkn,ijlk->ijkn", (a, c, d, batch)
    y = jnp.einsum(
        formula,
        x.reshape(blocks),
        factor,
        precision=precision,
        preferred_element_type=accumulator,
    )
    return y.reshape((batch, a * b * d) if axis == -1 else (a * b * d, batch))


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
        _product,
        x,
        factors,
        axis=axis,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
