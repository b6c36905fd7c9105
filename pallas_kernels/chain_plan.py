"""How the chain kernel takes a chain: steps, and the buffers between them.

Plain Python integers, all from shapes.

*Steps.* A chain is applied in steps. Each factor is one, or the last one several, for a
share of its rows each. A step that loads brings x from its slabs into a buffer first,
where x must be transposed (features last, and d > 1: no block is a contiguous run of
features), or cut into bfloat16 pieces. A step that stores does the reverse for y.

*Buffers.* Between two steps the tile lies in shared memory, feature by feature, the
batch innermost. The layout is chosen so that the step that writes and the step that
reads both see a block as a plain slice.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from pallas_kernels import tiles
from pallas_kernels.slabs import panel
from pallas_kernels.tiles import MAX_COPY, MMA_K, Factor, Mma

OPERAND_BYTES = 2  # mma.sync takes 16-bit numbers, or pieces of 16 bits.


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
      kind: whether it loads x, multiplies by a factor, or stores y.
      units: how many units there are: blocks, or runs of features.
      factor: index of the factor that multiplies, or whose blocks x or y consists of.
      source: index of the buffer that is read; None to read x.
      target: index of the buffer that is written; None to write y.
      first_row: first of the rows of the factor's blocks that are dealt with.
      num_rows: how many they are.
      slab_in: features of x that a unit reads, 0 if it reads a buffer.
      slab_out: features of y that a unit writes, 0 if it writes a buffer.
      weights: weights of a unit, pieces counted.
    """

    kind: Literal["load", "multiply", "store"]
    units: int
    factor: int
    source: int | None
    target: int | None
    first_row: int = 0
    num_rows: int = 0
    slab_in: int = 0
    slab_out: int = 0
    weights: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a chain that the kernel needs to know beforehand.

    Attributes:
      factors: the factors, in the order of the matrix product.
      steps: what is done with a tile, in order.
      buffers: the intermediates in shared memory.
      types: of the numbers.
      depth: columns of a block that are multiplied at a time: those of a panel of
        weights, the same for all factors, which take turns in the same slabs.
    """

    factors: tuple[Factor, ...]
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    types: Types
    depth: int

    def smem_bytes(
        self, rows: int, *, warpgroups: int, stages: int, out_stages: int
    ) -> int:
        """Bytes of shared memory of one CTA, each allocation in whole kilobytes."""
        lanes = warpgroups * stages
        parts = [buffer.num_bytes for buffer in self.buffers]
        parts.append(OPERAND_BYTES * lanes * self.slab_weights)
        for step in self.steps:
            parts += [
                self.types.x_bytes * lanes * rows * step.slab_in,
                self.types.y_bytes * warpgroups * out_stages * rows * step.slab_out,
            ]
        barriers = 8 * ((len(self.steps) + 1) * lanes + 1)
        return tiles.allocated([*parts, barriers])

    @property
    def slab_weights(self) -> int:
        """Weights that a slab has room for."""
        return max(step.weights for step in self.steps)

    @property
    def ends_where_it_began(self) -> bool:
        """Whether the last step reads the buffer that the next tile's first writes."""
        return len(self.steps) > 1 and self.steps[-1].source == self.steps[0].target


