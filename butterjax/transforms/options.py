"""What transforms have in common: how they are normalised and which dtype they have."""

from typing import Any, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax import array_checks, checks

Norm = Literal["backward", "ortho", "forward"]

# The matrix is n to this power times the sums as they are written.
_POWERS = {"backward": 0.0, "ortho": -0.5, "forward": -1.0}
INVERSES: dict[str, Norm] = {
    "backward": "forward",
    "ortho": "ortho",
    "forward": "backward",
}


def power(function: str, norm: Any) -> float:
    """The power of n that a transform is scaled by.

    Raises:
      ValueError: if the norm is unknown.
    """
    checks.choice(function, "norm", norm, tuple(_POWERS))
    return _POWERS[norm]


def dtype(function: str, given: DTypeLike | None, *, is_complex: bool) -> jnp.dtype:
    """The dtype of a transform's weights.

    Args:
      function: who asks, for messages.
      given: None for float64 or complex128 where JAX has them, else half as wide.
      is_complex: whether the transform needs complex numbers.

    Raises:
      TypeError: if it is none of `butterjax.numerics.SUPPORTED_DTYPES`, or is real
        where it must not be.
    """
    if given is None:
        return array_checks.dtype(function, "dtype", complex if is_complex else float)
    found = array_checks.dtype(function, "dtype", given)
    if is_complex and not jnp.issubdtype(found, jnp.complexfloating):
        raise TypeError(
            f"{function}: dtype must be complex, as the transform is, got {found.name}"
        )
    return found
