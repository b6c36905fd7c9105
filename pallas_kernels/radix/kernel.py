"""The kernel of `radix`: small factors on CUDA cores, one or a whole chain.

    x in HBM ──TMA──▶ tile of x ──▶ registers: the factors of a pass ─┐
    weights (L2) ──────────────────▶ registers, once per tile         │
                                                                      ▼
                      next pass: registers ◀── tile in float32 ◀── in place
                         │
                         └─▶ tile of y ──TMA──▶ y in HBM

For blocks of 2 to 16 features, where a tensor core has nothing to multiply, or where
products have to be those of float32. A thread holds a few features of a few vectors
and applies as many neighbouring factors as their weights fit registers, three of
radix 2; so ten factors take four passes over shared memory and not ten
(`pallas_kernels.radix.plan`). One CTA takes `rows` vectors at a time and keeps taking
more until there are none left; TMA brings the next tile of x while the passes after the
first compute, and takes y away during the passes of the next tile. Warpgroups meet
between two passes, and load the weights of the next before they do.

A single factor is cut into parts along a and d, which have nothing to do with one
another, and a CTA takes tiles of one part (`pallas_kernels.radix.config`). It has room
for vectors of any length so, and each thread for the weights of its block: they are
loaded once, before the first tile.

Bytes for each vector of a chain with n features before and after every factor, and
P passes; s = itemsize, w = weights of all factors:

    HBM     2·s·n, x read once and y written once: the floor
    L2      the same, and s·w / rows or more, see below
    SMEM    2·s·n by TMA, 2·s·n by the first and last pass, 8·(P - 1)·n between
    FMA     w products; the first of each sum is a product alone

Shared memory: s·rows·n for x, as much for y, and 4·rows·n, padded, for what lies
between; another of those wherever a pass between has b ≠ c.

*Bank conflicts.* Feature-last tiles have none for radix-2 chains from n = 256 to 2048:
the last digit, of four features, moves as one vector of 16 bytes, and the tile between
has one digit padded. The first pass has them at n = 4096, where it holds eight features
that follow one another; and so have the first and last of feature-first tiles, whose
vectors TMA packs densely. `passes.plan` counts them all.

*Weights*, and the bias, are read where they are; XLA only names their axes anew. Where
the units of a pass follow one another (D = 1), all weights that a unit has of a factor
do too, and a thread loads them by up to 16 bytes. Elsewhere they are D apart, and one
load takes one of them, neighbouring lanes neighbours in memory where lanes run along
D. A chain loads them for every tile.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from pallas_kernels.common.epilogue import Activation, activate
from pallas_kernels.radix import plan as passes
from pallas_kernels.radix.config import Config

_MAX_TMA_AXES = 5


def by_unit(array: jax.Array, step: passes.Step, config: Config) -> jax.Array:
    """Weights of a factor, or the bias, as (outer…, those of a unit, inner…): a view.

    Units are numbered by digits before and after m, and so are blocks: nothing moves.
    """
    return array.reshape(_in_hbm(step.reads, (-1,), config))


def _in_hbm(
    access: passes.Access, middle: tuple[int, ...], config: Config
) -> tuple[int, ...]:
    """Axes of an array in HBM for a tile's outer and inner digits, of all parts."""

    def whole(digits: tuple[int, ...], parts: int) -> tuple[int, ...]:
        if parts == 1 or not digits:
            return digits if parts == 1 else (parts,)
        return (parts * digits[0], *digits[1:])

    before = whole(access.outer, config.parts_a)
    return (*before, *middle, *whole(access.inner, config.parts_d))


def _of_part(
    access: passes.Access,
    middle: tuple[Any, ...],
    config: Config,
    part: jax.Array,
) -> tuple[Any, ...]:
    """What a part has of the axes that `_in_hbm` tells."""

    def mine(digits: tuple[int, ...], parts: int, number: jax.Array) -> list[Any]:
        if parts == 1:
            return [slice(None)] * len(digits)
        if not digits:
            return [number]
        first, *others = digits
        return [pl.ds(number * first, first), *[slice(None)] * len(others)]

    along_a, along_d = _digits_of(part, (config.parts_a, config.parts_d))
    before = mine(access.outer, config.parts_a, along_a)
    return (*before, *middle, *mine(access.inner, config.parts_d, along_d))


