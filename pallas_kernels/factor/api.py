"""`factor`: one factor in one launch, blocks of any size, x and y in either layout."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, compat, pieces, tuned
from pallas_kernels.common.epilogue import Activation
from pallas_kernels.factor import weights
from pallas_kernels.factor.config import Config
from pallas_kernels.factor.kernel import launch, view
from pallas_kernels.factor.plan import tiling
from pallas_kernels.factor.search import best_config


def factor(
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

    Products are summed in float32 and rounded once. Where blocks are merged into larger
    ones, with zeros for weights, a NaN or an infinity in x may reach more outputs of
    its own vector than it would otherwise; it never reaches another vector.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16, float16 or
        float32.
      w: (a, b, c, d), of the dtype of x.
      axis: the feature axis of x and of the result.
      bias: (n_out,), added to the float32 sums.
      activation: applied to the sums after the bias, before they are rounded.
      out_dtype: of the result, one of those that x may have; None for that of x.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`, for float32: see `pieces.count`.

    Returns:
      (batch, n_out) or (n_out, batch), of out_dtype.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    (shape,), batch, n_out = arguments.check("factor", x, (w,), bias, axis)
    _, out = arguments.check_dtypes("factor", x.dtype, out_dtype)
    y_shape = (batch, n_out) if axis == -1 else (n_out, batch)
    if batch == 0:
        return jnp.zeros(y_shape, out)
    arguments.check_runs("factor", "x", x.shape, x.dtype.itemsize, axis)
    arguments.check_runs("factor", "the result", y_shape, out.itemsize, axis)
    count = pieces.count(x.dtype, precision)
    if config is None:
        config = default_config(
            shape, x.dtype, batch, axis=axis, out_dtype=out, precision=precision
        )
    plan = tiling(
        shape,
        config,
        batch=batch,
        feature_first=axis == 0,
        item_in=x.dtype.itemsize,
        item_out=out.itemsize,
        pieces=count,
    )
    y = launch(
        compat.gpu_only(x.reshape(view(plan, plan.factor.c))),
        weights.before_launch(w, plan),
        None if bias is None else weights.bias_before_launch(bias, plan),
        plan,
        activation,
        out,
    )
    return y.reshape(y_shape)


@tuned.before_rule("factor", Config)
def default_config(
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """A configuration that fits the chip, predicted where none was measured as best.

    Args:
      shape: the pattern (a, b, c, d).
      dtype: of x and the factor.
      batch: vectors in x.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: as `factor` takes it.
      device: whose measurements count; see `pallas_kernels.tuned.lookup`.

    Raises:
      NotImplementedError: if none fits; the message says why.
    """
    given, out = arguments.check_dtypes("factor", dtype, out_dtype)
    return best_config(
        tuple(shape),
        batch=batch,
        feature_first=axis == 0,
        item_in=given.itemsize,
        item_out=out.itemsize,
        pieces=pieces.count(given, precision),
    )
