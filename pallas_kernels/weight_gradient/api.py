"""`weight_gradient`: the gradient of the loss for one factor, d > 1, features last.

dw[i, j, l, k] is the sum over the batch of dy[n; i, j, k] · x[n; i, l, k]. The blocks'
features lie zipped, which costs XLA's product several times what it takes where d = 1
or features come first; for those there is no kernel here.

x and dy are read once, or a few times from L2 where blocks are large, and multiplied as
they lie: see `kernel`. Each share of the batch has sums of its own, which XLA adds up
in the order of the shares, so that results are the same every time, bit for bit.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import compat
from pallas_kernels.weight_gradient.config import check_supported, default_config
from pallas_kernels.weight_gradient.kernel import partial_sums
from pallas_kernels.weight_gradient.plan import Config, make_plan


def weight_gradient(
    x: jax.Array,
    dy: jax.Array,
    shape: Sequence[int],
    *,
    axis: Literal[0, -1] = -1,
    config: Config | None = None,
) -> jax.Array:
    """The gradient for a factor K, given that for y = K x.

    Args:
      x: (batch, a·c·d), bfloat16 or float16.
      dy: (batch, a·b·d), of the same dtype.
      shape: the pattern (a, b, c, d) of the factor; b and c multiples of 16, d of 8.
      axis: the feature axis of x and dy; -1 is the only one that is supported.
      config: None for `default_config`.

    Returns:
      (a, b, c, d), float32, of products summed in float32.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, the layout or the
        sizes, or XLA is expected to be as fast; and later, when it is lowered, if that
        is not for an NVIDIA GPU.
      ValueError: if the sizes or the dtypes do not fit one another.
    """
    a, b, c, d = map(int, shape)
    if axis not in (0, -1):
        raise ValueError(f"weight_gradient: axis must be 0 or -1, got {axis}")
    for name, array, features in (("x", x, a * c * d), ("dy", dy, a * b * d)):
        if array.ndim != 2 or array.shape[axis] != features:
            raise ValueError(
                f"weight_gradient: {name} must have two axes and {features} features "
                f"for the shape {(a, b, c, d)} and axis={axis}, got {array.shape}"
            )
    batch = x.shape[1 + axis]
    if dy.shape[1 + axis] != batch or dy.dtype != x.dtype:
        raise ValueError(
            f"weight_gradient: x is {x.dtype.name} of shape {x.shape}, but dy is "
            f"{dy.dtype.name} of shape {dy.shape}: batch and dtype must be the same"
        )
    check_supported((a, b, c, d), x.dtype, axis)
    if batch == 0:
        return jnp.zeros((a, b, c, d), jnp.float32)
    if config is None:
        config = default_config((a, b, c, d), x.dtype, batch, axis=axis)
    plan = make_plan((a, b, c, d), batch, config)
    sums = compat.varying_as(partial_sums(compat.gpu_only(x), dy, plan), x, dy)
    return sums[:, :, :b, :c].sum(0)
