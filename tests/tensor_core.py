"""How the tensor core of an H200 adds up: a model in NumPy, of its rounding alone."""

import ml_dtypes  # noqa: F401  Teaches NumPy the name bfloat16.
import numpy as np

_PRODUCTS = 16  # That are added to a sum at once.
_KEPT_BITS = 25  # Of addends, below the leading bit of the largest.
_MANTISSA_BITS = 23  # Of a float32, without its leading bit.


def multiply_add(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """acc + a·b, cut off as mma.sync does, where float32 sums would be rounded.

    Of 16 products, which are exact, and the sum so far, all is cut off that lies more
    than 25 bits below the largest of them; and of what they add up to, what a float32
    does not hold. Both times towards zero. NVIDIA documents none of this: 16 and 25
    are what gives the errors that were measured.

    Args:
      acc: (m, n) float32.
      a: (m, k), k a multiple of 16, of 16 bits.
      b: (k, n), likewise.

    Returns:
      (m, n) float32.
    """
    total = acc.astype(np.float64)
    a, b = a.astype(np.float64), b.astype(np.float64)
    for start in range(0, a.shape[1], _PRODUCTS):
        some = slice(start, start + _PRODUCTS)
        products = a[:, some, None] * b[some]
        addends = np.concatenate([total[:, None], products], axis=1)
        leading = _leading_bit(np.abs(addends).max(axis=1))
        total = _cut(addends, (leading - _KEPT_BITS)[:, None]).sum(axis=1)
        total = _cut(total, _leading_bit(total) - _MANTISSA_BITS)
    return total.astype(np.float32)


def _leading_bit(x: np.ndarray) -> np.ndarray:
    return np.frexp(x)[1] - 1


def _cut(x: np.ndarray, last_bit: np.ndarray) -> np.ndarray:
    """What is left of x without the bits below the last one."""
    return np.ldexp(np.trunc(np.ldexp(x, -last_bit)), last_bit)
