"""Patterns and chains: the algebra of Kronecker-sparse factors.

Plain Python integers and NumPy, no JAX arrays. Notation of Gonon, Zheng, Carrivain
and Le, "Fast inference with Kronecker-sparse matrices" (arXiv 2405.15013).
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from butterjax import checks
from butterjax.sizes import split, split_by_block


class Shaped(Protocol):
    """Anything with a shape: a NumPy or JAX array, a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Pattern:
    """The support I_a ⊗ 1_{b×c} ⊗ I_d of one factor.

    A matrix of a·b·d rows and a·c·d columns made of a·d dense blocks of b × c. The
    weights of a factor are an array of shape (a, b, c, d): its shape is its pattern.

    Immutable and hashable: a static argument under jit and a dictionary key.

    Raises:
      ValueError: if one of a, b, c, d is below 1.
      TypeError: if one of them is not an integer.
    """

    a: int
    b: int
    c: int
    d: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = checks.integer("Pattern", name, getattr(self, name), least=1)
            object.__setattr__(self, name, value)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shape)

    def __str__(self) -> str:
        return f"({self.a}, {self.b}, {self.c}, {self.d})"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (a, b, c, d) of the array that holds the factor's weights."""
        return (self.a, self.b, self.c, self.d)

    @property
    def in_features(self) -> int:
        """Columns of the matrix, a·c·d."""
        return self.a * self.c * self.d

    @property
    def out_features(self) -> int:
        """Rows of the matrix, a·b·d."""
        return self.a * self.b * self.d

    @property
    def num_weights(self) -> int:
        """Entries that may be nonzero, a·b·c·d."""
        return self.a * self.b * self.c * self.d

    @property
    def density(self) -> float:
        """Share of the matrix that may be nonzero, 1/(a·d)."""
        return 1 / (self.a * self.d)

    @property
    def flops(self) -> int:
        """Floating-point operations per row of the batch, 2·a·b·c·d (real weights)."""
        return 2 * self.num_weights

    def bytes_per_row(self, itemsize: int) -> int:
        """Bytes moved per row of the batch: the input read once, the output written.

        Args:
          itemsize: bytes of one element.

        Raises:
          TypeError: if that is not an integer.
          ValueError: if it is below 1.
        """
        itemsize = checks.integer("bytes_per_row", "itemsize", itemsize, least=1)
        return itemsize * (self.in_features + self.out_features)

    @property
    def transpose(self) -> "Pattern":
        """Pattern (a, c, b, d) of the transposed matrix."""
        return Pattern(self.a, self.c, self.b, self.d)

    def why_not_chainable(self, right: "Pattern") -> str | None:
        """Says why the product with `right` has no Kronecker-sparse pattern.

        Two patterns are chainable when a₁ | a₂, d₂ | d₁ and a₁c₁/a₂ = b₂d₂/d₁ is an
        integer.

        Args:
          right: the factor on the right, the one that touches x first.

        Returns:
          The rule that is broken, with its numbers, or None if none is.
        """
        checks.instance("Pattern", "right", right, Pattern)
        names = f"{self}{right}"
        if self.in_features != right.out_features:
            return (
                f"{names}: the left factor takes {self.in_features} features, "
                f"the right one gives {right.out_features}"
            )
        if right.a % self.a:
            return f"{names}: a of the left, {self.a}, does not divide {right.a}"
        if self.d % right.d:
            return f"{names}: d of the right, {right.d}, does not divide {self.d}"
        if (self.a * self.c) % right.a:
            return (
                f"{names}: a₁c₁/a₂ = {self.a}·{self.c}/{right.a} is not an integer, "
                "so blocks of the two factors overlap in part"
            )
        return None

    def is_chainable(self, right: "Pattern") -> bool:
        """Whether the product with `right` has a Kronecker-sparse pattern."""
        return self.why_not_chainable(right) is None

    def __matmul__(self, right: "Pattern") -> "Pattern":
        """Pattern (a₁, b₁d₁/d₂, a₂c₂/a₁, d₂) of the product of two factors.

        Raises:
          ValueError: if the two are not chainable; the message says why.
        """
        if not isinstance(right, Pattern):
            return NotImplemented
        if reason := self.why_not_chainable(right):
            raise ValueError(f"not chainable: {reason}")
        return Pattern(
            self.a, self.b * self.d // right.d, right.a * right.c // self.a, right.d
        )

    def support(self) -> NDArray[np.bool_]:
        """Boolean matrix I_a ⊗ 1_{b×c} ⊗ I_d, of shape (a·b·d, a·c·d)."""
        block = np.kron(np.ones((self.b, self.c), bool), np.eye(self.d, dtype=bool))
        return np.kron(np.eye(self.a, dtype=bool), block)


