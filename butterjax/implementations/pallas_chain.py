"""`pallas_chain`: one GPU kernel per chain, intermediates in shared memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.implementations.einsum import einsum
from butterjax.implementations.registry import FeatureAxis, register
from pallas_kernels.chain import chain


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _apply(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    return chain(x, factors, axis=axis, precision=precision)


def _forward(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
) -> tuple[jax.Array, Any]:
    # Intermediates never leave the chip: the backward pass computes them again.
    return _apply(x, factors, axis, precision), (x, factors)


def _backward(
    axis: FeatureAxis, precision: jax.lax.PrecisionLike, saved: Any, dy: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x, factors = saved
    formula = functools.partial(
        einsum, axis=axis, precision=precision, preferred_element_type=x.dtype
    )
    _, pull_back = jax.vjp(formula, x, factors)
    dx, dfactors = pull_back(dy)
    return dx, dfactors


_apply.defvjp(_forward, _backward)


@register("pallas_chain")
def pallas_chain(
    x: jax.Array,
    factors: tuple[jax.Array, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """All factors in one launch of `pallas_kernels.chain`; the gradient by `einsum`.

    For NVIDIA GPUs from Hopper on. Reverse-mode derivatives only.
    """
    if jnp.dtype(preferred_element_type) != x.dtype:
        raise NotImplementedError(
            f"pallas_chain: the result has the dtype of x, {x.dtype.name}; got "
            f"preferred_element_type={jnp.dtype(preferred_element_type).name}"
        )
    return _apply(x, factors, axis, precision)
