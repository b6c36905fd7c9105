"""A chain applied by the launches that are planned for it, and transposes by XLA."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from butterjax.factors import fuse
from butterjax.gpu.plan import Launch, plan_launches
from butterjax.implementations.registry import FeatureAxis
from butterjax.pattern import Chain
from pallas_kernels import factor, fused, radix, strided
from pallas_kernels.common.epilogue import Activation


def apply_launches(
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
) -> jax.Array:
    """Applies a chain by the launches of `plan_launches`; there is no derivative.

    The arguments and what is raised are those of a `FusedImplementation`.
    """
    patterns = Chain.of(factors)
    batch, n_out = x.shape[1 + axis], patterns.out_features
    if batch == 0:
        shape = (0, n_out) if axis == -1 else (n_out, 0)
        return jnp.zeros(shape, preferred_element_type or x.dtype)
    launches = plan_launches(
        patterns,
        dtype=x.dtype,
        batch=batch,
        axis=axis,
        out_dtype=preferred_element_type,
        precision=precision,
    )
    left = tuple(factors)
    for index in reversed(range(len(launches))):
        launch = launches[index]
        split = len(left) - sum(launch.partition)
        left, taken = left[:split], left[split:]
        last = index == 0
        x = _apply(
            launch,
            x,
            fuse(taken, launch.partition, precision="highest"),
            axis=axis,
            bias=bias if last else None,
            activation=activation if last else None,
            out_dtype=preferred_element_type if last else None,
            precision=precision,
        )
    return x


def _apply(
    launch: Launch,
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    bias: jax.Array | None,
    **options: Any,
) -> jax.Array:
    """One launch, and the transposes around it."""
    if launch.is_transposed:
        (w,) = factors
        a, b, c, d = w.shape
        w = w.transpose(0, 3, 1, 2).reshape(a * d, b, c, 1)
        bias = None if bias is None else _swap(bias, a, b, d)
        return _swap(
            _run(launch, _swap(x, a, c, d), (w,), bias=bias, **options), a, d, b
        )
    return _run(launch, x, factors, bias=bias, **options)


def _run(
    launch: Launch, x: jax.Array, factors: Sequence[jax.Array], **options: Any
) -> jax.Array:
    options["config"] = launch.config
    match launch.kernel:
        case "factor":
            (w,) = factors
            return factor.factor(x, w, **options)
        case "fused":
            return fused.fused(x, factors, **options)
        case "radix":
            return radix.radix(x, factors, **options)
        case "strided":
            (w,) = factors
            return strided.strided(x, w, **options)


def _swap(x: jax.Array, a: int, rows: int, columns: int) -> jax.Array:
    """Features (a, rows, columns), in the last axis, as (a, columns, rows)."""
    apart = x.reshape(*x.shape[:-1], a, rows, columns)
    return apart.swapaxes(-1, -2).reshape(x.shape)
