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
from collections.abc import Iterator, Sequence
from typing import Literal

from pallas_kernels import tiles
from pallas_kernels.cluster import Shares
from pallas_kernels.slabs import panel
from pallas_kernels.tiles import MAX_COPY, MMA_K, Factor, Mma

OPERAND_BYTES = 2  # mma.sync takes 16-bit numbers, or pieces of 16 bits.

SHARE = "share"  # The axis of a cluster: which share of the features a CTA holds.

_WARPS = 4  # Of a warpgroup.
_NARROW = 8  # Features of an 8 × 8 matrix, the least that is moved of a run.
_MOVED = 64  # Features that are moved at once, where they come in shorter runs.

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

    def keeping(self, resident: int) -> "Plan":
        """The plan with the weights of so many factors resident, the smallest first.

        Raises:
          NotImplementedError: if there are not so many factors.
        """
        if resident > len(self.factors):
            raise NotImplementedError(
                f"chain: there are {len(self.factors)} factors, of which {resident} "
                "cannot be resident"
            )
        sizes = [factor.num_weights for factor in self.factors]
        kept = sorted(range(len(sizes)), key=sizes.__getitem__)[:resident]
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


def plan(
    shapes: Sequence[Sequence[int]],
    types: Types,
    *,
    rows: int,
    mma: Mma,
    batch_first: bool,
    shares: int = 1,
    cluster: int = 1,
    resident: int = 0,
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
      cluster: CTAs that share the features of a tile out.
      resident: factors whose weights stay in shared memory, the smallest first.

    Raises:
      NotImplementedError: if the chain does not fit the kernel; the message says why.
    """
    found: list[Plan] = []
    reasons: list[NotImplementedError] = []
    for held in _ways_to_hold(shapes, cluster):
        planner = _Planner(types, rows, mma, batch_first, held, cluster)
        try:
            found.append(planner.plan(shapes, shares).keeping(resident))
        except NotImplementedError as error:
            reasons.append(error)
    if not found:
        reason = NotImplementedError(
            f"chain: {list(map(tuple, shapes))} cannot be shared out to {cluster} "
            "CTAs: that must divide a of all factors on one side of a cut, and d of "
            "those on the other"
        )
        raise reasons[0] if reasons else reason
    return min(
        found,
        key=lambda plan: plan.smem_bytes(rows, warpgroups=1, stages=1, out_stages=1),
    )


def _ways_to_hold(
    shapes: Sequence[Sequence[int]], cluster: int
) -> Iterator[tuple[Held, ...]]:
    """For each cut that allows it, how each factor's features are shared out."""
    if cluster == 1:
        yield ("outer",) * len(shapes)
        return
    for cut in range(1, len(shapes)):
        left, right = shapes[:cut], shapes[cut:]
        for inner, outer in ((left, right), (right, left)):
            if any(d % cluster for _, _, _, d in inner):
                continue
            if any(a % cluster for a, _, _, _ in outer):
                continue
            if inner is left:
                yield (*("inner",) * len(left), *("outer",) * len(right))
            else:
                yield (*("outer",) * len(left), *("inner",) * len(right))


@dataclasses.dataclass(frozen=True, slots=True)
class _Planner:
    """What does not change while a chain is cut into steps; see `plan`."""

    types: Types
    rows: int
    mma: Mma
    batch_first: bool
    held: tuple[Held, ...]
    cluster: int

    def plan(self, shapes: Sequence[Sequence[int]], shares: int) -> Plan:
        """The plan for one way to hold features."""
        factors = self.embed_chain(shapes)
        share = 0
        if self.cut:
            left = self.held[0] == "inner"
            share = factors[self.cut - 1 if left else self.cut].d
        steps: list[Step] = []
        buffers: list[Buffer] = []
        source = self.load(factors, share, steps, buffers)
        exchanged: set[int | None] = set()
        for index in reversed(range(1, len(factors))):
            factor = factors[index]
            made = self.between(factors[index - 1], factor, index)
            assert made is not None
            in_place = (
                source is not None
                and factor.b == factor.c
                and buffers[source] == made[0]
            )
            if in_place:
                target = source
            else:
                target = _room_for(made[0], buffers, {source, *exchanged})
            steps.append(
                Step(
                    "multiply",
                    units=factor.num_blocks,
                    factor=index,
                    source=source,
                    target=target,
                    num_rows=factor.b,
                    slab_in=factor.c if source is None else 0,
                    weights=self.types.pieces * factor.b * factor.c,
                )
            )
            source = target
            if index == self.cut:
                buffers.append(made[1])
                exchanged = {source, len(buffers) - 1}
                units = made[0].pieces * _shares(*made, self.cluster).tiles
                steps.append(Step("exchange", units, index, source, len(buffers) - 1))
                source = len(buffers) - 1
        taken = {source, *exchanged}
        self.finish(factors, share, shares, source, taken, steps, buffers)
        depth = min(
            _depth(buffers, step.source, factors[step.factor])
            for step in steps
            if step.kind == "multiply"
        )
        return Plan(
            factors,
            tuple(steps),
            tuple(buffers),
            self.types,
            depth,
            self.held,
            _groups(steps, len(buffers)),
            self.cluster,
            share,
            next(
                (
                    _shares(buffers[step.source], buffers[step.target], self.cluster)
                    for step in steps
                    if step.kind == "exchange"
                    and step.source is not None
                    and step.target is not None
                ),
                None,
            ),
        )

    @property
    def cut(self) -> int:
        """Index of the factor after which features are exchanged, 0 for none."""
        changes = (i for i in range(1, len(self.held)) if self.is_cut(i))
        return next(changes, 0)

    def is_cut(self, index: int) -> bool:
        return self.held[index] != self.held[index - 1]

    def load(
        self,
        factors: Sequence[Factor],
        share: int,
        steps: list[Step],
        buffers: list[Buffer],
    ) -> int | None:
        """Brings x into a buffer, if need be; returns which."""
        first, types = factors[-1], self.types
        scattered = self.is_scattered(len(factors) - 1)
        if not (scattered or _loads(first, types, batch_first=self.batch_first)):
            return None
        buffers.append(
            Buffer(first.a, first.c, first.d, self.rows, types.pieces, types.operand)
        )
        run = size = first.c
        if self.batch_first:
            features = first.a * first.c * first.d
            run, size = self.moved(buffers[0], features, self.held[-1], share)
        units = first.a * first.c * first.d // size
        steps.append(
            Step("load", units, len(factors) - 1, None, 0, slab_in=size, run=run)
        )
        return 0

    def finish(
        self,
        factors: Sequence[Factor],
        share: int,
        shares: int,
        source: int | None,
        taken: set[int | None],
        steps: list[Step],
        buffers: list[Buffer],
    ) -> None:
        """Multiplies by the last factor, in shares, and stores y."""
        last, types = factors[0], self.types
        stores = self.is_scattered(0) or _stores(
            last, types, batch_first=self.batch_first
        )
        if not stores and shares > 1:
            raise NotImplementedError(
                "chain: only a step that stores y can be shared out"
            )
        if last.b % (shares * self.mma.n):
            raise NotImplementedError(
                f"chain: {last.b} rows of a block are not {shares} shares of a "
                f"multiple of {self.mma.n}"
            )
        num_rows = last.b // shares
        target = None
        if stores:
            target = source
            made = Buffer(
                last.a,
                num_rows,
                last.d,
                self.rows,
                types.result_pieces,
                types.result,
            )
            before = None if source is None else buffers[source]
            if shares > 1 or not self.can_end_in(before, last):
                target = _room_for(made, buffers, taken)
        for part in range(shares):
            steps.append(
                Step(
                    "multiply",
                    units=last.num_blocks,
                    factor=0,
                    source=source,
                    target=target,
                    first_row=part * num_rows,
                    num_rows=num_rows,
                    slab_in=last.c if source is None else 0,
                    slab_out=0 if stores else num_rows,
                    weights=types.pieces * num_rows * last.c,
                )
            )
            if not stores:
                continue
            assert target is not None
            run = size = num_rows
            features = last.a * num_rows * last.d
            if self.batch_first:
                run, size = self.moved(buffers[target], features, self.held[0], share)
            elif not _can_move(self.rows, run, self.batch_first):
                raise _cannot_be_moved(run, self.rows)
            steps.append(
                Step(
                    "store",
                    features // size,
                    factor=0,
                    source=target,
                    target=None,
                    first_row=part * num_rows,
                    num_rows=num_rows,
                    slab_out=size,
                    run=run,
                )
            )

    def moved(
        self, buffer: Buffer, features: int, held: Held, share: int
    ) -> tuple[int, int]:
        """Features of a run that is moved between a buffer and HBM, and of a unit.

        Raises:
          NotImplementedError: if a warpgroup cannot move them.
        """
        if self.cluster == 1 or held == "outer":
            run = size = buffer.run
        else:
            run = math.gcd(buffer.run, share)
            size = run * math.gcd(features // run, max(1, _MOVED // run))
        count = size // run
        together = (
            is_narrow(self.rows, run)
            and run == buffer.run
            and count % _WARPS == 0
            and (buffer.inner == 1 or buffer.middle % count == 0)
        )
        if not (together or _can_move(self.rows, run, batch_first=True)):
            raise _cannot_be_moved(run, self.rows)
        return run, size

    def is_scattered(self, index: int) -> bool:
        """Whether a CTA has less of x or y than whole runs of d features."""
        inner = self.cluster > 1 and self.held[index] == "inner"
        return inner and self.batch_first

    def can_end_in(self, buffer: Buffer | None, last: Factor) -> bool:
        """Whether the last factor can work in place, and y be stored from there."""
        types = self.types
        if buffer is None or last.b != last.c:
            return False
        if (buffer.pieces, buffer.dtype) != (types.result_pieces, types.result):
            return False
        if self.batch_first:
            fits = _can_move(buffer.rows, buffer.run, batch_first=True)
            return fits or (self.cluster > 1 and is_narrow(buffer.rows, buffer.run))
        return buffer.num_parts(last, last.b) == 1

    def between(
        self, left: Factor, right: Factor, index: int
    ) -> tuple[Buffer, ...] | None:
        """What lies between `right`, the factor of that index, and its neighbour.

        Returns:
          The buffer that `right` writes, and at the cut the one that `left` reads;
          None if there are no such.
        """
        if index == self.cut:
            return self.handed_over(left, right)
        made = _extents(left, right, self.mma)
        return None if made is None else (self.buffer(made),)

    def buffer(self, extents: tuple[int, int, int]) -> Buffer:
        return Buffer(*extents, self.rows, self.types.pieces, self.types.operand)

    def handed_over(self, left: Factor, right: Factor) -> tuple[Buffer, ...] | None:
        """The buffers that features are exchanged between, each (outer, inner).

        The factor that is shared out by inner has whole columns for blocks; those of
        the other come in pieces of inner/d features.
        """
        size = self.cluster
        by_outer_is_right = self.held[self.cut] == "outer"
        inner, outer = (left, right) if by_outer_is_right else (right, left)
        length, multiple = (
            (outer.b, self.mma.n) if by_outer_is_right else (outer.c, MMA_K)
        )
        s, rest = divmod(inner.d * size, outer.d)
        if rest or s % size or length % s or s % multiple:
            return None
        columns = inner.a * (inner.c if by_outer_is_right else inner.b)
        if columns % size:
            return None
        by_outer = self.buffer((columns // size, s, outer.d))
        by_inner = self.buffer((columns, s // size, outer.d))
        try:
            _ = _shares(by_outer, by_inner, size).tiles
        except NotImplementedError:
            return None
        return (by_outer, by_inner) if by_outer_is_right else (by_inner, by_outer)

    def embed_chain(self, shapes: Sequence[Sequence[int]]) -> tuple[Factor, ...]:
        """The embeddings that fit one another and have the fewest weights.

        A shortest path from the factor that touches x first to the last.
        """
        paths: list[tuple[int, tuple[Factor, ...]]] = []
        for index in reversed(range(len(shapes))):
            shape = tuple(shapes[index])
            options = self.options(index, shape, is_last=index == len(shapes) - 1)
            longer = []
            for factor in options:
                fitting = [
                    (weights + factor.num_weights, (factor, *done))
                    for weights, done in (paths or [(0, ())])
                    if not done or self.fits(index, factor, done)
                ]
                if fitting:
                    longer.append(min(fitting, key=lambda path: path[0]))
            if not longer:
                raise NotImplementedError(
                    f"chain: factors[{index}] of shape {shape} and factors[{index + 1}]"
                    f" of shape {tuple(shapes[index + 1])} do not fit one another: "
                    "their blocks overlap in part, or in runs that are not multiples "
                    f"of {self.mma.n}{self.of_cluster}"
                )
            paths = longer
        return min(paths, key=lambda path: path[0])[1]

    @property
    def of_cluster(self) -> str:
        return f", in a cluster of {self.cluster}" if self.cluster > 1 else ""

    def options(
        self, index: int, shape: tuple[int, ...], *, is_last: bool
    ) -> tuple[Factor, ...]:
        """Embeddings of the blocks that one CTA has of a factor."""
        a, b, c, d = shape
        size = self.cluster
        mine = (a // size, b, c, d)
        if self.held[index] == "inner":
            mine = (a, b, c, d // size)
        options = tiles.embeddings(mine, self.mma)
        if not options:
            raise NotImplementedError(
                f"chain: factors[{index}] of shape {shape} has no embedding in blocks "
                f"of at most {MAX_COPY} × {MAX_COPY} with c a multiple of {MMA_K} "
                f"and b of {self.mma.n}{self.of_cluster}"
            )
        types, rows, batch_first = self.types, self.rows, self.batch_first
        options = tuple(
            factor
            for factor in options
            if self.is_scattered(index)  # `moved` will tell.
            or (
                (index > 0 or _can_store(factor, types, rows, batch_first))
                and (not is_last or _can_load(factor, types, rows, batch_first))
            )
        )
        if not options:
            raise NotImplementedError(
                f"chain: factors[{index}] of shape {shape}: x and y are moved in runs "
                f"of d features, or of a block's: at most {MAX_COPY}, and a multiple "
                f"of what a warpgroup moves at once of {rows} rows{self.of_cluster}"
            )
        return options

    def fits(self, index: int, factor: Factor, done: Sequence[Factor]) -> bool:
        """Whether a factor goes with those that are applied before it."""
        if self.between(factor, done[0], index + 1) is None:
            return False
        # All that are shared out by inner are so by the same.
        if self.held[index] == "outer" or self.cluster == 1:
            return True
        if self.held[0] == "inner":
            return factor.d % (factor, *done)[self.cut - 1 - index].d == 0
        return index > self.cut or all(one.d % factor.d == 0 for one in done)


def _room_for(made: Buffer, buffers: list[Buffer], taken: set[int | None]) -> int:
    """Index of a buffer that is like `made` and not in use, a new one if need be."""
    for index, buffer in enumerate(buffers):
        if buffer == made and index not in taken:
            return index
    buffers.append(made)
    return len(buffers) - 1


def is_narrow(rows: int, run: int) -> bool:
    """Whether runs of features are moved several at once, one for each warp."""
    return run == _NARROW and move_tile(rows, run) is None


def _cannot_be_moved(run: int, rows: int) -> NotImplementedError:
    return NotImplementedError(
        f"chain: {run} features of {rows} rows cannot be moved at once"
    )


def _groups(steps: Sequence[Step], num_buffers: int) -> tuple[tuple[int, ...], ...]:
    """Indices of buffers, those together that features are exchanged between."""
    pair: tuple[int, ...] = ()
    for step in steps:
        if step.kind == "exchange":
            assert step.source is not None
            assert step.target is not None
            pair = (step.source, step.target)
    alone = [(index,) for index in range(num_buffers) if index not in pair]
    return (*alone, pair) if pair else tuple(alone)


def _shares(one: Buffer, other: Buffer, cluster: int) -> Shares:
    """What is exchanged between two buffers, in either order."""
    return Shares(
        max(one.outer, other.outer),
        max(one.middle, other.middle),
        one.rows,
        cluster,
        SHARE,
        one.inner,
    )


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


def _extents(left: Factor, right: Factor, mma: Mma) -> tuple[int, int, int] | None:
    """Extents of the buffer that `right` writes and `left` reads, if there are such.

    If the two are chainable, the blocks of `left` are whole columns of the buffer and
    those of `right` come in pieces of s features; if their transposes are chainable,
    it is the other way round.
    """
    if right.a % left.a == 0 and left.d % right.d == 0:
        s = left.d // right.d
        if right.b % s == 0 and (s == 1 or s % mma.n == 0):
            return left.a * left.c, s, right.d
    if left.a % right.a == 0 and right.d % left.d == 0:
        s = right.d // left.d
        if left.c % s == 0 and s % MMA_K == 0:
            return right.a * right.b, s, left.d
    return None


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
