"""Number-theoretic transforms: butterfly chains over the integers modulo a prime.

Integers are uint32 below the modulus, an odd prime below 2³¹, and all results are
exact, with 64 bits enabled in JAX or not: products are reduced as Montgomery did, out
of halves of 16 bits. Links are those of real chains, factors of shapes (a, b, c, d)
among them; exponents in the twiddles are the Fourier transform's (`twiddles`).
"""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from butterjax import array_checks, checks, twiddles
from butterjax.links import Diagonal, Link, LinkLike, Permutation, features

Wrap = Literal["cyclic", "negacyclic"]

_WRAPS: tuple[Wrap, ...] = ("cyclic", "negacyclic")
_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)


def ntt(
    n: int, modulus: int, *, wrap: Wrap = "cyclic", radix: int = 2
) -> tuple[Link, ...]:
    """The number-theoretic transform X_k = Σ_j x_j ω^{jk} mod p.

    ω is the smallest generator's power of order n. The negacyclic transform, of ψ² = ω,
    is that of x_j ψ^j: its products are of polynomials modulo xⁿ + 1.

    Args:
      n: features, a divisor of p - 1, or half of one for negacyclic transforms.
      modulus: an odd prime p below 2³¹.
      wrap: "cyclic" or "negacyclic".
      radix: the largest block, as of `butterjax.transforms.dft`.

    Returns:
      Factors, a `Permutation` and, if negacyclic, a `Diagonal`, of uint32.

    Raises:
      TypeError: if a number is no integer.
      ValueError: if p is no such prime or has no such root, radix is below 2 or the
        wrap unknown.
    """
    return _transform("ntt", n, modulus, wrap, radix, inverse=False)


def intt(
    n: int, modulus: int, *, wrap: Wrap = "cyclic", radix: int = 2
) -> tuple[Link, ...]:
    """The inverse of `ntt` of the same arguments.

    Args:
      n: as in `ntt`.
      modulus: as in `ntt`.
      wrap: as in `ntt`.
      radix: as in `ntt`.

    Returns:
      A `Diagonal`, factors and a `Permutation`, of uint32.

    Raises:
      TypeError: as `ntt`.
      ValueError: as `ntt`.
    """
    return _transform("intt", n, modulus, wrap, radix, inverse=True)


def butterfly(x: ArrayLike, factors: Iterable[LinkLike], modulus: int) -> jax.Array:
    """Applies a chain of integers modulo a prime along the last axis.

    Args:
      x: (*batch, in_features) of integers; negative and large ones are reduced.
      factors: links of integers from 0 to modulus - 1, the last one touching x first.
      modulus: an odd prime below 2³¹.

    Returns:
      (*batch, out_features), uint32.

    Raises:
      TypeError: if x or a factor is not of integers.
      ValueError: if sizes do not fit, or the modulus is no such prime.
    """
    function = "modular.butterfly"
    modulus = _modulus(function, modulus)
    array = _integers(function, "x", x)
    links = [*itertools.chain(*array_checks.links(function, factors))]
    for leaf in jax.tree.leaves(links):
        _integers(function, "factors", leaf)
    needed = features(links[-1])[1]
    if not array.ndim or array.shape[-1] != needed:
        raise ValueError(
            f"{function}: x of shape {array.shape} must have the {needed} features "
            "that the last link takes along its last axis"
        )
    y: jax.Array = _apply(array, tuple(links), modulus=modulus)
    return y


