"""Which types the products accumulate in, and how exact they are held to be.

What `precision` says of float32 holds for a layer and for all its gradients alike: for
y, dx, and the gradients of the factors and of the bias. Under "highest" all of their
products are as exact as float32. Under the default a GPU may multiply any of them in
TF32, which keeps 11 bits of an operand. XLA does so; the kernels multiply bfloat16
pieces, which is more exact, but nothing promises it. So the error that is allowed does
not depend on which of the two takes a product.
"""

import jax.numpy as jnp
from jax.typing import DTypeLike

SUPPORTED_DTYPES = (
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)

# Relative Frobenius error per factor, against float64.
_TOLERANCES = {
    "float16": 2e-3,
    "bfloat16": 1e-2,
    "float32": 1e-6,
    "float64": 1e-14,
    "complex64": 1e-6,
    "complex128": 1e-14,
}
_TF32_TOLERANCE = 1e-3


def accumulation_dtype(dtype: DTypeLike, out_dtype: DTypeLike) -> jnp.dtype:
    """The type that products of `dtype` accumulate in: float32 for 16-bit floats.

    Args:
      dtype: type of the operands.
      out_dtype: type of the result, when it is wider.
    """
    wide = jnp.promote_types(dtype, out_dtype)
    return jnp.promote_types(wide, jnp.float32)


def tolerance(dtype: DTypeLike, num_factors: int, *, tf32: bool = False) -> float:
    """Largest relative Frobenius error of a chain's output, or of any gradient.

    Args:
      dtype: type of x and of the factors.
      num_factors: length of the chain; the error may grow with it.
      tf32: whether float32 products may round their operands to TF32, as a GPU does
        under the default precision.

    Returns:
      The bound on ‖y − ŷ‖ / ‖y‖ with y computed in float64.
    """
    name = jnp.dtype(dtype).name
    per_factor = _TF32_TOLERANCE if tf32 and name == "float32" else _TOLERANCES[name]
    return per_factor * num_factors
