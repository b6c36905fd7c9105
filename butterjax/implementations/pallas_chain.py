"""`pallas_chain`: a chain in as few launches of GPU kernels as can be."""

from typing import Any

import jax

from butterjax.implementations.registry import register_fused


@register_fused("pallas_chain")
def pallas_chain(
    x: jax.Array, factors: tuple[jax.Array, ...], **options: Any
) -> jax.Array:
    """Factors share a launch where a kernel takes them; gradients by launches, too.

    Neighbours with small blocks are multiplied out first: `butterjax.gpu.plan_launches`
    tells which, and with which kernels. For NVIDIA GPUs from Hopper on.
    """
    from butterjax.gpu import chains  # Kernels take a second to import.

    return chains.together(x, factors, **options)
