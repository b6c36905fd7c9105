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
      activation: "relu" for max(x, 0), "gelu" for the tanh form of
        x·Φ(x) that `jax.nn.gelu` has by default, "silu" for x / (1 + exp(-x)), None
        for x itself.

    Returns:
      Array of the shape and type of x.
    """
    match activation:
        case None:
            return x
        case "relu":
            return jnp.maximum(x, 0)
        case "gelu":
            return jax.nn.gelu(x, approximate=True)
        case "silu":
            return jax.nn.silu(x)