@dataclasses.dataclass(frozen=True, slots=True)
class Chain:
    """A product of factors W = K₁K₂…K_L; the last one touches x first.

    Immutable and hashable: a static argument under jit and a dictionary key. Any two
    neighbours whose inner sizes agree may follow one another; `is_chainable` tells
    whether they can also be multiplied out into one Kronecker-sparse factor.

    Args:
      patterns: a `Pattern` or (a, b, c, d) for each factor, in the order of the
        matrix product.

    Raises:
      ValueError: if there is none, or two neighbours disagree on their inner size.
      TypeError: if one is not four integers.
    """

    patterns: tuple[Pattern, ...]

    def __init__(self, patterns: Iterable[Pattern | Sequence[int]]) -> None:
        what = "a sequence of patterns (a, b, c, d)"
        given = checks.sequence("Chain", "patterns", patterns, what)
        made = [_pattern(f"patterns[{i}]", one) for i, one in enumerate(given)]
        if not made:
            raise ValueError("Chain: patterns must hold at least one pattern")
        for i, (left, right) in enumerate(itertools.pairwise(made)):
            if left.in_features != right.out_features:
                raise ValueError(
                    f"Chain: factor {i} {left} takes a·c·d = {left.in_features} "
                    f"features but factor {i + 1} {right}, which comes before it, "
                    f"gives a·b·d = {right.out_features}"
                )
        object.__setattr__(self, "patterns", tuple(made))

    @staticmethod
    def of(factors: Iterable[Shaped]) -> "Chain":
        """The chain whose patterns are the shapes of `factors`.

        Args:
          factors: arrays of shapes (a, b, c, d), or `jax.ShapeDtypeStruct`s, in the
            order of the matrix product.

        Raises:
          ValueError: if there is none, one has not four axes, or two neighbours
            disagree on their inner size.
          TypeError: if it is not a sequence of arrays.
        """
        what = "a sequence of arrays, one for each factor"
        given = checks.sequence("Chain.of", "factors", factors, what)
        return _chain_of(checks.factor_shapes("Chain.of", given))

    @classmethod
    def square_dyadic(cls, n: int) -> Self:
        """The radix-2 chain: log₂n factors (2^i, 2, 2, n/2^(i+1)).

        Args:
          n: number of in- and out-features, a power of two and at least 2.

        Raises:
          ValueError: if n is no such number.
        """
        n = checks.integer("Chain.square_dyadic", "n", n)
        if n < 2 or n & (n - 1):
            raise ValueError(
                f"Chain.square_dyadic: n must be a power of two and at least 2, got {n}"
            )
        return cls([(2**i, 2, 2, n >> (i + 1)) for i in range(n.bit_length() - 1)])

    @classmethod
    def monarch(cls, in_features: int, out_features: int) -> Self:
        """Two factors (1, b, c, d)(a, b', c', 1): Dao et al., "Monarch", ICML 2022.

        Of all such chains whose middle is no narrower than the narrower end, the one
        with the fewest weights, then with the squarest blocks. For a square number n
        that is Monarch's own (1, √n, √n, √n)(√n, √n, √n, 1).

        Args:
          in_features: columns of the product.
          out_features: rows of the product.

        Raises:
          ValueError: if a size is not the product of two integers above 1; the
            message names near sizes that are.
        """
        return cls.from_shape(in_features, out_features, num_factors=2)

    @classmethod
    def from_shape(
        cls,
        in_features: int,
        out_features: int,
        *,
        num_factors: int | None = None,
        max_block: int | None = None,
    ) -> Self:
        """A chainable chain whose product is a full matrix of the given shape.

        Both sizes are split into as many integers above 1 as there are factors,
        in_features = p₁…p_L and out_features = q₁…q_L, and factor i is
        (p₁…p_{i-1}, q_i, p_i, q_{i+1}…q_L). Among all splits, the one that keeps the
        middle sizes at or above the narrower end (so that no rank is lost), then has
        the fewest weights, then the squarest blocks, then the smallest ones first.

        Args:
          in_features: columns of the product.
          out_features: rows of the product.
          num_factors: the number of factors L.
          max_block: instead of `num_factors`: the fewest factors whose blocks are at
            most max_block × max_block.

        Raises:
          ValueError: if not exactly one of the two is given, a size is below 1 or
            above 2³¹ - 1, or has no such split (the message names near sizes that
            have), or there are too many ways to search (of millions of features).
        """
        if (num_factors is None) == (max_block is None):
            raise ValueError(
                "Chain.from_shape: give one of num_factors and max_block, got "
                f"num_factors={num_factors}, max_block={max_block}"
            )
        in_features = checks.size("Chain", "in_features", in_features)
        out_features = checks.size("Chain", "out_features", out_features)
        if num_factors is not None:
            length = checks.integer("Chain", "num_factors", num_factors, least=1)
            return cls(split(in_features, out_features, length))
        largest = checks.integer("Chain", "max_block", max_block, least=2)
        return cls(split_by_block(in_features, out_features, largest))

    def __len__(self) -> int:
        return len(self.patterns)

    def __iter__(self) -> Iterator[Pattern]:
        return iter(self.patterns)

    def __getitem__(self, index: int) -> Pattern:
        return self.patterns[index]

    def __matmul__(self, right: "Chain") -> "Chain":
        """The chain of the matrix product: `right` touches x first."""
        if not isinstance(right, Chain):
            return NotImplemented
        return Chain(self.patterns + right.patterns)

    def __repr__(self) -> str:
        return f"Chain([{', '.join(map(str, self.patterns))}])"

    def __str__(self) -> str:
        patterns = "".join(map(str, self.patterns))
        share = self.num_weights / (self.in_features * self.out_features)
        return (
            f"{self.in_features} -> {self.out_features}: {patterns}, "
            f"{self.num_weights:,} weights, {share:.1%} of dense"
        )

    @property
    def in_features(self) -> int:
        """Features of x."""
        return self.patterns[-1].in_features

    @property
    def out_features(self) -> int:
        """Features of W x."""
        return self.patterns[0].out_features

    @property
    def shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """Shapes of the factors' arrays."""
        return tuple(pattern.shape for pattern in self.patterns)

    @property
    def num_weights(self) -> int:
        """Weights of all factors together."""
        return sum(pattern.num_weights for pattern in self.patterns)

    @property
    def density(self) -> float:
        """Share of the product W that may be nonzero.

        Raises:
          ValueError: if the chain is not chainable.
        """
        return self.product.density

    @property
    def flops(self) -> int:
        """Floating-point operations per row of the batch, factor by factor."""
        return sum(pattern.flops for pattern in self.patterns)

    def bytes_per_row(self, itemsize: int) -> int:
        """Bytes moved per row of the batch when each factor is applied on its own.

        Applied in one pass a chain moves itemsize·(in_features + out_features).

        Args:
          itemsize: bytes of one element.

        Raises:
          TypeError: if that is not an integer.
          ValueError: if it is below 1.
        """
        return sum(pattern.bytes_per_row(itemsize) for pattern in self.patterns)

    @property
    def transpose(self) -> "Chain":
        """The chain of Wᵀ = K_Lᵀ…K₁ᵀ."""
        return Chain(pattern.transpose for pattern in reversed(self.patterns))

    def why_not_chainable(self) -> str | None:
        """The first pair of neighbours that cannot be multiplied out, or None."""
        pairs = itertools.pairwise(self.patterns)
        reasons = (left.why_not_chainable(right) for left, right in pairs)
        return next((reason for reason in reasons if reason), None)

    @property
    def is_chainable(self) -> bool:
        """Whether all neighbours are chainable, so that W has one pattern."""
        return self.why_not_chainable() is None

    @property
    def product(self) -> Pattern:
        """Pattern of the product W.

        Raises:
          ValueError: if the chain is not chainable; the message says why.
        """
        return functools.reduce(operator.matmul, self.patterns)

    def runs(self, partition: Sequence[int]) -> tuple["Chain", ...]:
        """Cuts the chain into consecutive runs.

        Args:
          partition: lengths of the runs, in the order of the matrix product.

        Raises:
          ValueError: if the lengths are not positive or do not add up to len(self).
        """
        given = checks.sequence("Chain", "partition", partition, "run lengths")
        lengths = [
            checks.integer("Chain", f"partition[{i}]", length)
            for i, length in enumerate(given)
        ]
        if any(length < 1 for length in lengths) or sum(lengths) != len(self):
            raise ValueError(
                f"Chain: partition must be positive run lengths that add up to "
                f"{len(self)}, the number of factors; got {given}"
            )
        ends = np.cumsum(lengths)
        return tuple(
            Chain(self.patterns[end - length : end])
            for end, length in zip(ends, lengths, strict=True)
        )

    def fuse(self, partition: Sequence[int]) -> "Chain":
        """Multiplies out consecutive runs of factors, one factor for each run.

        Args:
          partition: lengths of the runs; (2, 1, 3) makes three factors out of six.

        Raises:
          ValueError: if the lengths do not add up, or a run is not chainable.
        """
        return Chain(run.product for run in self.runs(partition))


@functools.lru_cache(maxsize=1024)
def _chain_of(shapes: tuple[tuple[int, int, int, int], ...]) -> Chain:
    """Kept, since layers ask for it at every call."""
    return Chain(shapes)


def _pattern(name: str, given: Pattern | Sequence[int]) -> Pattern:
    """A pattern that is given as one or as four integers."""
    if isinstance(given, Pattern):
        return given
    what = "four integers (a, b, c, d)"
    sizes = checks.sequence("Chain", name, given, what)
    if len(sizes) != 4:
        raise ValueError(f"Chain: {name} must be {what}, got {sizes}")
    letters = zip("abcd", sizes, strict=True)
    return Pattern(
        *(checks.integer("Chain", f"{a} of {name}", n, least=1) for a, n in letters)
    )
