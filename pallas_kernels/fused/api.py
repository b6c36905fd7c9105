"""`fused`: two factors of a Monarch chain in one launch, weights in registers."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, compat
from pallas_kernels.common.epilogue import Activation
from pallas_kernels.factor.blocks import loadable
from pallas_kernels.fused import first, last
from pallas_kernels.fused.config import Config, check, check_batch, default_config
from pallas_kernels.fused.plan import plan as plan_for

__all__ = ["Config", "default_config", "fused"]


def fused(
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
    """Applies two factors, y = activation(K₁K₂x + bias), in one launch.

    Products accumulate in float32 and are rounded to the dtype of x after each factor;
    after the second one the bias is added and the activation applied before that.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16 or float16.
      factors: arrays (1, b₀, a₁, b₁) and (a₁, b₁, c₁, 1) of the dtype of x, in the
        order of the matrix product: the second one touches x first.
      axis: the feature axis of x and of the result.
      bias: (n_out,) or None; taken as float32.
      activation: see `pallas_kernels.epilogue.activate`.
      out_dtype: of the result; None or that of x.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`; products of 16-bit numbers are exact.

    Returns:
      (batch, n_out) or (n_out, batch), of the dtype of x.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, the sizes or the
        batch; and later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    shapes, batch, n_out = arguments.check("fused", x, factors, bias, axis)
    plan = plan_for(shapes, x.dtype, out_dtype, axis)
    check_batch(plan, batch)
    if batch == 0:
        return jnp.zeros((0, n_out) if axis == -1 else (n_out, 0), x.dtype)
    if config is None:
        config = default_config(shapes, x.dtype, batch, axis=axis, precision=precision)
    check(plan, config)
    y = (last if axis == -1 else first).launch(
        compat.gpu_only(x),
        *factors,
        None if bias is None else loadable(bias),
        activation,
        plan,
        config,
    )
    return compat.varying_as(y, x, *factors)
