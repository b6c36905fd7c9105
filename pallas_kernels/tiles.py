"""How the chain kernel cuts a chain of factors into tiles; plain Python integers.

Three things are settled here, all from shapes:

*Blocks.* mma.sync multiplies tiles of a fixed size, so b and c have to be multiples
of it. A factor (a, b, c, d) whose blocks are not is embedded in a factor of larger
ones: with g = u·v, u | a and v | d, the factor (a/u, b·g, c·g, d/v) that holds the
same matrix has the same features in the same order. Only the weights grow, g-fold
and with zeros; no activation is padded.

*Steps.* A chain is applied in steps. Each factor is one; where a batch-first x does
not offer a factor's block as a contiguous run of features (d > 1), a step that
transposes comes before or after it.

*Buffers.* Between two steps the tile lies in shared memory, feature by feature, the
batch innermost. The layout is chosen so that the step that writes and the step that
reads both see a block as a plain slice.
"""

import dataclasses
from collections.abc import Iterator, Sequence

SMEM_BYTES = 232_448  # What one CTA may take on Hopper.
MAX_BLOCK = 256  # What one TMA copy moves along one axis.
MMA_K = 16
_ITEMSIZE = 2
_ALIGNMENT = 1024  # Of an allocation in shared memory.

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


@dataclasses.dataclass(frozen=True, slots=True)
class Buffer:
    """A tile of features in shared memory, (outer, middle, inner) with rows innermost.

    Feature (p·middle + q)·inner + r of row m lies at [p, q, r, m]. The extents are
    rounded up to odd numbers, and rows by 16 bytes: then any eight features that an
    8 × 8 matrix is loaded from lie in different banks.
    """

    outer: int
    middle: int
    inner: int
    rows: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the allocation, padding included."""
        return (self.outer, self.middle | 1, self.inner | 1, self.rows + 8)

    @property
    def run(self) -> int:
        """Features that follow one another in memory, as they do in x and y."""
        return self.inner if self.inner > 1 else self.middle

    def has_columns(self, factor: Factor) -> bool:
        """Whether a block of the factor is one slice along `outer`."""
        return factor.d == self.middle * self.inner

    def updates(self, factor: Factor) -> bool:
        """Whether the factor can be applied in place."""
        return factor.b == factor.c and self.has_columns(factor)

    @property
    def num_bytes(self) -> int:
        """Bytes of shared memory."""
        outer, middle, inner, rows = self.shape
        return outer * middle * inner * rows * _ITEMSIZE


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One pass over the tile, in units that are dealt out to the warpgroups.

    Attributes:
      units: how many units there are: blocks, or runs of features to transpose.
      factor: index of the factor that is applied; None for a transpose.
      source: index of the buffer that is read; None to read x.
      target: index of the buffer that is written; None to write y.
      run: features of the run that a transpose moves.
      slab_in: features of x that a unit reads, 0 if it reads a buffer.
      slab_out: features of y that a unit writes, 0 if it writes a buffer.
      weights: weights of a unit.
    """

    units: int
    factor: int | None
    source: int | None
    target: int | None
    run: int
    slab_in: int
    slab_out: int
    weights: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a chain that the kernel needs to know beforehand.

    Attributes:
      factors: the factors, in the order of the matrix product.
      steps: what is done with a tile, in order.
      buffers: the intermediates in shared memory.
    """

    factors: tuple[Factor, ...]
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]

    def smem_bytes(
        self, rows: int, *, warpgroups: int, stages: int, out_stages: int
    ) -> int:
        """Bytes of shared memory of one CTA, each allocation in whole kilobytes."""
        parts = [buffer.num_bytes for buffer in self.buffers]
        for step in self.steps:
            lanes = warpgroups * stages
            parts += [
                _ITEMSIZE * lanes * rows * step.slab_in,
                _ITEMSIZE * lanes * step.weights,
                _ITEMSIZE * warpgroups * out_stages * rows * step.slab_out,
            ]
        barriers = 8 * (len(self.steps) * warpgroups * stages + 1)
        return sum(-(-part // _ALIGNMENT) * _ALIGNMENT for part in [*parts, barriers])

    @property
    def ends_where_it_began(self) -> bool:
        """Whether the last step reads the buffer that the next tile's first writes."""
        return len(self.steps) > 1 and self.steps[-1].source == self.steps[0].target


