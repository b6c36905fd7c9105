"""Hadamard, Walsh and Haar transforms: blocks of sums and differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from butterjax.factors import fuse
from butterjax.links import Link, Permutation
from butterjax.pattern import Chain
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
    if n == 1:
        return (jnp.ones((1, 1, 1, 1), found),)
    factors = []
    for pattern in Chain.square_dyadic(n):
        # Means lie d features apart; between them are differences, which are done.
        weights = np.zeros(pattern.shape)
        weights[:] = np.eye(2)[:, :, None]
        weights[..., 0] = np.array([[1, 1], [1, -1]]) / math.sqrt(2)
        factors.append(jnp.asarray(weights, found))
    lengths = [size.bit_length() - 1 for size in sizes]
    # The differences of a level lie at the odd multiples of their distance.
    order = [0]
    for distance in (n >> level for level in range(1, n.bit_length())):
        order += range(distance, n, 2 * distance)
    return (Permutation(np.array(order)), *fuse(factors, lengths, precision="highest"))


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
