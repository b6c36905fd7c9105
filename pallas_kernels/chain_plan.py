"""How the chain kernel takes a chain: steps, and the buffers between them.

Plain Python integers, all from shapes.

*Steps.* A chain is applied in steps. Each factor is one, or the last one several, for a
share of its rows each. A step that loads brings x from its slabs into a buffer first,
where x must be transposed (features last, and d > 1: no block is a contiguous run of
features), or cut into bfloat16 pieces. A step that stores does the reverse for y.

*Buffers.* Between two steps the tile lies in shared memory, feature by feature, the
batch innermost. The layout is chosen so that the step that writes and the step that
reads both see a block as a plain slice.

*Clusters.* The CTAs of a cluster share a tile's features out in the two ways that
`pallas_kernels.cluster` describes: by outer for the factors on one side of a cut, by
inner for those on the other. Each applies a chain of its own, of fewer blocks, and at
the cut a step exchanges features. Of several cuts the one is taken whose buffers are
smallest.
"""

import dataclasses
import math
from typing import Literal

from pallas_kernels import arrangement, chips, tiles
from pallas_kernels.arrangement import Segment
from pallas_kernels.cluster import Shares
from pallas_kernels.tiles import Factor, Mma

OPERAND_BYTES = 2  # mma.sync takes 16-bit numbers, or pieces of 16 bits.

SHARE = "share"  # The axis of a cluster: which share of the features a CTA holds.

_NARROW = 8  # Features of an 8 × 8 matrix, the least that is moved of a run.
_ROWS = 8  # Rows of weights after which a swizzle begins anew.

# How the CTAs of a cluster share out features; see `pallas_kernels.cluster`.
Held = Literal["outer", "inner"]


@dataclasses.dataclass(frozen=True, slots=True)
class Types:
    """The types that a tile passes through.

    Attributes:
      x: name of the type of x and the factors.
      y: name of the type of y.
      pieces: bfloat16 pieces that each number of x is cut into; 1 for none.
    """

    x: str
    y: str
    pieces: int = 1

    @property
    def x_bytes(self) -> int:
        """Bytes of a number of x."""
        return _num_bytes(self.x)

    @property
    def y_bytes(self) -> int:
        """Bytes of a number of y."""
        return _num_bytes(self.y)

    @property
    def operand(self) -> str:
        """Name of the type that is multiplied."""
        return "bfloat16" if self.pieces > 1 else self.x

    @property
    def result_pieces(self) -> int:
        """Pieces that y is held in before a step stores it."""
        return max(self.pieces, 2) if self.y_bytes > OPERAND_BYTES else 1

    @property
    def result(self) -> str:
        """Name of the type of those pieces."""
        return "bfloat16" if self.result_pieces > 1 else self.y