def launch(
    x: jax.Array,
    weights: Sequence[Sequence[jax.Array]],
    bias: jax.Array | None,
    activation: Activation | None,
    plan: passes.Plan,
    config: Config,
    axis: Literal[0, -1],
    out_dtype: jnp.dtype,
) -> jax.Array:
    """Calls the kernel; the features of its x and y are split into digits."""
    first, last = plan.tiles[0], plan.tiles[-1]
    batch = x.shape[1 + axis]
    x_shape, y_shape = (
        (*digits, batch) if axis == 0 else (batch, *digits)
        for digits in (
            _in_hbm(access, access.middle, config)
            for access in (plan.steps[0].reads, plan.steps[-1].writes)
        )
    )
    given = (*itertools.chain(*weights), *(() if bias is None else (bias,)))

    def body(x_ref: Any, *refs: Any) -> None:
        *given_refs, y_ref, x_tiles, middle, y_tile, loaded, phase = refs
        following = iter(given_refs)
        _Kernel(
            plan,
            config,
            batch,
            activation,
            x_ref,
            [list(itertools.islice(following, len(some))) for some in weights],
            next(following, None),
            y_ref,
            x_tiles,
            middle,
            y_tile,
            loaded,
            phase,
        ).run()

    result: jax.Array = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(y_shape, out_dtype),
        scratch_types=[
            plgpu.SMEM((config.stages, *first.shape), x.dtype),
            [plgpu.SMEM(tile.shape, jnp.float32) for tile in plan.tiles[1:-1]],
            plgpu.SMEM(last.shape, out_dtype),
            plgpu.Barrier(num_arrivals=_num_copies(first), num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=config.warpgroups),
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            # What a warp reads and then writes in a pass is its own, in the order of
            # its instructions; `meet` parts the passes.
            unsafe_no_auto_barriers=True,
        ),
        grid=(config.teams(batch) * config.parts,),
        grid_names=("cta",),
        num_threads=config.warpgroups,
        thread_name="wg",
    )(x.reshape(x_shape), *given)
    return compat.varying_as(result, x, *given)


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: passes.Plan
    config: Config
    batch: int
    activation: Activation | None
    x: Any
    weights: Sequence[Sequence[Any]]
    bias: Any
    y: Any
    x_tiles: Any
    middle: Sequence[Any]
    y_tile: Any
    loaded: Any
    phase: Any

    def run(self) -> None:
        """Takes tiles until there are none left."""
        stages, last = self.config.stages, len(self.plan.steps) - 1
        for turn in range(stages):
            self.fetch(jnp.int32(turn))
        kept = self.begin(0, self.plan.steps[0]) if last == 0 else None

        def take_tile(turn: jax.Array, carry: None) -> None:
            slot = jax.lax.rem(turn, stages)
            for index, step in enumerate(self.plan.steps):
                # Weights are on their way while the warpgroup waits for the others.
                begun = kept or self.begin(index, step)
                if index == 0:
                    plgpu.barrier_wait(self.loaded.at[slot])
                if index == last:
                    # TMA has to have read the tile of y before it is written again.
                    self.alone(lambda: plgpu.wait_smem_to_gmem(0, wait_read_only=True))
                if index > 0 or last == 0:
                    self.meet()
                if index == 1:
                    self.fetch(turn + stages)
                self.apply(index, step, slot, begun)
            self.meet()
            self.alone(lambda: self.store(turn))
            if last == 0:
                self.fetch(turn + stages)
            return carry

        tiles, teams = self.config.tiles(self.batch), self.config.teams(self.batch)
        mine = jax.lax.div(tiles - self.tile_of(jnp.int32(0)) + teams - 1, teams)
        jax.lax.fori_loop(0, mine, take_tile, None)
        self.alone(lambda: plgpu.wait_smem_to_gmem(0))

    def alone(self, action: Callable[[], None]) -> None:
        """Lets one warpgroup act for all."""
        pl.when(jax.lax.axis_index("wg") == 0)(action)

    def meet(self) -> None:
        """Waits for the CTA's other warpgroups."""
        # TMA may read what was written, and overwrite what was read.
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.phase)
        plgpu.barrier_wait(self.phase)

    def tile_of(self, turn: jax.Array) -> jax.Array:
        """The tile that a CTA takes of its part; neighbouring CTAs have other parts."""
        team = jax.lax.div(jax.lax.axis_index("cta"), self.config.parts)
        return team + turn * self.config.teams(self.batch)

    def part(
        self, access: passes.Access, middle: tuple[Any, ...] = (slice(None),)
    ) -> tuple[Any, ...]:
        """What the CTA's part has of an array in HBM, but for the axis of the rows."""
        number = jax.lax.rem(jax.lax.axis_index("cta"), self.config.parts)
        return _of_part(access, middle, self.config, number)

    def fetch(self, turn: jax.Array) -> None:
        """Starts to copy the tile of a turn from x, if there is one."""
        slot = jax.lax.rem(turn, self.config.stages)
        tile = self.plan.tiles[0]

        def move(source: tuple[Any, ...], target: tuple[Any, ...]) -> None:
            plgpu.copy_gmem_to_smem(
                self.x.at[source],
                self.x_tiles.at[(slot, *target)],
                self.loaded.at[slot],
                # Of the last tile, rows beyond the batch keep what they were.
                oob_mode=plgpu.OOBFillMode.UNDEFINED,
            )

        def copy() -> None:
            self.copy(tile, self.plan.steps[0].reads, turn, move, fill=True)

        is_there = self.tile_of(turn) < self.config.tiles(self.batch)
        self.alone(lambda: pl.when(is_there)(copy))

    def store(self, turn: jax.Array) -> None:
        """Starts to copy the tile of a turn to y."""

        def move(target: tuple[Any, ...], source: tuple[Any, ...]) -> None:
            part = self.y_tile.at[source] if source else self.y_tile
            plgpu.copy_smem_to_gmem(part, self.y.at[target])

        tile, access = self.plan.tiles[-1], self.plan.steps[-1].writes
        self.copy(tile, access, turn, move, fill=False)

    def copy(
        self,
        tile: passes.Tile,
        access: passes.Access,
        turn: jax.Array,
        move: Callable[[tuple[Any, ...], tuple[Any, ...]], None],
        *,
        fill: bool,
    ) -> None:
        """Calls `move` with where each piece of a tile lies in HBM, and in the tile.

        With `fill` there are always as many: rows beyond the batch are copies of the
        last one.
        """
        start = pl.multiple_of(self.tile_of(turn) * tile.rows, tile.rows)
        rows = pl.ds(start, tile.rows)
        if not _is_moved_by_rows(tile):
            digits = self.part(access, (slice(None),) * len(access.middle))
            for piece in _pieces(tile):
                features = (*piece, *digits[len(piece) :])
                move((*features, rows) if tile.rows_last else (rows, *features), piece)
            return

        inside = jnp.minimum(tile.rows, self.batch - start)

        def move_row(row: jax.Array, carry: None) -> None:
            for piece in _pieces(tile):
                source = start + jnp.minimum(row, inside - 1)
                move((source, *piece), (row, *piece))
            return carry

        jax.lax.fori_loop(0, tile.rows if fill else inside, move_row, None)

    def ref(self, tile: int, slot: jax.Array) -> Any:
        """A tile in shared memory."""
        if tile == 0:
            return self.x_tiles.at[slot]
        if tile == len(self.plan.tiles) - 1:
            return self.y_tile
        return self.middle[tile - 1]

    def begin(self, index: int, step: passes.Step) -> list[list[jax.Array]] | None:
        """Loads the weights of a pass, unless its units take several turns."""
        if math.prod(step.turns[1:]) > 1:
            return None
        return self.constants(index, step, jnp.int32(0))

    def apply(
        self,
        index: int,
        step: passes.Step,
        slot: jax.Array,
        begun: list[list[jax.Array]] | None,
    ) -> None:
        """Runs one pass on a tile."""

        def take_units(turn: jax.Array, carry: None) -> None:
            weights, bias = begun or self.constants(index, step, turn)
            units = _units(step, turn)

            def take_rows(turn: jax.Array, carry: None) -> None:
                rows = _span(step, 0, turn)
                values = self.read(step, slot, rows, units)
                values = _multiply(values, weights, step)
                if index == len(self.plan.steps) - 1:
                    if bias:
                        pairs = zip(values, bias, strict=True)
                        values = [v + _along_rows(w, step) for v, w in pairs]
                    values = [activate(value, self.activation) for value in values]
                self.write(step, slot, rows, units, values)
                return carry

            _loop(step.turns[0], take_rows)
            return carry

        _loop(math.prod(step.turns[1:]), take_units)

    def constants(
        self, index: int, step: passes.Step, turn: jax.Array
    ) -> list[list[jax.Array]]:
        """Weights of the warpgroup's units in float32, and their bias or nothing."""
        is_last = index == len(self.plan.steps) - 1
        bias = [] if self.bias is None or not is_last else [self.bias]
        mine, units = self.part(step.reads), _units(step, turn)
        return [
            [w for ref in refs for w in _of_units(ref.at[mine], step, units)]
            for refs in (self.weights[index], bias)
        ]

    def read(
        self, step: passes.Step, slot: jax.Array, rows: Any, units: Sequence[Any]
    ) -> list[jax.Array]:
        """The features of a block of units, each an array (rows, units…) in float32."""
        vector = step.reads.vector
        ref, tile = self.ref(step.source, slot), self.plan.tiles[step.source]
        values = []
        for place in _places(step.reads, tile, rows, units):
            view = _rows_in_front(ref.at[place], tile)
            layout = _layout(step, vector if vector > 1 else None)
            value = plgpu.load(view, layout=layout, optimized=False)
            value = value.astype(jnp.float32)
            values += compat.unstack_vector(value) if vector > 1 else [value]
        return values

    def write(
        self,
        step: passes.Step,
        slot: jax.Array,
        rows: Any,
        units: Sequence[Any],
        values: Sequence[jax.Array],
    ) -> None:
        """The reverse of `read`, rounded to what the tile holds."""
        vector = step.writes.vector
        ref, tile = self.ref(step.target, slot), self.plan.tiles[step.target]
        places = _places(step.writes, tile, rows, units)
        for place, several in zip(
            places, itertools.batched(values, vector), strict=True
        ):
            value = several[0]
            if vector > 1:
                value = compat.stack_vector(several, _layout(step, vector))
            view = _rows_in_front(ref.at[place], tile)
            view[...] = value.astype(ref.dtype)