def plan(
    shapes: Sequence[Sequence[int]],
    types: Types,
    *,
    rows: int,
    mma: Mma,
    batch_first: bool,
    shares: int = 1,
) -> Plan:
    """Cuts a chain into steps.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      types: of the numbers.
      rows: rows of the batch in a tile.
      mma: the tile of one mma.
      batch_first: whether x and y are (batch, features) rather than the other way.
      shares: how many steps the last factor takes, each for as many of its blocks'
        rows, if y is stored from a buffer: then that can be smaller.

    Raises:
      NotImplementedError: if the chain does not fit the kernel; the message says why.
    """
    factors = _embed_chain(shapes, types, rows=rows, mma=mma, batch_first=batch_first)
    last, first = factors[0], factors[-1]
    steps: list[Step] = []
    buffers: list[Buffer] = []
    if _loads(first, types, batch_first=batch_first):
        buffers.append(
            Buffer(first.a, first.c, first.d, rows, types.pieces, types.operand)
        )
        run = buffers[0].run if batch_first else first.c
        units = first.a * first.c * first.d // run
        steps.append(Step("load", units, len(factors) - 1, None, 0, slab_in=run))
    for index in reversed(range(1, len(factors))):
        factor, source = factors[index], len(buffers) - 1 if steps else None
        made = _between(factors[index - 1], factor, rows, mma, types)
        assert made is not None
        in_place = factor.b == factor.c and buffers[-1:] == [made]
        if not in_place:
            buffers.append(made)
        steps.append(
            Step(
                "multiply",
                units=factor.num_blocks,
                factor=index,
                source=source,
                target=len(buffers) - 1,
                num_rows=factor.b,
                slab_in=factor.c if source is None else 0,
                weights=types.pieces * factor.b * factor.c,
            )
        )
    source = len(buffers) - 1 if steps else None
    stores = _stores(last, types, batch_first=batch_first)
    if not stores and shares > 1:
        raise NotImplementedError("chain: only a step that stores y can be shared out")
    if last.b % (shares * mma.n):
        raise NotImplementedError(
            f"chain: {last.b} rows of a block are not {shares} shares of a multiple of "
            f"{mma.n}"
        )
    target = None
    if stores:
        target = source
        if shares > 1 or not _can_end_in(buffers[-1:], last, types, batch_first):
            buffers.append(
                Buffer(
                    last.a,
                    last.b // shares,
                    last.d,
                    rows,
                    types.result_pieces,
                    types.result,
                )
            )
            target = len(buffers) - 1
    for share in range(shares):
        num_rows = last.b // shares
        steps.append(
            Step(
                "multiply",
                units=last.num_blocks,
                factor=0,
                source=source,
                target=target,
                first_row=share * num_rows,
                num_rows=num_rows,
                slab_in=last.c if source is None else 0,
                slab_out=0 if stores else num_rows,
                weights=types.pieces * num_rows * last.c,
            )
        )
        if stores:
            run = buffers[-1].run if batch_first else num_rows
            if not _can_move(rows, run, batch_first):
                raise NotImplementedError(
                    f"chain: {run} features of {rows} rows cannot be moved at once"
                )
            units = last.a * num_rows * last.d // run
            steps.append(
                Step(
                    "store",
                    units,
                    factor=0,
                    source=target,
                    target=None,
                    first_row=share * num_rows,
                    num_rows=num_rows,
                    slab_out=run,
                )
            )
    depth = min(
        _depth(buffers, step.source, factors[step.factor])
        for step in steps
        if step.kind == "multiply"
    )
    return Plan(factors, tuple(steps), tuple(buffers), types, depth)


def move_tile(rows: int, columns: int) -> Mma | None:
    """The widest way for a warpgroup to hold a (rows, columns) tile that is moved."""
    ways = (Mma(4), Mma(2), Mma(1))
    return next((m for m in ways if not (rows % m.m or columns % m.n)), None)


def _loads(first: Factor, types: Types, *, batch_first: bool) -> bool:
    """Whether x has to be brought into a buffer before it is multiplied."""
    return types.pieces > 1 or (batch_first and first.d > 1)


def _stores(last: Factor, types: Types, *, batch_first: bool) -> bool:
    """Whether y has to be brought out of a buffer after it was multiplied.

    A 32-bit sum is stored as it lies in the registers; only 16-bit ones can be
    transposed on the way.
    """
    if batch_first:
        return last.d > 1
    return types.y_bytes > OPERAND_BYTES


