"""Circulant and Toeplitz matrices, by Fourier transforms without permutations.

With F = K P as of `butterjax.transforms.dft` and symmetric, the circulant matrix
F⁻¹ diag(F c) F is K̄ · diag(P F c) · Kᵀ / n: reversed digits cancel. In the real form
(`fourier.real_form`) it is L S Lᵀ, S of one 2 × 2 block for each frequency.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from butterjax import array_checks, twiddles
from butterjax.links import Diagonal, Link
from butterjax.numerics import accumulation_dtype
from butterjax.transforms.fourier import fourier_factors, real_form


def circulant(column: ArrayLike, *, radix: int = 2) -> tuple[Link, ...]:
    """The circulant matrix of a column, as `scipy.linalg.circulant`.

    It maps x to the circular convolution of x and the column. Differentiable in it.

    Args:
      column: (n,), n as of `dft`.
      radix: as of `dft`.

    Returns:
      For a real column, real factors; for a complex one, complex factors around a
      `Diagonal` of its Fourier transform. All are of the dtype of the column.

    Raises:
      TypeError: if the column is no array of a supported dtype.
      ValueError: if it has not the shape (n,), or n or radix is out of range.
    """
    given = _vector("circulant", "column", column)
    return _circulant("circulant", given, radix, cropped=False)


def toeplitz(
    column: ArrayLike, row: ArrayLike | None = None, *, radix: int = 2
) -> tuple[Link, ...]:
    """The square Toeplitz matrix of a column and a row, as `scipy.linalg.toeplitz`.

    By a circulant matrix of 2n features, whose outer factors keep n of them.
    Differentiable in column and row.

    Args:
      column: (n,), 2n as of `dft`; the first column of the matrix.
      row: (n,), the first row, without regard to its first entry; None for the
        conjugate of the column.
      radix: as of `dft`.

    Returns:
      Links, as `circulant`.

    Raises:
      TypeError: if one is no array of a supported dtype.
      ValueError: if they have not the shape (n,), or n or radix is out of range.
    """
    first = _vector("toeplitz", "column", column)
    other = jnp.conj(first) if row is None else _vector("toeplitz", "row", row)
    if other.shape != first.shape:
        raise ValueError(
            f"toeplitz: row must have the shape of column, {first.shape}, got "
            f"{other.shape}"
        )
    whole = jnp.concatenate([first, jnp.zeros_like(first[:1]), other[:0:-1]])
    return _circulant("toeplitz", whole, radix, cropped=True)


def _circulant(
    function: str, column: jax.Array, radix: int, *, cropped: bool
) -> tuple[Link, ...]:
    """A circulant matrix, or the upper left quarter of one of an even size."""
    (n,) = column.shape
    sizes = twiddles.radices(function, n, radix)
    is_complex = jnp.issubdtype(column.dtype, jnp.complexfloating)
    wide = column.astype(accumulation_dtype(column.dtype, column.dtype))
    spectrum = jnp.fft.fft(wide)[twiddles.digit_reversal(sizes)]
    inverse = fourier_factors(sizes, -0.5, sign=1)
    outer: tuple[NDArray[np.inexact], ...] = (
        inverse if is_complex else real_form(inverse, real_output=True)
    )
    if cropped:
        # The first block gives the leading digit of the index.
        outer = (outer[0][:, : outer[0].shape[1] // 2], *outer[1:])
    left = [jnp.asarray(factor, column.dtype) for factor in outer]
    right = [
        jnp.asarray(factor.swapaxes(1, 2).conj(), column.dtype)
        for factor in reversed(outer)
    ]
    if is_complex:
        return (*left, Diagonal(spectrum), *right)
    parts = [spectrum.real, -spectrum.imag, spectrum.imag, spectrum.real]
    blocks = jnp.stack(parts, axis=-1).astype(column.dtype).reshape(n, 2, 2, 1)
    return (*left, blocks, *right)


def _vector(function: str, name: str, given: ArrayLike) -> jax.Array:
    found = array_checks.array(function, name, given)
    if found.ndim != 1 or not found.size:
        raise ValueError(
            f"{function}: {name} must have the shape (n,) with n at least 1, got "
            f"{found.shape}"
        )
    array_checks.operands_dtype(function, name, found)
    return found
