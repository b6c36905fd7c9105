"""How feature sizes split into the patterns of a chain: plain number theory."""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Iterator

Sizes = tuple[int, int, int, int]  # (a, b, c, d)

_MOST_FACTORS = 31  # A size has no more prime factors.
_SCANNED = 1000  # Sizes on either side among which errors look for one that suits.
_MOST_STEPS = 200_000  # Of a search: some tenths of a second.


def _prime_factors(n: int) -> list[int]:
    """Prime factors of n with multiplicity, ascending."""
    primes = []
    for p in itertools.chain([2], itertools.count(3, 2)):
        if p * p > n:
            break
        while n % p == 0:
            primes.append(p)
            n //= p
    return primes + [n] * (n > 1)


def divisors(n: int) -> list[int]:
    """Divisors of n, ascending."""
    found = {1}
    for p in _prime_factors(n):
        found |= {p * divisor for divisor in found}
    return sorted(found)


def _near(n: int, suits: Callable[[int], bool], smallest: int) -> str:
    """Names sizes below and above n that suit, the nearest ones unless they are far.

    Powers of two suit from `smallest` on.
    """
    power = 1 << (n.bit_length() - 1)
    scanned = range(n - 1, max(n - _SCANNED, 1), -1)
    below = next(filter(suits, scanned), power if power >= smallest else None)
    scanned = range(n + 1, n + _SCANNED)
    above = next(filter(suits, scanned), max(2 * power, smallest))
    return f"{above}" if below is None else f"{below} and {above}"


def split(in_features: int, out_features: int, num_factors: int) -> tuple[Sizes, ...]:
    """Patterns of the best chain of that many factors; see `Chain.from_shape`.

    Raises:
      ValueError: if a size is not a product of so many integers above 1, or there are
        too many ways.
    """
    if num_factors > _MOST_FACTORS:
        raise ValueError(
            f"Chain: num_factors={num_factors} is more than any size has prime factors"
        )

    def suits(n: int) -> bool:
        return len(_prime_factors(n)) >= num_factors or num_factors == 1

    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if not suits(size):
            raise ValueError(
                f"Chain: {name}={size} is not a product of num_factors={num_factors} "
                "integers above 1; near sizes that are: "
                f"{_near(size, suits, 2**num_factors)}"
            )
    largest = max(in_features, out_features)
    found = _best_split(in_features, out_features, num_factors, largest)
    assert found is not None
    return found


def split_by_block(
    in_features: int, out_features: int, max_block: int
) -> tuple[Sizes, ...]:
    """Patterns of the best of the shortest chains; see `Chain.from_shape`.

    Raises:
      ValueError: if no chain has blocks of at most max_block × max_block, or there are
        too many.
    """

    def suits(n: int) -> bool:
        return max(_prime_factors(n), default=1) <= max_block

    for name, size in (("in_features", in_features), ("out_features", out_features)):
        if not suits(size):
            raise ValueError(
                f"Chain: {name}={size} has a prime factor above max_block={max_block}; "
                f"near sizes that have none: {_near(size, suits, 2)}"
            )
    most = min(len(_prime_factors(n)) for n in (in_features, out_features))
    for length in range(1, max(most, 1) + 1):
        if found := _best_split(in_features, out_features, length, max_block):
            return found
    raise ValueError(
        f"Chain: in_features={in_features} and out_features={out_features} have no "
        f"common number of factors with blocks of at most max_block={max_block}; the "
        f"narrower end allows {most} factors: raise max_block"
    )


