"""Fourier, cosine, sine and Hartley transforms."""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray

from butterjax import checks, twiddles
from butterjax.links import Link, Permutation
from butterjax.transforms.options import INVERSES, Norm, dtype, power

type Weights = NDArray[np.inexact]


def dft(
    n: int,
    *,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The discrete Fourier transform X_k = Σ_j x_j exp(-2πi jk/n), as `scipy.fft.fft`.

    Args:
      n: features, a product of primes up to 1024, small ones for a short time.
      norm: "backward" for the sums, "ortho" for a unitary matrix, "forward" for a
        division by n; the scale is shared out among the factors.
      radix: the largest block, but where a prime of n is larger: 2 gives log₂n
        factors (2^i, 2, 2, n/2^(i+1)), 4 half as many, √n a Monarch chain.
      dtype: complex64 or complex128; None for the wider that JAX has.

    Returns:
      Factors and the `Permutation` that reverses the digits of the index.

    Raises:
      TypeError: if an argument is of another kind, or the dtype not complex.
      ValueError: if n or radix is out of range, or the norm unknown.
    """
    return _dft("dft", n, norm, radix, dtype, sign=-1)


def idft(
    n: int,
    *,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The inverse of `dft` of the norm of that name, as `scipy.fft.ifft`.

    Args:
      n: features, as in `dft`.
      norm: "backward" for a division by n, "ortho" for a unitary matrix, "forward" for
        the sums.
      radix: as in `dft`.
      dtype: as in `dft`.

    Returns:
      Factors and a `Permutation`.

    Raises:
      TypeError: as `dft`.
      ValueError: as `dft`.
    """
    power("idft", norm)
    return _dft("idft", n, INVERSES[norm], radix, dtype, sign=1)


def real_dft(
    n: int,
    *,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The Fourier transform of n real numbers as n real numbers, for even n.

    With X as of `scipy.fft.rfft` and m = n/2, the result holds Re X_0, …, Re X_{m-1},
    then X_m, which is real, then Im X_1, …, Im X_{m-1}.

    Args:
      n: features, an even number, else as in `dft`.
      norm: as in `dft`.
      radix: as in `dft`; blocks of the factors are up to twice as large.
      dtype: of the weights; None for the widest real one that JAX has.

    Returns:
      Factors and a `Permutation`.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if n is odd, else as `dft`.
    """
    n = checks.size("real_dft", "n", n)
    if n % 2:
        raise ValueError(f"real_dft: n must be even, got {n}")
    sizes = twiddles.radices("real_dft", n, radix)
    first, *rest = real_form(
        fourier_factors(sizes, power("real_dft", norm)), real_input=True
    )
    _, rows, columns, d = first.shape
    r = rows // 2
    # Rows are (part, digit): the digits below r/2 are the frequencies below n/2. The
    # imaginary part of the sum makes room for frequency n/2.
    halves = first.reshape(1, 2, r, columns, d)
    kept = halves[:, :, : r // 2].copy()
    kept[0, 1, 0, :, 0] = halves[0, 0, r // 2, :, 0]
    return _chain("real_dft", [kept.reshape(1, r, columns, d), *rest], sizes, dtype)


def hartley(
    n: int,
    *,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The discrete Hartley transform H_k = Σ_j x_j (cos + sin)(2π jk/n).

    Args:
      n: features, as in `dft`.
      norm: as in `dft`; under "ortho" the matrix is its own inverse.
      radix: as in `dft`; blocks of the factors are up to twice as large.
      dtype: of the weights; None for the widest real one that JAX has.

    Returns:
      Factors and a `Permutation`, real.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if n or radix is out of range, or the norm unknown.
    """
    sizes = twiddles.radices("hartley", n, radix)
    ones = np.ones(math.prod(sizes))
    factors = _real_part(sizes, power("hartley", norm), (1 + 1j) * ones, ones)
    return _chain("hartley", factors, sizes, dtype)


def dct(
    n: int,
    *,
    type: Literal[2, 3, 4] = 2,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The discrete cosine transform of type II, III or IV, as `scipy.fft.dct`.

    Args:
      n: features, as in `dft`.
      type: 2, 3 or 4.
      norm: as `scipy.fft.dct` has it: "ortho" for an orthogonal matrix. The inverse of
        type 2 is type 3 and that of 4 is 4, of the norm "forward" for "backward".
      radix: as in `dft`; blocks of the factors are up to twice as large.
      dtype: of the weights; None for the widest real one that JAX has.

    Returns:
      Factors and a `Permutation`, real.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if n or radix is out of range, or type or norm unknown.
    """
    return _trigonometric("dct", n, type, norm, radix, dtype)


def dst(
    n: int,
    *,
    type: Literal[2, 3, 4] = 2,
    norm: Norm = "backward",
    radix: int = 2,
    dtype: DTypeLike | None = None,
) -> tuple[Link, ...]:
    """The discrete sine transform of type II, III or IV, as `scipy.fft.dst`.

    Args:
      n: features, as in `dft`.
      type: 2, 3 or 4.
      norm: as `scipy.fft.dst` has it; see `dct`.
      radix: as in `dct`.
      dtype: as in `dct`.

    Returns:
      Factors and a `Permutation`, real.

    Raises:
      TypeError: as `dct`.
      ValueError: as `dct`.
    """
    return _trigonometric("dst", n, type, norm, radix, dtype)


def fourier_factors(
    sizes: tuple[int, ...], scale: float = 0.0, sign: Literal[-1, 1] = -1
) -> tuple[NDArray[np.complex128], ...]:
    """Factors K₁…K_L, which `twiddles.digit_reversal` makes a Fourier transform of.

    Args:
      sizes: of the blocks, with the product n.
      scale: the power of n that the product is multiplied by.
      sign: of the exponents.

    Returns:
      An array for each factor.
    """
    n = math.prod(sizes)
    roots = np.exp(sign * 2j * np.pi * np.arange(n) / n)
    return tuple(
        roots[powers] * float(r) ** scale
        for r, powers in zip(sizes, twiddles.exponents(sizes), strict=True)
    )


def real_form(
    factors: Sequence[NDArray[np.complex128]],
    *,
    real_input: bool = False,
    real_output: bool = False,
) -> tuple[NDArray[np.float64], ...]:
    """Real factors that do with real and imaginary parts what complex ones do.

    The input has the parts as its last index, (n, 2), the output as its first, (2, n).
    Each factor takes (digit, part) and gives (part, digit): the part ends before all
    digits that are done, where the next factor wants it, so the chain needs no
    permutation. In a transposed chain the two exchange their roles.

    Args:
      factors: (a, b, c, d) each, of a chain whose `d` grows from right to left.
      real_input: whether the imaginary part of the input is 0, and left out.
      real_output: whether the imaginary part of the output is left out.

    Returns:
      Arrays of shapes (a, 2b, 2c, d); b or c is not doubled where a part is left out.
    """
    found = []
    for i, factor in enumerate(factors):
        rows = np.stack(
            [
                np.stack([factor.real, -factor.imag], axis=3),
                np.stack([factor.imag, factor.real], axis=3),
            ],
            axis=1,
        )  # (a, part, b, c, part, d)
        if real_output and i == 0:
            rows = rows[:, :1]
        if real_input and i == len(factors) - 1:
            rows = rows[:, :, :, :, :1]
        a, p, b, c, q, d = rows.shape
        found.append(rows.reshape(a, p * b, c * q, d))
    return tuple(found)


def _dft(
    function: str,
    n: int,
    norm: Norm,
    radix: int,
    given: DTypeLike | None,
    *,
    sign: Literal[-1, 1],
) -> tuple[Link, ...]:
    sizes = twiddles.radices(function, n, radix)
    factors = fourier_factors(sizes, power(function, norm), sign)
    return _chain(function, factors, sizes, given)


def _trigonometric(
    function: Literal["dct", "dst"],
    n: int,
    kind: int,
    norm: Norm,
    radix: int,
    given: DTypeLike | None,
) -> tuple[Link, ...]:
    """A cosine or sine transform by a Fourier transform of the same size.

    Makhoul, "A fast cosine transform in one and two dimensions" (1980): the even
    entries of x, then the odd ones backwards, make v. For type 2,
    Σ_j x_j exp(∓πi k(2j+1)/2n) is exp(-πi k/2n) Σ_t v_t exp(-2πi kt/n), the upper sign
    for even j, the lower for odd ones: cosines are its real part; for sines, odd
    entries change their sign. Type 4 has half of an index more.
    """
    checks.choice(function, "type", kind, (2, 3, 4))
    sizes = twiddles.radices(function, n, radix)
    scale = power(function, norm)
    is_sine = function == "dst"
    k = t = np.arange(n)
    backwards = t >= (n + 1) // 2
    if kind == 4:
        rows = np.exp(-1j * np.pi * (2 * k + 1) / (4 * n))
        columns = np.exp(-1j * np.pi * t / n)
        negative = backwards & (not is_sine)
    else:
        shift = int(is_sine)  # Sines start at frequency 1.
        rows = np.exp(-1j * np.pi * (k + shift) / (2 * n))
        columns = np.exp(-2j * np.pi * t * shift / n)
        negative = backwards & is_sine
    weights = np.full(n, {"backward": 2.0, "ortho": math.sqrt(2), "forward": 1.0}[norm])
    # The constant cosine, or the sine of the highest frequency, has twice the norm of
    # the others; in the unnormalised transposed sums it is counted once.
    if kind == 2 and norm == "ortho":
        weights[-1 if is_sine else 0] = 1
    if kind == 3:
        weights[-1 if is_sine else 0] *= math.sqrt(0.5) if norm == "ortho" else 0.5
    factors = _real_part(
        sizes,
        scale,
        rows * weights * (1j if is_sine else 1),
        np.where(negative, -columns, columns),
    )
    order = np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2)[::-1]])
    if kind != 3:
        return _chain(function, factors, sizes, given, order)
    turned = [factor.swapaxes(1, 2) for factor in reversed(factors)]
    *arrays, permutation = _chain(function, turned, sizes, given, order)
    assert isinstance(permutation, Permutation)
    return (permutation.transpose, *arrays)


def _real_part(
    sizes: tuple[int, ...], scale: float, rows: Weights, columns: Weights
) -> tuple[NDArray[np.float64], ...]:
    """Real factors of x ↦ Re(rows · F(columns · x)), of digits that are reversed."""
    factors = [*fourier_factors(sizes, scale)]
    _, r, _, d = factors[0].shape
    factors[0] = factors[0] * rows.reshape(1, r, 1, d)
    a, _, r, _ = factors[-1].shape
    factors[-1] = factors[-1] * columns[twiddles.digit_reversal(sizes)].reshape(
        a, 1, r, 1
    )
    return real_form(factors, real_input=True, real_output=True)


def _chain(
    function: str,
    factors: Sequence[Weights],
    sizes: tuple[int, ...],
    given: DTypeLike | None,
    order: NDArray[np.int64] | None = None,
) -> tuple[Link, ...]:
    """The factors as arrays, and the permutation that comes before them."""
    found = dtype(function, given, is_complex=np.iscomplexobj(factors[0]))
    arrays: list[jax.Array] = [jnp.asarray(factor, found) for factor in factors]
    digits = twiddles.digit_reversal(sizes)
    return (*arrays, Permutation(digits if order is None else order[digits]))