def embeddings(shape: Sequence[int], mma: Mma) -> tuple[Factor, ...]:
    """Ways to embed a factor in one whose blocks are multiples of the mma tile.

    Args:
      shape: its pattern (a, b, c, d).
      mma: the tile.

    Returns:
      Factors of blocks no larger than `MAX_BLOCK`, the smallest first.
    """
    a, b, c, d = shape
    found = []
    for u in divisors(a):
        for v in divisors(d):
            g = u * v
            fits = max(b, c) * g <= MAX_BLOCK
            if fits and not (c * g % MMA_K or b * g % mma.n):
                found.append(Factor(a // u, b * g, c * g, d // v, u, v))
    return tuple(sorted(found, key=lambda factor: factor.num_weights))


def plan(
    shapes: Sequence[Sequence[int]], *, rows: int, mma: Mma, batch_first: bool
) -> Plan:
    """Cuts a chain into steps.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      rows: rows of the batch in a tile.
      mma: the tile of one mma.
      batch_first: whether x and y are (batch, features) rather than the other way.

    Raises:
      NotImplementedError: if the chain does not fit the kernel; the message says why.
    """
    factors = _embed_chain(shapes, mma=mma, batch_first=batch_first)
    steps: list[Step] = []
    buffers: list[Buffer] = []
    last, first = factors[0], factors[-1]
    if batch_first and first.d > 1:
        # Run p of d features becomes row p of the buffer.
        buffers.append(Buffer(first.a * first.c, first.d, 1, rows))
        runs = first.a * first.c
        steps.append(Step(runs, None, None, 0, first.d, first.d, 0, 0))
    for index in reversed(range(len(factors))):
        factor = factors[index]
        source = len(buffers) - 1 if steps else None
        target = None
        if index > 0:
            made = _between(factors[index - 1], factor, rows, mma)
            assert made is not None
            if source is None or made != buffers[source] or not made.updates(factor):
                buffers.append(made)
            target = len(buffers) - 1
        elif batch_first and factor.d > 1:
            if source is None or not _can_end_in(buffers[source], factor, mma):
                buffers.append(Buffer(factor.a * factor.b, factor.d, 1, rows))
            target = len(buffers) - 1
        steps.append(
            Step(
                units=factor.num_blocks,
                factor=index,
                source=source,
                target=target,
                run=0,
                slab_in=factor.c if source is None else 0,
                slab_out=factor.b if target is None else 0,
                weights=factor.b * factor.c,
            )
        )
    if batch_first and last.d > 1:
        run = buffers[-1].run
        runs = last.a * last.b * last.d // run
        steps.append(Step(runs, None, len(buffers) - 1, None, run, 0, run, 0))
    return Plan(factors, tuple(steps), tuple(buffers))


def _can_end_in(buffer: Buffer, factor: Factor, mma: Mma) -> bool:
    """Whether the last factor can work in place, and runs be transposed from there."""
    return buffer.updates(factor) and buffer.run % mma.n == 0


def divisors(n: int) -> Iterator[int]:
    """Divisors of n, in order."""
    return (i for i in range(1, n + 1) if n % i == 0)


def _between(left: Factor, right: Factor, rows: int, mma: Mma) -> Buffer | None:
    """The buffer that `right` writes and `left` reads, or None if there is no such.

    If the two are chainable, the blocks of `left` are whole columns of the buffer and
    those of `right` come in pieces of s features; if their transposes are chainable,
    it is the other way round.
    """
    if right.a % left.a == 0 and left.d % right.d == 0:
        s = left.d // right.d
        if right.b % s == 0 and (s == 1 or s % mma.n == 0):
            return Buffer(left.a * left.c, s, right.d, rows)
    if left.a % right.a == 0 and right.d % left.d == 0:
        s = right.d // left.d
        if left.c % s == 0 and s % MMA_K == 0:
            return Buffer(right.a * right.b, s, left.d, rows)
    return None


def _embed_chain(
    shapes: Sequence[Sequence[int]], *, mma: Mma, batch_first: bool
) -> tuple[Factor, ...]:
    """The embeddings that fit one another and have the fewest weights.

    A shortest path from the factor that touches x first to the last.
    """
    paths: list[tuple[int, tuple[Factor, ...]]] = []
    for index in reversed(range(len(shapes))):
        shape = tuple(shapes[index])
        options = embeddings(shape, mma)
        if not options:
            raise NotImplementedError(
                f"chain: factors[{index}] of shape {shape} has no embedding in blocks "
                f"of at most {MAX_BLOCK} × {MAX_BLOCK} with c a multiple of {MMA_K} "
                f"and b of {mma.n}"
            )
        if batch_first and index in (0, len(shapes) - 1):
            options = tuple(f for f in options if f.d == 1 or _is_run(f.d, mma))
            if not options:
                raise NotImplementedError(
                    f"chain: factors[{index}] of shape {shape} has d = {shape[3]}, "
                    f"but feature-last arrays are transposed in runs of a multiple of "
                    f"{mma.n} and at most {MAX_BLOCK} features"
                )
        longer = []
        for factor in options:
            fitting = [
                (weights + factor.num_weights, (factor, *done))
                for weights, done in (paths or [(0, ())])
                if not done or _between(factor, done[0], mma.m, mma)
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


def _is_run(d: int, mma: Mma) -> bool:
    return d % mma.n == 0 and d <= MAX_BLOCK
