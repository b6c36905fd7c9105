"""`pallas`: one GPU kernel per factor, with blocks of any size."""

import jax
from jax.typing import DTypeLike

from butterjax.implementations.backward import backward
from butterjax.implementations.derivatives import with_derivatives
from butterjax.implementations.registry import FeatureAxis, register_fused
from pallas_kernels.epilogue import Activation
from pallas_kernels.factor import factor


@register_fused("pallas")
@with_derivatives(backward)
def pallas(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
    bias: jax.Array | None,
    activation: Activation | None,
) -> jax.Array:
    """One launch of `pallas_kernels.factor` per factor; gradients by `backward`.

    Intermediates are rounded to the dtype of x, and the last launch has the epilogue.
    For NVIDIA GPUs from Hopper on.
    """
    for w in reversed(factors[1:]):
        x = factor(x, w, axis=axis, precision=precision)
    return factor(
        x,
        factors[0],
        axis=axis,
        bias=bias,
        activation=activation,
        out_dtype=preferred_element_type,
        precision=precision,
    )
