"""Which configuration of the backward kernel should be fastest, and how fast it is."""

from collections.abc import Sequence
from typing import Literal

import jax

from pallas_kernels import arguments
from pallas_kernels.backward_plan import Config, check_patterns, plan


def check_arguments(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: Literal[0, -1],
) -> None:
    """Raises NotImplementedError unless the kernel takes the patterns and the dtype."""
    x, _ = arguments.check_dtypes("backward", dtype, None)
    if x.itemsize != 2:
        raise NotImplementedError(
            f"backward: the dtype of x must be bfloat16 or float16, got {x.name}"
        )
    check_patterns(shapes)
    (a, b, _, d), (a_in, _, c_in, d_in) = shapes[0], shapes[-1]
    for what, features in (("x", a_in * c_in * d_in), ("dy", a * b * d)):
        shape = (batch, features) if axis == -1 else (features, batch)
        arguments.check_runs("backward", what, shape, x.itemsize, axis)


def default_config(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """Draft."""
    del precision
    check_arguments(shapes, dtype, batch, axis)
    config = Config()
    plan(shapes, config, axis)
    return config
