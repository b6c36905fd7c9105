"""`radix`: small factors, one or a whole chain, in one launch on CUDA cores."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, compat
from pallas_kernels.common.epilogue import Activation
from pallas_kernels.radix.config import Config, plan_for
from pallas_kernels.radix.kernel import by_unit, launch
from pallas_kernels.radix.search import default_config

__all__ = ["Config", "default_config", "radix"]


def radix(
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    axis: Literal[0, -1] = -1,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Applies a chain of small factors, y = activation(K₁K₂…K_L x + bias), in a launch.

    Everything is computed in float32 by fused multiply-adds, and rounded once, at the
    end, to `out_dtype`: also for 16-bit types, whose intermediates are not rounded.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; float32, bfloat16 or
        float16.
      factors: arrays (a, b, c, d) of the dtype of x, in the order of the matrix
        product: the last one touches x first. A block has at most 64 weights, and b
        and c are at most 16.
      axis: the feature axis of x and of the result.
      bias: (n_out,) or None; taken as float32.
      activation: see `pallas_kernels.epilogue.activate`.
      out_dtype: of the result, one of those of x; None for that of x.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`; products are those of float32, so all
        choices are the same.

    Returns:
      (batch, n_out) or (n_out, batch), of `out_dtype`.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, axis is neither 0 nor -1, or
        precision is none that JAX knows.
    """
    compat.canonicalize_precision(precision)
    shapes, batch, n_out = arguments.check("radix", x, factors, bias, axis)
    types = arguments.check_dtypes("radix", x.dtype, out_dtype)
    y_shape = (batch, n_out) if axis == -1 else (n_out, batch)
    if batch == 0:
        return jnp.zeros(y_shape, types[1])
    arguments.check_runs("radix", "x", x.shape, types[0].itemsize, axis)
    arguments.check_runs("radix", "the result", y_shape, types[1].itemsize, axis)
    if config is None:
        config = default_config(shapes, x.dtype, batch, axis=axis, out_dtype=out_dtype)
    plan = plan_for(shapes, types, config, axis)
    weights = [
        [by_unit(factors[index], step, config) for index in step.work.indices]
        for step in plan.steps
    ]
    if bias is not None:
        if bias.dtype.name not in arguments.DTYPES:
            bias = bias.astype(jnp.float32)
        bias = by_unit(bias, plan.steps[-1], config)
    x = compat.gpu_only(x)
    y = launch(x, weights, bias, activation, plan, config, axis, types[1])
    return y.reshape(y_shape)