def _of_units(ref: Any, step: passes.Step, units: Sequence[Any]) -> list[jax.Array]:
    """Loads what `_by_unit` made a view of, one array (units…) for each of a unit."""
    outer, inner = units[: len(step.reads.outer)], units[len(step.reads.outer) :]
    count = ref.shape[len(outer)]
    if not units:
        loaded = [ref[i] for i in range(count)]
    elif inner:
        layout = _layout(step).reduce((0,))
        loaded = [
            plgpu.load(ref.at[(*outer, i, *inner)], layout=layout, optimized=False)
            for i in range(count)
        ]
    else:
        vector = passes.load_vector(count, ref.dtype.itemsize)
        layout = _layout(step, vector).reduce((0,))
        loaded = []
        for first in range(0, count, vector):
            view = ref.at[(*outer, pl.ds(first, vector))]
            several = plgpu.load(view, layout=layout, optimized=False)
            loaded += compat.unstack_vector(several)
    return [w.astype(jnp.float32) for w in loaded]


def _loop(count: int, action: Callable[[jax.Array, None], None]) -> None:
    if count == 1:
        action(jnp.int32(0), None)
    else:
        jax.lax.fori_loop(0, count, action, None)


def _pieces(tile: passes.Tile) -> list[tuple[int, ...]]:
    """The digits in front of each piece of a row that TMA moves at once.

    Of TMA's axes one is for all digits in front together, and for the row.
    """
    if len(tile.shape) <= _MAX_TMA_AXES:
        return [()]
    left = _MAX_TMA_AXES - 1 - tile.rows_last
    return list(itertools.product(*map(range, tile.digits[:-left])))


