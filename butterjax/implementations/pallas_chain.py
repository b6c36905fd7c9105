"""`pallas_chain`: one GPU kernel per chain, intermediates in shared memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.factors import fuse
from butterjax.implementations.launches import plan_launches
from butterjax.implementations.registry import FeatureAxis, register_fused
from butterjax.implementations.xla_gradients import with_xla_gradients
from butterjax.pattern import Chain
from pallas_kernels.chain import chain
from pallas_kernels.epilogue import Activation
from pallas_kernels.factor import factor
from pallas_kernels.radix import radix


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
    """All factors in one launch, if they fit; the gradient by `einsum`.

    Neighbours with small blocks are multiplied out first, and a chain that does not fit
    in shared memory takes several launches: `plan_launches` tells which, and with which
    kernels. For NVIDIA GPUs from Hopper on. Reverse-mode derivatives only.
    """
    batch, n_out = x.shape[1 + axis], Chain.of(factors).out_features
    if batch == 0:
        shape = (0, n_out) if axis == -1 else (n_out, 0)
        return jnp.zeros(shape, preferred_element_type)
    launches = plan_launches(
        Chain.of(factors),
        dtype=x.dtype,
        batch=batch,
        axis=axis,
        out_dtype=preferred_element_type,
        precision=precision,
    )
    left = factors
    for index in reversed(range(len(launches))):
        launch = launches[index]
        split = len(left) - sum(launch.partition)
        left, taken = left[:split], left[split:]
        weights = fuse(taken, launch.partition, precision="highest")
        apply: Callable[..., jax.Array]
        match launch.kernel:
            case "chain":
                apply = functools.partial(chain, x, weights)
            case "factor":
                apply = functools.partial(factor, x, *weights)
            case "radix":
                apply = functools.partial(radix, x, weights)
        last = index == 0
        x = apply(
            axis=axis,
            bias=bias if last else None,
            activation=activation if last else None,
            out_dtype=preferred_element_type if last else None,
            config=launch.config,
            precision=precision,
        )
    return x
