"""Hadamard, Walsh and Haar transforms: blocks of sums and differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from butterjax.links import Link, Permutation
from butterjax.transforms.options import Norm, dtype, power
from butterjax.transforms.permutations import bit_reversal
from butterjax.twiddles import power_of_two, radices


def hadamard(
    n: int,
    *,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, ...]:
    """The Hadamard transform in natural order, as `scipy.linalg.hadamard`.

    Args:
      n: features, a power of two.
      norm: "backward" for entries ±1, "ortho" for an orthogonal matrix, which is its
        own inverse, "forward" for a division by n.
      radix: the largest block: 2 gives log₂n factors, 4 half as many.
      dtype: of the weights; None for the widest real one that JAX has.

    Returns:
      Factors alone.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if n is no power of two, radix below 2 or the norm unknown.
    """
    return _hadamard("hadamard", n, norm, radix, dtype)


def walsh(
    n: int,
    *,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The Walsh transform: row k of the matrix changes its sign k times.

    Args:
      n: features, a power of two.
      norm: as in `hadamard`.
      radix: as in `hadamard`.
      dtype: as in `hadamard`.

    Returns:
      The `Permutation` that sorts the rows of `hadamard` by sequency, and its factors.

    Raises:
      TypeError: as `hadamard`.
      ValueError: as `hadamard`.
    """
    factors = _hadamard("walsh", n, norm, radix, dtype)
    sequency = np.arange(n)
    (reversal,) = bit_reversal(n)
    return (Permutation(reversal.indices[sequency ^ (sequency >> 1)]), *factors)


def haar(n: int, *, radix: int = 2, dtype: DTypeLike | None = None) -> tuple[Link, ...]:
    """The orthonormal Haar wavelet transform, of all levels.

    Args:
      n: features, a power of two.
      radix: the largest block: 2 gives log₂n factors, 4 half as many.
      dtype: of the weights; None for the widest real one that JAX has.

    Returns:
      A `Permutation` and factors. The result holds the mean, times √n, then the
      differences (left minus right half) of the coarsest level, …, of the finest.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if n is no power of two or radix is below 2.
    """
    n = power_of_two("haar", n)
    sizes = radices("haar", n, radix)
    found = _real("haar", dtype)
    factors = []
    a = 1
    for r in sizes:
        d = n // (a * r)
        # Means lie d features apart; between them are differences, which are done.
        block = np.repeat(np.eye(r)[:, :, None], d, axis=2)
        block[..., 0] = _levels(r)
        factors.append(jnp.asarray(np.broadcast_to(block, (a, r, r, d)), found))
        a *= r
    # The differences of a level lie at the odd multiples of their distance.
    order = [0]
    for distance in (n >> level for level in range(1, n.bit_length())):
        order += range(distance, n, 2 * distance)
    return (Permutation(np.array(order)), *factors)


def _levels(n: int) -> NDArray[np.float64]:
    """The Haar transform of n features with each difference where its right half was.

    Returns:
      A matrix of shape (n, n).
    """
    matrix = np.eye(n)
    distance = 1
    while distance < n:
        left, right = matrix[:: 2 * distance], matrix[distance :: 2 * distance]
        matrix[:: 2 * distance], matrix[distance :: 2 * distance] = (
            (left + right) / math.sqrt(2),
            (left - right) / math.sqrt(2),
        )
        distance *= 2
    return matrix


def _hadamard(
    function: str, n: int, norm: Norm, radix: int, given: DTypeLike | None
) -> tuple[jax.Array, ...]:
    n = power_of_two(function, n)
    sizes = radices(function, n, radix)
    found = _real(function, given)
    scale = power(function, norm)
    factors = []
    a = 1
    for r in sizes:
        row, column = np.ogrid[:r, :r]
        block = (-1.0) ** np.bitwise_count(row & column) * float(r) ** scale
        shape = (a, r, r, n // (a * r))
        factors.append(jnp.asarray(np.broadcast_to(block[..., None], shape), found))
        a *= r
    return tuple(factors)


def _real(function: str, given: DTypeLike | None) -> jnp.dtype:
    return dtype(function, given, is_complex=False)