class _Blocks:
    """Ways to write divisors of one size as products of the sides of blocks."""

    def __init__(self, size: int, max_block: int, smallest: int) -> None:
        self._all = [n for n in divisors(size) if smallest <= n <= max_block]
        self._of: dict[int, list[int]] = {}
        self._sums: dict[tuple[int, int], float] = {(1, 0): 0}

    def of(self, rest: int) -> list[int]:
        """The divisors of `rest` that a block may have, ascending."""
        if rest not in self._of:
            self._of[rest] = [n for n in self._all if rest % n == 0]
        return self._of[rest]

    def least_sum(self, rest: int, times: int) -> float:
        """The least sum of so many sides with the product `rest`; inf for none."""
        key = (rest, times)
        if key not in self._sums:
            # The shortest side is at most the root; if there is but one, it is all.
            shortest = (n for n in self.of(rest) if times == 1 or n**times <= rest)
            sums = (n + self.least_sum(rest // n, times - 1) for n in shortest)
            self._sums[key] = min(sums, default=math.inf) if times else math.inf
        return self._sums[key]


# Weights, sum of the blocks' sides, and the sides (p₁, q₁), (p₂, q₂), … themselves.
_Path = tuple[int, int, tuple[tuple[int, int], ...]]


@functools.lru_cache(maxsize=256)
def _best_split(
    in_features: int, out_features: int, length: int, max_block: int
) -> tuple[Sizes, ...] | None:
    """The best chain of `length` factors by (weights, block size, sizes).

    Raises:
      ValueError: if the search takes too many steps.
    """
    search = _Search(in_features, out_features, length, max_block)
    least, excess = search.least(), 1e-3
    if math.isinf(least):
        return None
    while not (path := search.best(least * (1 + excess))):
        excess *= 2
    made, done_in, rest_out = [], 1, out_features
    for p, q in path:
        rest_out //= q
        made.append((done_in, q, p, rest_out))
        done_in *= p
    return tuple(made)


class _Search:
    """A shortest path over the states (P, Q) = (p₁…p_i, q₁…q_i).

    A step to (P', Q') is a factor of P'·out/Q weights. States are those whose middle
    size P·out/Q is at or above the narrower end, so that no rank is lost. From each of
    them there is a way on if both rests split into as many blocks as there are steps
    left: with the largest p and the smallest q first, middle sizes stay above their
    geometric interpolation to in_features.
    """

    def __init__(
        self, in_features: int, out_features: int, length: int, max_block: int
    ) -> None:
        smallest = 2 if length > 1 else 1
        self._in, self._out, self._length = in_features, out_features, length
        self._narrow = min(in_features, out_features)
        self._ps = _Blocks(in_features, max_block, smallest)
        self._qs = _Blocks(out_features, max_block, smallest)
        self._steps = 0
        # The least product of the middle sizes between so many factors at the right
        # end: blocks of 2 × max_block change a middle size the most.
        self._middles = [1.0, 1.0]
        for left in range(1, length):
            least = max(
                self._narrow,
                in_features * (2 / max_block) ** left,
                out_features * (2 / max_block) ** (length - left),
            )
            self._middles.append(self._middles[-1] * least)

    def least(self) -> float:
        """A lower bound on the weights; infinite if there is no chain."""
        sums = (
            self._ps.least_sum(self._in, self._length),
            self._qs.least_sum(self._out, self._length),
        )
        return max(self._least_after(1, 1, self._length), self._narrow * max(sums))

    def best(self, limit: float) -> tuple[tuple[int, int], ...]:
        """The blocks (p, q) of the best path of at most `limit` weights; () if none."""
        paths: dict[tuple[int, int], _Path] = {(1, 1): (0, 0, ())}
        for left in reversed(range(self._length)):
            longer: dict[tuple[int, int], _Path] = {}
            for state, (weights, sides, blocks) in paths.items():
                for step, p, q in self._next(state, left, limit - weights):
                    path = (weights + step, sides + p + q, (*blocks, (p, q)))
                    new = (state[0] * p, state[1] * q)
                    if new not in longer or path < longer[new]:
                        longer[new] = path
            paths = longer
        return min(paths.values())[2] if paths else ()

    def _next(
        self, state: tuple[int, int], left: int, limit: float
    ) -> Iterator[tuple[int, int, int]]:
        """Steps from which `left` more lead on within the limit: weights, p and q."""
        done_in, done_out = state
        rest_in, rest_out = self._in // done_in, self._out // done_out
        qs = self._qs.of(rest_out)
        for p in self._ps.of(rest_in):
            weights = done_in * p * rest_out
            room = (limit - weights) * (1 + 1e-12)  # Bounds are rounded.
            if room < 0:
                break
            if self._narrow * self._ps.least_sum(rest_in // p, left) > room:
                continue  # Weights are m·p and m'·q, with no m below the narrower end.
            for q in reversed(qs[: bisect.bisect_right(qs, weights // self._narrow)]):
                if self._least_after(done_in * p, done_out * q, left) > room:
                    break
                self._count()
                if self._narrow * self._qs.least_sum(rest_out // q, left) <= room:
                    yield weights, p, q

    def _least_after(self, done_in: int, done_out: int, left: int) -> float:
        """A lower bound on the weights of the last `left` factors, after a state.

        They are m·p = m'·q for the middle sizes m and m' to the left and right of a
        factor. Their product is in·out/Q times the middle sizes between them, and a sum
        is at least the geometric mean, as often. The first of them has at least 2m
        weights, the last at least 2·in.
        """
        if left == 0:
            return 0.0
        rest_out = self._out // done_out
        product = self._in * rest_out * self._middles[left]
        total = 0.0
        ends = (2 * done_in * rest_out, 2 * self._in)
        for end in sorted(ends, reverse=True):
            if left == 1 or end**left <= product:
                break
            total, product, left = total + end, product / end, left - 1
        return float(total + left * product ** (1 / left))

    def _count(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise ValueError(
                f"Chain: in_features={self._in} and out_features={self._out} split "
                f"into {self._length} factors in too many ways to search: list the "
                "patterns, Chain([(a, b, c, d), ...])"
            )
