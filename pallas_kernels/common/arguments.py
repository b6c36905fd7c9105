"""What every kernel checks of its arguments before it looks at the sizes."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Shape = tuple[int, int, int, int]
DTYPES = ("bfloat16", "float16", "float32")


def check(
    kernel: str,
    x: jax.Array,
    factors: Sequence[jax.Array],
    bias: jax.Array | None,
    axis: int,
) -> tuple[tuple[Shape, ...], int, int]:
    """Checks that the sizes of x, the factors and the bias fit one another.

    Args:
      kernel: name, for the messages.
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0.
      factors: arrays (a, b, c, d), in the order of the matrix product.
      bias: (n_out,) or None.
      axis: the feature axis of x.

    Returns:
      The patterns of the factors, the batch, and n_out.

    Raises:
      ValueError: if they do not fit, or axis is neither 0 nor -1.
      NotImplementedError: if a factor has not the dtype of x.
    """
    if axis not in (0, -1):
        raise ValueError(f"{kernel}: axis must be 0 or -1, got {axis}")
    found = [factor.shape for factor in factors]
    if not factors or any(len(shape) != 4 for shape in found):
        raise ValueError(
            f"{kernel}: factors must be arrays of shapes (a, b, c, d), got {found}"
        )
    if x.ndim != 2:
        raise ValueError(f"{kernel}: x must have two axes, got shape {x.shape}")
    shapes = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in found)
    features = x.shape[axis]
    for index in reversed(range(len(shapes))):
        a, b, c, d = shapes[index]
        if features != a * c * d:
            raise ValueError(
                f"{kernel}: factors[{index}] of shape {shapes[index]} takes a·c·d = "
                f"{a * c * d} features, but is given {features}"
            )
        features = a * b * d
        if factors[index].dtype != x.dtype:
            raise NotImplementedError(
                f"{kernel}: factors[{index}] has dtype {factors[index].dtype.name}, "
                f"but x has {x.dtype.name}: the kernel multiplies numbers of one type"
            )
    n_out = math.prod(shapes[0]) // shapes[0][2]
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(
            f"{kernel}: bias must have the shape ({n_out},), got {bias.shape}"
        )
    return shapes, int(x.shape[1 + axis]), n_out


def check_dtypes(
    kernel: str,
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None,
) -> tuple[jnp.dtype, jnp.dtype]:
    """The dtypes of x and of the result, that of x where none is given.

    Raises:
      NotImplementedError: if one of them is none of `DTYPES`.
    """
    x = jnp.dtype(dtype)
    y = x if out_dtype is None else jnp.dtype(out_dtype)
    for argument, found in (("the dtype of x", x), ("out_dtype", y)):
        if found.name not in DTYPES:
            raise NotImplementedError(
                f"{kernel}: {argument} must be one of {', '.join(DTYPES)}; got "
                f"{found.name}"
            )
    return x, y


def check_runs(
    kernel: str, what: str, shape: tuple[int, ...], itemsize: int, axis: int
) -> None:
    """Raises NotImplementedError unless TMA can move rows of an array."""
    if shape[1] * itemsize % 16:
        raise NotImplementedError(
            f"{kernel}: TMA moves rows of whole 16 bytes, but the last axis of {what} "
            f"of shape {shape} with axis={axis} has {shape[1] * itemsize}"
        )