def _is_moved_by_rows(tile: passes.Tile) -> bool:
    return not tile.rows_last and len(tile.shape) > _MAX_TMA_AXES


def _num_copies(tile: passes.Tile) -> int:
    return len(_pieces(tile)) * (tile.rows if _is_moved_by_rows(tile) else 1)


def _digits_of(number: jax.Array, sizes: Sequence[int]) -> list[Any]:
    """The digits of a number, the most significant first."""
    digits: list[Any] = []
    for size in reversed(sizes):
        if size == 1:
            digits.insert(0, 0)
        else:
            digits.insert(0, jax.lax.rem(number, size))
            number = jax.lax.div(number, size)
    return digits


def _span(step: passes.Step, axis: int, turn: Any) -> Any:
    """What this warpgroup takes in a turn along an axis: rows, then the units'."""
    threads = step.threads
    group = _digits_of(jax.lax.axis_index("wg"), threads.groups)[axis]
    size = threads.block[axis]
    return pl.ds((turn * threads.groups[axis] + group) * size, size)


def _units(step: passes.Step, turn: jax.Array) -> list[Any]:
    """The units that this warpgroup takes in a turn, as slices of their axes."""
    digits = _digits_of(turn, step.turns[1:])
    return [_span(step, 1 + axis, digit) for axis, digit in enumerate(digits)]


