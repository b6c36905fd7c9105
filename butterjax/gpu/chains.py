"""The kernels as differentiable functions: a launch per factor, or as few as can be."""

import jax
from jax.typing import DTypeLike

from butterjax.gpu.derivatives import with_derivatives
from butterjax.gpu.gradients import backward
from butterjax.gpu.launches import apply_launches
from butterjax.implementations.registry import FeatureAxis
from pallas_kernels.common.epilogue import Activation

together = with_derivatives(backward)(apply_launches)


@with_derivatives(backward)
def one_by_one(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
    bias: jax.Array | None,
    activation: Activation | None,
) -> jax.Array:
    """Applies a chain by one launch per factor; a `FusedImplementation`."""
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
