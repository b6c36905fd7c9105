"""`pallas_chain`: one GPU kernel per chain, intermediates in shared memory."""

import jax
from jax.typing import DTypeLike

from butterjax.implementations.registry import FeatureAxis, register_fused
from butterjax.implementations.xla_gradients import with_xla_gradients
from pallas_kernels.chain import chain
from pallas_kernels.epilogue import Activation


@register_fused("pallas_chain")
@with_xla_gradients
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
    """All factors in one launch of `pallas_kernels.chain`; the gradient by `einsum`.

    For NVIDIA GPUs from Hopper on. Reverse-mode derivatives only.
    """
    return chain(
        x,
        factors,
        axis=axis,
        bias=bias,
        activation=activation,
        out_dtype=preferred_element_type,
        precision=precision,
    )
