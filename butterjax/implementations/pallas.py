"""`pallas`: one GPU kernel per factor, with blocks of any size."""

from typing import Any

import jax

from butterjax.implementations.registry import register_fused


@register_fused("pallas")
def pallas(x: jax.Array, factors: tuple[jax.Array, ...], **options: Any) -> jax.Array:
    """One launch per factor; gradients by launches, too.

    `butterjax.gpu.plan_launches` tells which kernel that is. Intermediates are rounded
    to the dtype of x, and the last launch has the epilogue. For NVIDIA GPUs from Hopper
    on.
    """
    from butterjax.gpu import chains  # Kernels take a second to import.

    return chains.one_by_one(x, factors, **options)
