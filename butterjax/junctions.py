"""Where two neighbouring factors meet: blocks of rank r, and pairs that are redundant.

The product of two chainable factors is made of a₁·t·s·d₂ blocks of b₁ × c₂ with
t = a₂/a₁ and s = d₁/d₂. Their supports are disjoint, each is a product of b₁ × r and
r × c₂, and all of these are independent of one another: so the best product of two
factors is the best approximation of rank r, block by block (Zheng, Riccietti and
Gribonval, "Efficient identification of butterfly sparse matrix factorizations",
arXiv 2110.01235).
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from butterjax.pattern import Chain, Pattern


@dataclasses.dataclass(frozen=True, slots=True)
class Junction:
    """Two chainable patterns that follow one another, and blocks of their factors.

    Blocks are arrays of shape (a₁, t, s, d₂, rows, columns).
    """

    left: Pattern
    right: Pattern

    @property
    def rank(self) -> int:
        """Inner size r of the blocks."""
        return self.left.a * self.left.c // self.right.a

    @property
    def is_redundant(self) -> bool:
        """Whether r bounds no rank, so that any factor of their pattern is a product.

        Le et al., arXiv 2411.04506: r is at least a side of the blocks b₁ × c₂.
        """
        return self.rank >= min(self.left.b, self.right.c)

    @property
    def _outer(self) -> tuple[int, int, int, int]:
        """a₁, t, s and d₂."""
        (a1, _, _, d1), (a2, _, _, d2) = self.left, self.right
        return a1, a2 // a1, d1 // d2, d2

    def product_blocks(self, product: jax.Array) -> jax.Array:
        """Blocks (b₁, c₂) of a factor of the product's pattern."""
        a, t, s, d = self._outer
        split = product.reshape(a, self.left.b, s, t, self.right.c, d)
        return split.transpose(0, 3, 2, 5, 1, 4)

    def left_blocks(self, left: jax.Array) -> jax.Array:
        """Blocks (b₁, r) of the left factor."""
        a, t, s, d = self._outer
        split = left.reshape(a, self.left.b, t, self.rank, s, d)
        return split.transpose(0, 2, 4, 5, 1, 3)

    def right_blocks(self, right: jax.Array) -> jax.Array:
        """Blocks (r, c₂) of the right factor."""
        a, t, s, d = self._outer
        split = right.reshape(a, t, self.rank, s, self.right.c, d)
        return split.transpose(0, 1, 3, 5, 2, 4)

    def left_factor(self, blocks: jax.Array) -> jax.Array:
        """The left factor of the given blocks (b₁, r)."""
        return blocks.transpose(0, 4, 1, 5, 2, 3).reshape(self.left.shape)

    def right_factor(self, blocks: jax.Array) -> jax.Array:
        """The right factor of the given blocks (r, c₂)."""
        return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(self.right.shape)

    def split_redundant(self, product: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two factors with exactly this product, one of them ones and zeros."""
        blocks = self.product_blocks(product)
        *outer, b, c = blocks.shape
        short = b <= self.rank
        ones = jnp.eye(b if short else self.rank, self.rank if short else c)
        ones = jnp.broadcast_to(ones.astype(product.dtype), (*outer, *ones.shape))
        wider = (self.rank - b, 0) if short else (0, self.rank - c)
        padded = jnp.pad(blocks, [(0, 0)] * 4 + [(0, n) for n in wider])
        left, right = (ones, padded) if short else (padded, ones)
        return self.left_factor(left), self.right_factor(right)


@dataclasses.dataclass(frozen=True, slots=True)
class Merged:
    """Neighbouring factors as one: a factor of the chain, or a redundant pair."""

    pattern: Pattern
    parts: tuple["Merged", "Merged"] | None = None

    def expand(self, factor: jax.Array) -> tuple[jax.Array, ...]:
        """The factors of the chain whose product is this one."""
        if self.parts is None:
            return (factor,)
        left, right = self.parts
        junction = Junction(left.pattern, right.pattern)
        halves = junction.split_redundant(factor)
        return (*left.expand(halves[0]), *right.expand(halves[1]))


def merge_redundant(chain: Chain) -> tuple[Merged, ...]:
    """The shortest chain of the same products, without a redundant pair.

    Merging a pair enlarges the blocks at its neighbours and leaves their ranks, so any
    order leads to an end.
    """
    merged = [Merged(pattern) for pattern in chain]
    while True:
        for i, (left, right) in enumerate(itertools.pairwise(merged)):
            junction = Junction(left.pattern, right.pattern)
            if junction.is_redundant:
                product = left.pattern @ right.pattern
                merged[i : i + 2] = [Merged(product, (left, right))]
                break
        else:
            return tuple(merged)
