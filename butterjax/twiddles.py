"""The pattern of fast Fourier transforms over any ring: radices, exponents, digits.

Decimation in time: for n = r₁r₂…r_L, the matrix of the powers ω^{jk} of an n-th root of
unity is K₁K₂…K_L P. Factor i has the pattern (r₁…r_{i-1}, r_i, r_i, r_{i+1}…r_L), its
weights are powers of ω, and P reverses the digits of an index. NumPy integers only.
"""

import math

import numpy as np
from numpy.typing import NDArray

from butterjax import checks

_LARGEST_PRIME = 2**10  # A block of as many rows, repeated, is as large as the matrix.


def prime_factors(n: int) -> tuple[int, ...]:
    """The primes whose product is n, the smallest first."""
    primes = []
    candidate = 2
    while candidate * candidate <= n:
        while n % candidate == 0:
            primes.append(candidate)
            n //= candidate
        candidate += 1
    return (*primes, n) if n > 1 else tuple(primes)


def radices(function: str, n: int, radix: int) -> tuple[int, ...]:
    """The sizes r₁, …, r_L of the blocks of a transform of n features.

    Args:
      function: who asks, for messages.
      n: the features.
      radix: blocks have at most as many rows, but where a prime of n is larger.

    Raises:
      TypeError: if one is no integer.
      ValueError: if n is below 1 or has too large a prime, or radix is below 2.
    """
    n = checks.size(function, "n", n)
    radix = checks.integer(function, "radix", radix, least=2)
    primes = prime_factors(n)
    if primes and primes[-1] > _LARGEST_PRIME:
        raise ValueError(
            f"{function}: n must be a product of primes up to {_LARGEST_PRIME}, got "
            f"{n}, whose largest is {primes[-1]}"
        )
    found = [1]
    for prime in primes:
        if found[-1] * prime <= radix:
            found[-1] *= prime
        else:
            found.append(prime)
    return tuple(found) if found[0] > 1 or len(found) == 1 else tuple(found[1:])


def power_of_two(function: str, n: int) -> int:
    """The size of a transform that has one for powers of two only.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is no power of two.
    """
    n = checks.size(function, "n", n)
    if n & (n - 1):
        raise ValueError(f"{function}: n must be a power of two, got {n}")
    return n


def exponents(sizes: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """Exponents of the n-th root of unity, mod n, in each factor.

    Args:
      sizes: r₁, …, r_L, with the product n.

    Returns:
      An array for each factor, of the shape of its pattern.
    """
    n = math.prod(sizes)
    found = []
    a = 1
    for r in sizes:
        d = n // (a * r)
        frequency = np.arange(r)[:, None, None] * d + np.arange(d)
        block = a * (np.arange(r)[:, None] * frequency) % n
        found.append(np.broadcast_to(block, (a, r, r, d)))
        a *= r
    return tuple(found)


def digit_reversal(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Where each feature comes from that the last factor takes, of shape (n,)."""
    indices = np.arange(math.prod(sizes)).reshape(sizes[::-1])
    return indices.transpose().reshape(-1)
