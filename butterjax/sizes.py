"""How feature sizes split into the patterns of a chain: plain number theory."""

import functools
import math
import operator
from collections.abc import Callable

Sizes = tuple[int, int, int, int]  # (a, b, c, d)
_Cost = tuple[int, int, int]  # Lost rank, weights, size of the blocks.


def _prime_factors(n: int) -> list[int]:
    """Prime factors of n with multiplicity, ascending."""
    primes = []
    p = 2
    while p * p <= n:
        while n % p == 0:
            primes.append(p)
            n //= p
        p += 1
    return primes + [n] * (n > 1)


def divisors(n: int) -> list[int]:
    """Divisors of n, ascending."""
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    return small + [n // i for i in reversed(small) if i * i != n]


def _nearest(n: int, suits: Callable[[int], bool], smallest: int) -> str:
    """Names the nearest sizes below and above n that suit.

    Powers of two suit from `smallest` on, so that there is one below 2n or it is it.
    """
    below = next((m for m in range(n - 1, 1, -1) if suits(m)), None)
    above = next((m for m in range(n + 1, 2 * n + 1) if suits(m)), smallest)
    return f"{above}" if below is None else f"{below} and {above}"


def split(in_features: int, out_features: int, num_factors: int) -> tuple[Sizes, ...]:
    """Patterns of the best chain of that many factors; see `Chain.from_shape`.

    Raises:
      ValueError: if a size is not a product of so many integers above 1.
    """
    length = operator.index(num_factors)
    if length < 1:
        raise ValueError(f"Chain: num_factors must be at least 1, got {length}")

    def suits(n: int) -> bool:
        return len(_prime_factors(n)) >= length or length == 1

    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if not suits(size):
            raise ValueError(
                f"Chain: {name}={size} is not a product of {length} integers above 1; "
                f"the nearest sizes that are: {_nearest(size, suits, 2**length)}"
            )
    found = _best_split(
        in_features, out_features, length, max(in_features, out_features)
    )
    assert found is not None
    return found


def split_by_block(
    in_features: int, out_features: int, max_block: int
) -> tuple[Sizes, ...]:
    """Patterns of the best of the shortest chains; see `Chain.from_shape`.

    Raises:
      ValueError: if no chain has blocks of at most max_block × max_block.
    """
    largest = operator.index(max_block)
    if largest < 2:
        raise ValueError(f"Chain: max_block must be at least 2, got {largest}")

    def suits(n: int) -> bool:
        return max(_prime_factors(n), default=1) <= largest

    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if not suits(size):
            raise ValueError(
                f"Chain: {name}={size} has a prime factor above max_block={largest}; "
                f"the nearest sizes that have none: {_nearest(size, suits, 2)}"
            )
    most = min(len(_prime_factors(n)) for n in (in_features, out_features))
    for length in range(1, max(most, 1) + 1):
        if found := _best_split(in_features, out_features, length, largest):
            return found
    raise ValueError(
        f"Chain: in_features={in_features} and out_features={out_features} have no "
        f"common number of factors with blocks of at most max_block={largest}; the "
        f"narrower end allows {most} factors: raise max_block"
    )


@functools.lru_cache(maxsize=256)
def _best_split(
    in_features: int, out_features: int, length: int, max_block: int
) -> tuple[Sizes, ...] | None:
    """The best chain of `length` factors by (lost rank, weights, block size).

    A shortest path over the states (p₁…p_i, q₁…q_i): a step by (p, q) is a factor of
    p₁…p_i · q · p · q_{i+1}…q_L weights, a state is a middle size.
    """
    narrow = min(in_features, out_features)
    paths: dict[tuple[int, int], tuple[_Cost, tuple[Sizes, ...]]]
    paths = {(1, 1): ((0, 0, 0), ())}
    for step in range(1, length + 1):
        longer: dict[tuple[int, int], tuple[_Cost, tuple[Sizes, ...]]] = {}
        for (done_in, done_out), ((lost, weights, blocks), sizes) in paths.items():
            rest_in, rest_out = in_features // done_in, out_features // done_out
            last = step == length
            for p in [rest_in] if last else divisors(rest_in)[1:]:
                for q in [rest_out] if last else divisors(rest_out)[1:]:
                    if max(p, q) > max_block or (length > 1 and min(p, q) == 1):
                        continue
                    d = rest_out // q
                    cost = (
                        lost + max(0, narrow - done_in * q * d),
                        weights + done_in * q * p * d,
                        blocks + p + q,
                    )
                    state = (done_in * p, done_out * q)
                    if state not in longer or cost < longer[state][0]:
                        longer[state] = (cost, (*sizes, (done_in, q, p, d)))
        paths = longer
    found = paths.get((in_features, out_features))
    return found[1] if found else None