def convolve(
    f: ArrayLike, g: ArrayLike, modulus: int, *, wrap: Wrap = "cyclic", radix: int = 2
) -> jax.Array:
    """The product of polynomials modulo a prime and xⁿ - 1 or xⁿ + 1.

    Args:
      f: (*batch, n), coefficients from the constant one on.
      g: (*batch, n), broadcast against f.
      modulus: an odd prime p below 2³¹ that has roots of unity for n; see `ntt`.
      wrap: "cyclic" for xⁿ - 1, "negacyclic" for xⁿ + 1.
      radix: as in `ntt`.

    Returns:
      (*batch, n), uint32.

    Raises:
      TypeError: if f or g is not of integers.
      ValueError: if they differ in n, or as `ntt`.
    """
    function = "convolve"
    modulus = _modulus(function, modulus)
    left, right = _integers(function, "f", f), _integers(function, "g", g)
    if not left.ndim or not right.ndim or left.shape[-1] != right.shape[-1]:
        raise ValueError(
            f"{function}: f and g must have as many coefficients along their last "
            f"axes, got shapes {left.shape} and {right.shape}"
        )
    n = left.shape[-1]
    forward = _transform(function, n, modulus, wrap, radix, inverse=False)
    backward = _transform(function, n, modulus, wrap, radix, inverse=True)
    y: jax.Array = _convolve(left, right, forward, backward, modulus=modulus)
    return y


def multiply_polynomials(f: ArrayLike, g: ArrayLike, modulus: int) -> jax.Array:
    """The product of two polynomials modulo a prime.

    Args:
      f: (*batch, n), coefficients from the constant one on.
      g: (*batch, m), of batch axes that can be broadcast against those of f.
      modulus: an odd prime p below 2³¹ with p - 1 a multiple of a power of two that is
        at least n + m - 1.

    Returns:
      (*batch, n + m - 1), uint32.

    Raises:
      TypeError: if f or g is not of integers.
      ValueError: if one has no coefficients, or the modulus is no such prime.
    """
    function = "multiply_polynomials"
    modulus = _modulus(function, modulus)
    left, right = _integers(function, "f", f), _integers(function, "g", g)
    for name, one in (("f", left), ("g", right)):
        if not one.ndim or not one.shape[-1]:
            raise ValueError(
                f"{function}: {name} must have at least one coefficient along its last "
                f"axis, got shape {one.shape}"
            )
    length = left.shape[-1] + right.shape[-1] - 1
    n = 1 << (length - 1).bit_length()

    def padded(one: jax.Array) -> jax.Array:
        return jnp.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, n - one.shape[-1])])

    return convolve(padded(left), padded(right), modulus)[..., :length]