def _num_bytes(name: str) -> int:
    return 4 if name == "float32" else 2


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """A tile of features in shared memory, (outer, middle, inner) with rows innermost.

    Feature (p·middle + q)·inner + r of row m lies at [p, q, r, m]. The extents are
    rounded up to odd numbers, and rows by 16 bytes: then any eight features that an
    8 × 8 matrix is loaded from lie in different banks.

    Attributes:
      outer, middle, inner: of the features.
      rows: of the batch.
      pieces: how many there are of all this.
      dtype: name of the type of the numbers.
    """

    outer: int
    middle: int
    inner: int
    rows: int
    pieces: int
    dtype: str

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of the allocation, padding included."""
        return (
            self.pieces,
            self.outer,
            self.middle | 1,
            self.inner | 1,
            self.rows + 8,
        )

    @property
    def run(self) -> int:
        """Features that follow one another in memory, as they do in x and y."""
        return self.inner if self.inner > 1 else self.middle

    def has_columns(self, factor: Factor) -> bool:
        """Whether a block of the factor is one slice along `outer`."""
        return factor.d == self.middle * self.inner

    def num_parts(self, factor: Factor, length: int) -> int:
        """How many slices `length` rows or columns of one of its blocks are."""
        return 1 if self.has_columns(factor) else length // self.middle

    @property
    def num_bytes(self) -> int:
        """Bytes of shared memory."""
        pieces, outer, middle, inner, rows = self.shape
        return pieces * outer * middle * inner * rows * OPERAND_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One pass over the tile, in units that are dealt out to the warpgroups.

    Attributes:
      kind: whether it loads x, multiplies by a factor, exchanges features with the
        other CTAs of a cluster, or stores y.
      units: how many units there are: blocks, or runs of features, or tiles of them.
      factor: index of the factor that multiplies, or whose blocks x or y consists of,
        or what was exchanged.
      source: index of the buffer that is read; None to read x.
      target: index of the buffer that is written; None to write y.
      first_row: first of the rows of the factor's blocks that are dealt with.
      num_rows: how many they are.
      slab_in: features of x that a unit reads, 0 if it reads a buffer.
      slab_out: features of y that a unit writes, 0 if it writes a buffer.
      run: of these features, those that follow one another in a buffer and in HBM.
      weights: weights of a unit, pieces counted.
      resident: whether the weights of all units stay in shared memory.
    """

    kind: Literal["load", "multiply", "exchange", "store"]
    units: int
    factor: int
    source: int | None
    target: int | None
    first_row: int = 0
    num_rows: int = 0
    slab_in: int = 0
    slab_out: int = 0
    run: int = 0
    weights: int = 0
    resident: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a chain that the kernel needs to know beforehand.

    Attributes:
      factors: the factors, in the order of the matrix product; of each the blocks that
        one CTA applies.
      steps: what is done with a tile, in order.
      buffers: the intermediates in shared memory.
      types: of the numbers.
      depth: columns of a block that are multiplied at a time: those of a panel of
        weights, the same for all factors, which take turns in the same slabs.
      held: for each factor, how a cluster shares out the features that it takes and
        makes.
      groups: indices of buffers, those together that take turns in the same memory.
      cluster: CTAs of a cluster.
      share: features (u, v) of the same u that one CTA holds, where they are shared
        out by inner; 0 without a cluster.
      shares: what the CTAs exchange, None without a cluster.
    """

    factors: tuple[Factor, ...]
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    types: Types
    depth: int
    held: tuple[Held, ...]
    groups: tuple[tuple[int, ...], ...]
    cluster: int = 1
    share: int = 0
    shares: Shares | None = None

    @property
    def whole(self) -> tuple[Factor, ...]:
        """The factors with the blocks of all CTAs."""
        size = self.cluster
        return tuple(
            dataclasses.replace(factor, a=factor.a * size)
            if held == "outer"
            else dataclasses.replace(factor, d=factor.d * size)
            for factor, held in zip(self.factors, self.held, strict=True)
        )

    def smem_bytes(
        self, rows: int, *, warpgroups: int, stages: int, out_stages: int
    ) -> int:
        """Bytes of shared memory of one CTA, each allocation in whole kilobytes."""
        lanes = warpgroups * stages
        parts = [
            max(self.buffers[index].num_bytes for index in group)
            for group in self.groups
        ]
        parts.append(OPERAND_BYTES * lanes * self.slab_weights)
        for step in self.steps:
            parts += [
                self.types.x_bytes * lanes * rows * step.slab_in,
                self.types.y_bytes * warpgroups * out_stages * rows * step.slab_out,
                OPERAND_BYTES * step.units * step.weights * step.resident,
            ]
        if self.shares is not None:
            tile = math.prod(self.shares.tile) * rows
            parts.append(OPERAND_BYTES * warpgroups * tile)
        barriers = 8 * ((len(self.steps) + 1) * lanes + 3)
        return tiles.allocated([*parts, barriers])

    @property
    def slab_weights(self) -> int:
        """Weights that a slab has room for; 0 if all are resident."""
        return max(0 if step.resident else step.weights for step in self.steps)

    @property
    def exchange(self) -> Step | None:
        """The step that exchanges features."""
        return next((step for step in self.steps if step.kind == "exchange"), None)

    def arrival(self, index: int) -> arrangement.Arrival:
        """How the weights of the factor of that index arrive."""
        by_cta = any(step.resident and step.factor == index for step in self.steps)
        return self._arrival(index, by_cta=by_cta)

    def _arrival(self, index: int, *, by_cta: bool) -> arrangement.Arrival:
        """The same, if CTAs can arrange them or not."""
        factor = self.whole[index]
        return arrangement.arrival(
            factor,
            as_given=factor.d == 1 and self.types.pieces == 1,
            by_cta=by_cta,
        )

    def neighbours(self, step: Step) -> int:
        """Blocks of a CTA's, neighbours along d, whose weights are arranged together.

        As many as a sector has weights of, or fewer where a CTA's blocks do not begin
        and end with whole sectors.
        """
        run = self.factors[step.factor].d
        if self.cluster > 1 and self.held[step.factor] == "inner":
            run = self.share
        return math.gcd(run, chips.SECTOR // self.types.x_bytes)

    def units(self, step: Step, warpgroups: int) -> arrangement.Units:
        """In what units the weights of so many neighbours are arranged.

        The largest that leave work for all warpgroups, if there are such.
        """
        neighbours, columns = self.neighbours(step), self.factors[step.factor].c
        vector = arrangement.vector_of(neighbours, self.types.x_bytes)
        panels = Segment(0, columns // self.depth, self.depth)
        found = [
            arrangement.units_of(
                Segment(0, step.num_rows // rows, rows), panels, vector
            )
            for rows in tiles.divisors(step.num_rows)
            if rows % _ROWS == 0
        ]
        groups = step.units // neighbours
        enough = [units for units in found if units.count * groups >= warpgroups]
        return enough[-1] if enough else found[0]

    def keeping(self, resident: int) -> "Plan":
        """The plan with the weights of so many factors resident.

        Those come first that XLA need not put in order then, and of these, and of the
        others, the smallest.

        Raises:
          NotImplementedError: if there are not so many factors.
        """
        if resident > len(self.factors):
            raise NotImplementedError(
                f"chain: there are {len(self.factors)} factors, of which {resident} "
                "cannot be resident"
            )

        def rank(index: int) -> tuple[bool, int]:
            way = self._arrival(index, by_cta=True)
            return way != "arranged", self.factors[index].num_weights

        kept = sorted(range(len(self.factors)), key=rank)[:resident]
        steps = [
            dataclasses.replace(
                step, resident=step.kind == "multiply" and step.factor in kept
            )
            for step in self.steps
        ]
        return dataclasses.replace(self, steps=tuple(steps))

    @property
    def ends_where_it_began(self) -> bool:
        """Whether the last step reads memory that the next tile's first one writes."""
        first, last = self.steps[0].target, self.steps[-1].source
        return len(self.steps) > 1 and any(
            first in group and last in group for group in self.groups
        )


def move_tile(rows: int, columns: int) -> Mma | None:
    """The widest way for a warpgroup to hold a (rows, columns) tile that is moved."""
    ways = (Mma(4), Mma(2), Mma(1))
    return next((m for m in ways if not (rows % m.m or columns % m.n)), None)


def is_narrow(rows: int, run: int) -> bool:
    """Whether runs of features are moved several at once, one for each warp."""
    return run == _NARROW and move_tile(rows, run) is None
