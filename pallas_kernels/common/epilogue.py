"""What may be done to a product before it is rounded and stored: an activation."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def activate(x: jax.Array, activation: Activation | None) -> jax.Array:
    """Applies an activation to each entry, inside a kernel or outside.

    Args:
      x: of any shape and real floating-point type.
      activation: "relu" for max(x, 0), whose slope at 0 is 0, "gelu" for the tanh form
        of x·Φ(x) that `jax.nn.gelu` has by default, "silu" for x / (1 + exp(-x)), None
        for x itself.

    Returns:
      Array of the shape and type of x.
    """
    match activation:
        case None:
            return x
        case "relu":
            # As `jax.nn.relu` is, of slope 0 at 0; which kernels cannot lower.
            return jnp.where(x <= 0, 0, x)
        case "gelu":
            return jax.nn.gelu(x, approximate=True)
        case "silu":
            return jax.nn.silu(x)
