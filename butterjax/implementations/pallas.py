"""`pallas`: one GPU kernel per factor, with blocks of any size."""

import jax
from jax.typing import DTypeLike

from butterjax.implementations.backward import backward
from butterjax.implementations.derivatives import with_derivatives
from butterjax.implementations.launches import apply_launches
from butterjax.implementations.registry import FeatureAxis, register_fused
from pallas_kernels.epilogue import Activation


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
    """One launch per factor; gradients by `backward`.

    `plan_launches` tells which kernel that is: `pallas_kernels.factor`, or for blocks
    too small for tensor cores `pallas_kernels.radix`. Intermediates are rounded to the
    dtype of x, and the last launch has the epilogue. For NVIDIA GPUs from Hopper on.
    """
    for w in reversed(factors[1:]):
        x = apply_launches(x, (w,), axis=axis, precision=precision)
    return apply_launches(
        x,
        factors[:1],
        axis=axis,
        precision=precision,
        preferred_element_type=preferred_element_type,
        bias=bias,
        activation=activation,
    )
