"""`strided`: one factor with d > 1 in one launch, features last, in 16 bits."""

from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, compat
from pallas_kernels.common.epilogue import Activation
from pallas_kernels.strided.config import check_supported, default_config
from pallas_kernels.strided.kernel import launch
from pallas_kernels.strided.plan import Config, plan

__all__ = ["Config", "default_config", "strided"]


def strided(
    x: jax.Array,
    w: jax.Array,
    *,
    axis: Literal[0, -1] = -1,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Applies one factor, y = activation(K x + bias), in one launch.

    The features of blocks that are neighbours along d alternate, in x and in y, and so
    do their weights. Products are summed in float32 and rounded once.

    Args:
      x: (batch, n_in); bfloat16 or float16.
      w: (a, b, c, d), of the dtype of x; b, c and d multiples of 8.
      axis: -1, the feature axis of x and of the result.
      bias: (n_out,), added to the float32 sums.
      activation: applied to the sums after the bias, before they are rounded.
      out_dtype: of the result, bfloat16 or float16; None for that of x.
      config: None for `default_config`.
      precision: has no effect on 16-bit numbers.

    Returns:
      (batch, n_out), of out_dtype.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, the axis or the
        sizes; and later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    (shape,), batch, n_out = arguments.check("strided", x, (w,), bias, axis)
    check_supported(x.dtype, out_dtype, axis)
    out = x.dtype if out_dtype is None else jnp.dtype(out_dtype)
    if batch == 0:
        return jnp.zeros((batch, n_out), out)
    if config is None:
        config = default_config(
            shape, x.dtype, batch, axis=axis, out_dtype=out, precision=precision
        )
    found = plan(shape, batch, config)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.astype(jnp.float32)
    return launch(compat.gpu_only(x), w, bias, found, activation, out)