def _depth(buffers: Sequence[Buffer], source: int | None, factor: Factor) -> int:
    """The widest panel of weights whose columns one slice of the source has all of."""
    parts = 1 if source is None else buffers[source].num_parts(factor, factor.c)
    return panel(factor.c // parts, OPERAND_BYTES)


def _can_end_in(
    buffers: Sequence[Buffer], last: Factor, types: Types, batch_first: bool
) -> bool:
    """Whether the last factor can work in place, and y be stored from there."""
    if not buffers or last.b != last.c:
        return False
    (buffer,) = buffers
    if (buffer.pieces, buffer.dtype) != (types.result_pieces, types.result):
        return False
    if batch_first:
        return _can_move(buffer.rows, buffer.run, batch_first)
    return buffer.num_parts(last, last.b) == 1


def _between(
    left: Factor, right: Factor, rows: int, mma: Mma, types: Types
) -> Buffer | None:
    """The buffer that `right` writes and `left` reads, or None if there is no such.

    If the two are chainable, the blocks of `left` are whole columns of the buffer and
    those of `right` come in pieces of s features; if their transposes are chainable,
    it is the other way round.
    """
    extents = None
    if right.a % left.a == 0 and left.d % right.d == 0:
        s = left.d // right.d
        if right.b % s == 0 and (s == 1 or s % mma.n == 0):
            extents = (left.a * left.c, s, right.d)
    if extents is None and left.a % right.a == 0 and right.d % left.d == 0:
        s = right.d // left.d
        if left.c % s == 0 and s % MMA_K == 0:
            extents = (right.a * right.b, s, left.d)
    return Buffer(*extents, rows, types.pieces, types.operand) if extents else None


def _embed_chain(
    shapes: Sequence[Sequence[int]],
    types: Types,
    *,
    rows: int,
    mma: Mma,
    batch_first: bool,
) -> tuple[Factor, ...]:
    """The embeddings that fit one another and have the fewest weights.

    A shortest path from the factor that touches x first to the last.
    """
    paths: list[tuple[int, tuple[Factor, ...]]] = []
    for index in reversed(range(len(shapes))):
        shape = tuple(shapes[index])
        options = tiles.embeddings(shape, mma)
        if not options:
            raise NotImplementedError(
                f"chain: factors[{index}] of shape {shape} has no embedding in blocks "
                f"of at most {MAX_COPY} × {MAX_COPY} with c a multiple of {MMA_K} "
                f"and b of {mma.n}"
            )
        options = tuple(
            factor
            for factor in options
            if (index > 0 or _can_store(factor, types, rows, batch_first))
            and (index < len(shapes) - 1 or _can_load(factor, types, rows, batch_first))
        )
        if not options:
            raise NotImplementedError(
                f"chain: factors[{index}] of shape {shape}: x and y are moved in runs "
                f"of d features, or of a block's: at most {MAX_COPY}, and a multiple "
                f"of what a warpgroup moves at once of {rows} rows"
            )
        longer = []
        for factor in options:
            fitting = [
                (weights + factor.num_weights, (factor, *done))
                for weights, done in (paths or [(0, ())])
                if not done or _between(factor, done[0], rows, mma, types)
            ]
            if fitting:
                longer.append(min(fitting, key=lambda path: path[0]))
        if not longer:
            raise NotImplementedError(
                f"chain: factors[{index}] of shape {shape} and factors[{index + 1}] of "
                f"shape {tuple(shapes[index + 1])} do not fit one another: their "
                f"blocks overlap in part, or in runs that are not multiples of {mma.n}"
            )
        paths = longer
    return min(paths, key=lambda path: path[0])[1]


def _can_load(first: Factor, types: Types, rows: int, batch_first: bool) -> bool:
    if not _loads(first, types, batch_first=batch_first):
        return True
    run = first.d if batch_first and first.d > 1 else first.c
    return _can_move(rows, run, batch_first)


def _can_store(last: Factor, types: Types, rows: int, batch_first: bool) -> bool:
    if not _stores(last, types, batch_first=batch_first):
        return True
    return _can_move(rows, last.d if batch_first else last.b, batch_first)


def _can_move(rows: int, run: int, batch_first: bool) -> bool:
    tile = move_tile(rows, run) if batch_first else move_tile(run, rows)
    return run <= MAX_COPY and tile is not None
