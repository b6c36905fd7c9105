"""`gradients`: dx and dw of one factor in one launch, x and dy read once."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, compat
from pallas_kernels.gradients.kernel import launch
from pallas_kernels.gradients.plan import Config, Plan, plan

_DTYPES = ("bfloat16", "float16")


def gradients(
    x: jax.Array,
    w: jax.Array,
    dy: jax.Array,
    *,
    axis: Literal[0, -1] = -1,
    config: Config | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of y = K x, for a factor K, given that of y.

        dx[i,l,k] = Σ_j w[i,j,l,k] · dy[i,j,k]
        dw[i,j,l,k] = Σ over the batch of dy[i,j,k] · x[i,l,k]

    Products are summed in float32; the same bits come out each time.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16 or float16.
      w: (a, b, c, d), of the dtype of x.
      dy: (batch, n_out) or (n_out, batch), of the dtype of x.
      axis: the feature axis of x and dy.
      config: None for `default_config`.

    Returns:
      dx, of the shape and dtype of x, and dw (a, b, c, d) in float32.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    (shape,), batch, n_out = arguments.check("gradients", x, (w,), None, axis)
    a, b, c, d = shape
    expected = (batch, n_out) if axis == -1 else (n_out, batch)
    if dy.shape != expected or dy.dtype != x.dtype:
        raise ValueError(
            f"gradients: dy must be {x.dtype.name}{list(expected)}, as y is, got "
            f"{dy.dtype.name}{list(dy.shape)}"
        )
    if config is None:
        config = default_config(shape, x.dtype, batch, axis=axis)
    else:
        _check_dtype(x.dtype)
    for what, array in (("x", x), ("dy", dy)):
        arguments.check_runs("gradients", what, array.shape, x.dtype.itemsize, axis)
    made = plan(shape, batch, feature_first=axis == 0, config=config)
    views = ((a, c, d, batch), (a, b, d, batch)) if axis == 0 else (x.shape, dy.shape)
    dx, sums = launch(
        compat.gpu_only(x.reshape(views[0])),
        dy.reshape(views[1]),
        _with_zeros(w, made),
        made,
        axis == 0,
    )
    dx, sums = (compat.varying_as(one, x, w, dy) for one in (dx, sums))
    return dx.reshape(x.shape), _add_up(sums, made)


def default_config(
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
) -> Config:
    """A configuration that fits the chip.

    Args:
      shape: the pattern (a, b, c, d).
      dtype: of x.
      batch: vectors in x.
      axis: the feature axis of x.

    Raises:
      NotImplementedError: if the kernel does not take the case; the message says why.
    """
    _check_dtype(dtype)
    try:
        config = Config()
        plan(shape, batch, feature_first=axis == 0, config=config)
    except NotImplementedError:
        config = Config(stages=4)
        plan(shape, batch, feature_first=axis == 0, config=config)
    return config


def _check_dtype(dtype: jax.typing.DTypeLike) -> None:
    name = jnp.dtype(dtype).name
    if name not in _DTYPES:
        raise NotImplementedError(
            f"gradients: the dtype of x must be one of {', '.join(_DTYPES)}; got {name}"
        )


def _with_zeros(w: jax.Array, made: Plan) -> jax.Array:
    """(units, blocks·b, blocks·c): the blocks of a unit on the diagonal."""
    _, b, c, _ = made.shape
    n = made.blocks
    w = w.transpose(0, 3, 1, 2).reshape(made.units, n, b, 1, c)
    if n > 1:  # A selection, so that no NaN spreads.
        w = jnp.where(jnp.eye(n, dtype=bool)[:, None, :, None], w, jnp.zeros_like(w))
    return w.reshape(made.units, n * b, n * c)


def _add_up(sums: jax.Array, made: Plan) -> jax.Array:
    """dw: the shares' sums, of each block with itself."""
    a, b, c, d = made.shape
    n = made.blocks
    apart = sums.reshape(made.shares, made.units, n, b, n, c)
    own = jnp.stack([apart[:, :, at, :, at] for at in range(n)], axis=2).sum(0)
    return own.reshape(a, d, b, c).transpose(0, 2, 3, 1)
