"""How kernels see a factor: blocks that fit mma.sync; plain Python integers.

mma.sync multiplies tiles of a fixed size, so b and c have to be multiples of it. A
factor (a, b, c, d) whose blocks are not is embedded in a factor of larger ones: with
g = u·v, u | a and v | d, the factor (a/u, b·g, c·g, d/v) that holds the same matrix has
the same features in the same order. Only the weights grow, g-fold and with zeros; no
activation is padded.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

SMEM_BYTES = 232_448  # What one CTA may take on Hopper.
MAX_COPY = 256  # What one TMA copy moves along one axis.
MMA_K = 16
SMEM_ALIGNMENT = 1024  # Of an allocation in shared memory.

Shape = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Mma:
    """The tile of one warpgroup's mma.sync, by how its four warps share the rows.

    Attributes:
      m_warps: warps along the batch: 1, 2 or 4.
    """

    m_warps: int

    @property
    def m(self) -> int:
        """Rows of the batch in a tile."""
        return 16 * self.m_warps

    @property
    def n(self) -> int:
        """Output features in a tile."""
        return 8 * (4 // self.m_warps)


@dataclasses.dataclass(frozen=True, slots=True)
class Factor:
    """A factor as the kernel applies it.

    Attributes:
      a, b, c, d: the pattern, after embedding.
      merged_a: how many neighbours along a were merged into one block, u.
      merged_d: the same along d, v.
    """

    a: int
    b: int
    c: int
    d: int
    merged_a: int = 1
    merged_d: int = 1

    @property
    def num_blocks(self) -> int:
        """Independent dense products, a·d."""
        return self.a * self.d

    @property
    def num_weights(self) -> int:
        """Entries of all blocks, zeros of the embedding included."""
        return self.num_blocks * self.b * self.c


@functools.cache
def embeddings(shape: tuple[int, ...], mma: Mma) -> tuple[Factor, ...]:
    """Ways to embed a factor in one whose blocks are multiples of the mma tile.

    Args:
      shape: its pattern (a, b, c, d).
      mma: the tile.

    Returns:
      Factors of blocks no larger than `MAX_COPY`, the smallest first.
    """
    a, b, c, d = shape
    found = []
    for u in divisors(a):
        for v in divisors(d):
            g = u * v
            fits = max(b, c) * g <= MAX_COPY
            if fits and not (c * g % MMA_K or b * g % mma.n):
                found.append(Factor(a // u, b * g, c * g, d // v, u, v))
    return tuple(sorted(found, key=lambda factor: factor.num_weights))


def widest_mma(m: int, n: int) -> Mma | None:
    """The tile for an (m × n) product whose operands are read least often.

    With w warps along m, the left operand is read by 4 / w warps and the right by w.

    Returns:
      None if no tile divides the product.
    """
    ways = [Mma(4), Mma(2), Mma(1)]
    fitting = [way for way in ways if not (m % way.m or n % way.n)]
    return min(fitting, key=lambda w: m * 4 // w.m_warps + n * w.m_warps, default=None)


def allocated(sizes: Iterable[int]) -> int:
    """Bytes of shared memory that allocations of these sizes take, each aligned."""
    return sum(-(-size // SMEM_ALIGNMENT) * SMEM_ALIGNMENT for size in sizes)


def divisors(n: int) -> Iterator[int]:
    """Divisors of n, in order."""
    return (i for i in range(1, n + 1) if n % i == 0)