def _transform(
    function: str, n: int, modulus: int, wrap: Wrap, radix: int, *, inverse: bool
) -> tuple[Link, ...]:
    sizes = twiddles.radices(function, n, radix)
    modulus = _modulus(function, modulus)
    checks.choice(function, "wrap", wrap, _WRAPS)
    n = math.prod(sizes)
    order = n if wrap == "cyclic" else 2 * n
    if (modulus - 1) % order:
        raise ValueError(
            f"{function}: modulus must be 1 more than a multiple of {order} for "
            f"{wrap} transforms of n={n}, got {modulus}"
        )
    root = pow(_generator(modulus), (modulus - 1) // order, modulus)
    if inverse:
        root = pow(root, -1, modulus)
    powers = _powers(pow(root, order // n, modulus), n, modulus)
    factors = [jnp.asarray(powers[one]) for one in twiddles.exponents(sizes)]
    links: list[Link] = [*factors, Permutation(twiddles.digit_reversal(sizes))]
    shifts = np.ones(n, np.uint32) if order == n else _powers(root, n, modulus)
    if inverse:
        scaled = shifts.astype(np.uint64) * np.uint64(pow(n, -1, modulus))
        scale = jnp.asarray((scaled % np.uint64(modulus)).astype(np.uint32))
        return (Diagonal(scale), *links)
    return (*links, Diagonal(jnp.asarray(shifts))) if order > n else tuple(links)


def _powers(root: int, count: int, modulus: int) -> NDArray[np.uint32]:
    """The powers 0, …, count - 1 of an integer."""
    found = itertools.accumulate(
        range(count - 1), lambda power, _: power * root % modulus, initial=1
    )
    return np.fromiter(found, np.uint32, count)


@functools.lru_cache(maxsize=64)
def _generator(prime: int) -> int:
    """The smallest integer whose powers are all integers but 0 modulo a prime."""
    orders = [(prime - 1) // q for q in {*twiddles.prime_factors(prime - 1)}]
    return next(
        g for g in range(2, prime) if all(pow(g, order, prime) != 1 for order in orders)
    )


@functools.lru_cache(maxsize=64)
def _is_prime(number: int) -> bool:
    return number > 1 and len(twiddles.prime_factors(number)) == 1


def _modulus(function: str, given: Any) -> int:
    modulus = checks.integer(function, "modulus", given)
    if not 2 < modulus < 2**31 or not _is_prime(modulus):
        raise ValueError(
            f"{function}: modulus must be an odd prime below 2³¹, got {modulus}"
        )
    return modulus


def _integers(function: str, name: str, given: Any) -> jax.Array:
    found = array_checks.array(function, name, given)
    if not jnp.issubdtype(found.dtype, jnp.integer):
        raise TypeError(
            f"{function}: {name} must be of integers, got {checks.shown(found)}"
        )
    return found


def _reduced(x: jax.Array, modulus: int) -> jax.Array:
    """Integers of any type as uint32 below the modulus."""
    if jnp.iinfo(x.dtype).bits < 32:
        x = x.astype(jnp.int32)
    return (x % jnp.asarray(modulus, x.dtype)).astype(jnp.uint32)


@functools.partial(jax.jit, static_argnames="modulus")
def _apply(x: jax.Array, links: tuple[Link, ...], *, modulus: int) -> jax.Array:
    x = _reduced(x, modulus)
    square = jnp.uint32(2**64 % modulus)
    for link in reversed(links):
        if isinstance(link, Permutation):
            x = link.apply(x, -1)
            continue
        given = link.values if isinstance(link, Diagonal) else link
        # 2³² w: what the reduction of a product divides by.
        weights = _montgomery(_reduced(given, modulus), square, modulus)
        if isinstance(link, Diagonal):
            x = _montgomery(weights, x, modulus)
            continue
        a, b, c, d = weights.shape
        blocks = x.reshape(*x.shape[:-1], a, 1, c, d)
        terms = (
            _montgomery(weights[:, :, l], blocks[..., l, :], modulus) for l in range(c)
        )
        y = functools.reduce(functools.partial(_add, modulus=modulus), terms)
        x = y.reshape(*x.shape[:-1], a * b * d)
    return x


@functools.partial(jax.jit, static_argnames="modulus")
def _convolve(
    f: jax.Array,
    g: jax.Array,
    forward: tuple[Link, ...],
    backward: tuple[Link, ...],
    *,
    modulus: int,
) -> jax.Array:
    left, right = (_apply(one, forward, modulus=modulus) for one in (f, g))
    square = jnp.uint32(2**64 % modulus)
    product = _montgomery(_montgomery(left, square, modulus), right, modulus)
    return _apply(product, backward, modulus=modulus)


def _add(x: jax.Array, y: jax.Array, modulus: int) -> jax.Array:
    total = x + y  # Below 2³².
    return jnp.minimum(total, total - jnp.uint32(modulus))


def _montgomery(x: jax.Array, y: jax.Array, modulus: int) -> jax.Array:
    """x·y / 2³² modulo the modulus, of integers below it (Montgomery, 1985)."""
    p = jnp.uint32(modulus)
    low = x * y
    multiple = low * jnp.uint32(-pow(modulus, -1, 2**32) % 2**32)
    # low + multiple·p is a multiple of 2³², with a carry unless both are 0.
    total = _high(x, y) + _high(multiple, p) + (low != 0).astype(jnp.uint32)
    return jnp.minimum(total, total - p)


def _high(x: jax.Array, y: jax.Array) -> jax.Array:
    """The upper 32 bits of x·y, from products of 16 bits each."""
    x0, x1, y0, y1 = x & _LOW, x >> _HALF, y & _LOW, y >> _HALF
    first, second = x1 * y0, x0 * y1
    middle = (x0 * y0 >> _HALF) + (first & _LOW) + (second & _LOW)
    return x1 * y1 + (first >> _HALF) + (second >> _HALF) + (middle >> _HALF)
