"""`pallas_chain`: one GPU kernel per chain, intermediates in shared memory."""

import jax
from jax.typing import DTypeLike

from butterjax.implementations.backward import backward
from butterjax.implementations.derivatives import with_derivatives
from butterjax.implementations.launches import apply_launches
from butterjax.implementations.registry import FeatureAxis, register_fused
from pallas_kernels.epilogue import Activation


@register_fused("pallas_chain")
@with_derivatives(backward)
def pallas_chain(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
    bias: jax.Array | None,
    activation: Activation | None,
) -> jax.Array:
    """All factors in one launch, if they fit; gradients by `backward`.

    Neighbours with small blocks are multiplied out first, and a chain that does not fit
    in shared memory takes several launches: `plan_launches` tells which, and with which
    kernels. For NVIDIA GPUs from Hopper on.
    """
    return apply_launches(
        x,
        factors,
        axis=axis,
        precision=precision,
        preferred_element_type=preferred_element_type,
        bias=bias,
        activation=activation,
    )