def _places(
    access: passes.Access, tile: passes.Tile, rows: Any, units: Sequence[Any]
) -> Iterator[tuple[Any, ...]]:
    """Where in a tile the units' features lie, `access.vector` of them at a time."""
    outer, inner = units[: len(access.outer)], units[len(access.outer) :]
    vector = (pl.ds(0, access.vector),) if access.vector > 1 else ()
    single = access.middle[: len(access.middle) - len(vector)]
    for digits in itertools.product(*map(range, single)):
        features = (*outer, *digits, *vector, *inner)
        yield (*features, rows) if tile.rows_last else (rows, *features)


def _rows_in_front(view: Any, tile: passes.Tile) -> Any:
    """A slice of a tile as (rows, units…)."""
    axes = range(len(view.shape))
    if not tile.rows_last or len(axes) == 1:
        return view
    return view.transpose((axes[-1], *axes[:-1]))


def _along_rows(w: jax.Array, step: passes.Step) -> jax.Array:
    """A weight of each unit, for all rows of a block."""
    if not w.shape:
        return w
    block = step.threads.block
    wide = jax.lax.broadcast_in_dim(w, block, tuple(range(1, len(block))))
    return plgpu.layout_cast(wide, _layout(step))


def _multiply(
    values: Sequence[jax.Array], weights: Sequence[jax.Array], step: passes.Step
) -> list[jax.Array]:
    """Applies the factors of a pass to the features of its units."""
    values, following = list(values), iter(weights)
    for a, b, c, d in step.work.factors:
        sums: list[Any] = [None] * (a * b * d)
        for i, j, l, k in itertools.product(range(a), range(b), range(c), range(d)):
            at = (i * b + j) * d + k
            w = _along_rows(next(following), step)
            product = values[(i * c + l) * d + k] * w
            sums[at] = product if l == 0 else sums[at] + product
        values = sums
    return values


def _layout(step: passes.Step, vector: int | None = None) -> Any:
    """How a block (rows, units…), or (rows, units…, vector), lies in the registers."""
    threads, more = step.threads, () if vector is None else (vector,)
    lanes = threads.lanes
    held = (threads.rows * lanes[0], *lanes[1:])
    tiles = [(*threads.block, *more), (*held, *more), (*lanes, *more)]
    if vector is None:
        tiles.append((1,))
    # The axes after tiling: warps, then what a thread holds, then lanes, then a vector.
    axes = len(lanes)
    level = axes + len(more)
    return compat.tiled_layout(
        tiles,
        warp_dims=[axis - axes - 1 - 2 * level for axis in range(axes)],
        lane_dims=[axis - axes - 1 for axis in range(axes)],
        vector_dim=-1,
    )
