"""How a chain is cut into steps for the chain kernel, and which buffers these need.

The factors that do not fit the tensor core's tiles are embedded in larger ones; of all
embeddings those are taken that fit one another, with the fewest weights. Over a cluster
every CTA has a chain of its own, of fewer blocks, on either side of a cut.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from pallas_kernels import tiles
from pallas_kernels.chain_plan import (
    OPERAND_BYTES,
    SHARE,
    Buffer,
    Held,
    Plan,
    Step,
    Types,
    is_narrow,
    move_tile,
)
from pallas_kernels.cluster import Shares
from pallas_kernels.slabs import panel
from pallas_kernels.tiles import MAX_COPY, MMA_K, Factor, Mma

_WARPS = 4  # Of a warpgroup.
_MOVED = 64  # Features that are moved at once, where they come in shorter runs.


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
      resident: factors whose weights stay in shared memory; see `Plan.keeping`.

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
    sides: tuple[tuple[Held, Held], ...] = (("inner", "outer"), ("outer", "inner"))
    if cluster == 1:
        whole: Held = "outer"
        yield (whole,) * len(shapes)
        return
    for cut, (left, right) in itertools.product(range(1, len(shapes)), sides):
        held = (left,) * cut + (right,) * (len(shapes) - cut)
        if not any(
            (a if one == "outer" else d) % cluster
            for (a, _, _, d), one in zip(shapes, held, strict=True)
        ):
            yield held


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
        draft = _Draft(factors, self.share(factors), [], [])
        self.load(draft)
        for index in reversed(range(1, len(factors))):
            self.multiply(draft, index)
        self.finish(draft, shares)
        steps, buffers = draft.steps, draft.buffers
        depth = min(
            _depth(buffers, step.source, factors[step.factor])
            for step in steps
            if step.kind == "multiply"
        )
        alone = [(i,) for i in range(len(buffers)) if i not in draft.exchanged]
        return Plan(
            factors,
            tuple(steps),
            tuple(buffers),
            self.types,
            depth,
            self.held,
            (*alone, draft.exchanged) if draft.exchanged else tuple(alone),
            self.cluster,
            draft.share,
            draft.shares,
        )

    @property
    def cut(self) -> int:
        """Index of the factor after which features are exchanged, 0 for none."""
        changes = (i for i in range(1, len(self.held)) if self.is_cut(i))
        return next(changes, 0)

    def is_cut(self, index: int) -> bool:
        return self.held[index] != self.held[index - 1]

    def share(self, factors: Sequence[Factor]) -> int:
        """Features of a run that a CTA has, where they are shared out by inner."""
        if not self.cut:
            return 0
        return factors[self.cut - 1 if self.held[0] == "inner" else self.cut].d

    def load(self, draft: "_Draft") -> None:
        """Brings x into a buffer, if need be."""
        first, types = draft.factors[-1], self.types
        index = len(draft.factors) - 1
        loads = _loads(first, types, batch_first=self.batch_first)
        if not (loads or self.is_scattered(index)):
            return
        made = Buffer(first.a, first.c, first.d, self.rows, types.pieces, types.operand)
        features, run, size = first.a * first.c * first.d, first.c, first.c
        if self.batch_first:
            run, size = self.moved(made, features, self.held[-1], draft.share)
        target = draft.room_for(made)
        units = features // size
        draft.add(Step("load", units, index, None, target, slab_in=size, run=run))

    def multiply(self, draft: "_Draft", index: int) -> None:
        """Multiplies by a factor that is not the last, and exchanges what it made."""
        factor, source = draft.factors[index], draft.at
        made = self.between(draft.factors[index - 1], factor, index)
        assert made is not None
        in_place = (
            source is not None
            and factor.b == factor.c
            and draft.buffers[source] == made[0]
        )
        target = source if in_place else draft.room_for(made[0])
        draft.add(
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
        if index == self.cut:
            draft.exchange(index, made, self.cluster)

    def finish(self, draft: "_Draft", shares: int) -> None:
        """Multiplies by the last factor, in shares, and stores y."""
        last, types, source = draft.factors[0], self.types, draft.at
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
            before = None if source is None else draft.buffers[source]
            if shares > 1 or not self.can_end_in(before, last):
                target = draft.room_for(
                    Buffer(
                        last.a,
                        num_rows,
                        last.d,
                        self.rows,
                        types.result_pieces,
                        types.result,
                    )
                )
        for part in range(shares):
            draft.add(
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
            if target is not None:
                self.store(draft, target, part * num_rows, num_rows)

    def store(
        self, draft: "_Draft", source: int, first_row: int, num_rows: int
    ) -> None:
        """Stores some rows of the last factor's blocks."""
        last = draft.factors[0]
        features, run, size = last.a * num_rows * last.d, num_rows, num_rows
        if self.batch_first:
            buffer = draft.buffers[source]
            run, size = self.moved(buffer, features, self.held[0], draft.share)
        elif not _can_move(self.rows, run, self.batch_first):
            raise _cannot_be_moved(run, self.rows)
        draft.add(
            Step(
                "store",
                features // size,
                factor=0,
                source=source,
                target=None,
                first_row=first_row,
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
        run = (s // size, 1) if outer.d == 1 else (1, inner.d)
        by_inner = self.buffer((columns, *run))
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


@dataclasses.dataclass(slots=True)
class _Draft:
    """A plan in the making.

    Attributes:
      factors: what one CTA applies.
      share: as in `Plan`.
      steps, buffers: so far.
      at: index of the buffer where the tile is, None as long as it is not in one.
      exchanged: indices of the buffers that features are exchanged between, if any.
      shares: what is exchanged.
    """

    factors: tuple[Factor, ...]
    share: int
    steps: list[Step]
    buffers: list[Buffer]
    at: int | None = None
    exchanged: tuple[int, ...] = ()
    shares: Shares | None = None

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.at = self.at if step.target is None else step.target

    def room_for(self, made: Buffer) -> int:
        """Index of a buffer like `made` that is not in use, a new one if need be."""
        for index, buffer in enumerate(self.buffers):
            if buffer == made and index != self.at and index not in self.exchanged:
                return index
        self.buffers.append(made)
        return len(self.buffers) - 1

    def exchange(self, index: int, made: Sequence[Buffer], cluster: int) -> None:
        """Adds the exchange of what the factor of that index made."""
        source, target = made
        assert self.at is not None
        self.buffers.append(target)
        self.exchanged = (self.at, len(self.buffers) - 1)
        self.shares = _shares(source, target, cluster)
        units = source.pieces * self.shares.tiles
        self.add(Step("exchange", units, index, *self.exchanged))


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


def _cannot_be_moved(run: int, rows: int) -> NotImplementedError:
    return NotImplementedError(
        f"chain: {run} features of {rows} rows cannot be moved at once"
    )


def _shares(one: Buffer, other: Buffer, cluster: int) -> Shares:
    """What is exchanged between two buffers, in either order."""
    by_outer, by_inner = sorted((one, other), key=lambda buffer: buffer.outer)
    return Shares(
        by_inner.outer,
        by_outer.middle,
        one.rows,
        cluster,
        SHARE,
        by_outer.inner,
    )
