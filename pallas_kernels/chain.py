"""`chain`: a whole chain of factors in one launch, intermediates in shared memory.

    x in HBM ──TMA──▶ slab ──ldmatrix──▶ registers ─┐
                                                    ├─ mma.sync, f32 sums
    weights (L2) ──TMA──▶ ring ──ldmatrix──▶ regs ──┘        │ rounded
                                                             ▼
      next factor ◀──ldmatrix.trans── buffer ◀──stmatrix.trans
           │              (features first, batch innermost)
           └─▶ slab ──TMA──▶ y in HBM

One CTA takes `rows` vectors of the batch at a time and keeps taking more until there
are none. A factor of shape (a, b, c, d) is a·d products of a (rows × c) by a (c × b)
tile; they are dealt out to the CTA's warpgroups. Each warpgroup fetches what its own
products need, x and weights alike, by TMA `stages` units ahead, across the ends of
factors and tiles, so that warpgroups wait for one another only between two factors.

In the buffer a block of any factor, contiguous or not, is a slice with the batch
contiguous, which is what ldmatrix and stmatrix want; so nothing is ever permuted in
HBM. Features-first arrays are read and written that way at once. Of a batch-first
array that holds only where d = 1, so a first factor with d > 1 is preceded, and a
last one followed, by a pass that transposes in shared memory: one such pass for a
Monarch chain (1, b, c, d)(a, b', c', 1). The same passes cut float32 into bfloat16
pieces on the way in, which all else then has two or three of, and add them up on the
way out. Bias and activation are applied to the last factor's sums in registers.

Bytes moved per vector, with n₀ = n_in, …, n_L = n_out and s = itemsize; exactly what
`pallas_kernels.traffic` counts:

    HBM     s·(n_in + n_out), read once and written once: the floor
    L2      the same, and s·(all weights) / rows
    SMEM    each factor: s·n read 4 / m_warps times, s·n written, its weights read
            m_warps times; each transposing pass: s·n read and written; by TMA what L2
            gives and takes

Shared memory: one buffer of about s·rows·n for each intermediate (factors with b = c
work in place), slabs of `stages` blocks of x for each warpgroup, s·rows·c, as many of
the largest block's weights, s·b·c, and `out_stages` slabs of y, s·rows·b.

*Bank conflicts*: none, by construction. Slabs are as wide as a TMA swizzle of 128, 64
or 32 bytes, in which eight rows of a column of 16 bytes lie in different banks. In the
buffer, features and rows are padded so that neighbouring features, of a run or of a
block, are an odd number of 16 bytes apart. The accesses of float32 slabs, 8 bytes per
thread, meet the same swizzle. Only features-first slabs of more than 64 rows have none.

*Which ceiling binds*, predicted and not measured: for the configuration that
`default_config` takes at a batch of 25,088, Monarch chains, features last; kilobytes
and nanoseconds per vector, with the rates that `pallas_kernels.chips` assumes of an
H200. The last column adds fetches that come late and waiting between factors.

    n, type          rows   HBM  L2   SMEM   ns: HBM  L2    SMEM  all
    256, bfloat16    32     1    1.5  6.5        0.24 0.28  0.23  0.28
    512, bfloat16    64     2    2.8  12         0.48 0.51  0.44  0.59
    1024, bfloat16   64     4    6    26         0.95 1.12  0.93  1.20
    2048, bfloat16   32     8    20   80         1.91 3.72  2.85  4.54
    512, float32     64     4    5.5  30         0.95 1.02  1.07  1.19
    1024, float32    32     8    16   80         1.91 2.98  2.85  3.22

So up to n = 1024 bfloat16 should come near the floor, and from n = 2048 on the weights,
which every tile of 32 vectors fetches anew, bind: that wants a cluster of CTAs that
share them. In float32 the pieces take twice the room, so the tile is half as large.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import (
    arguments,
    chain_plan,
    cluster,
    compat,
    pieces,
    slabs,
    tiles,
)
from pallas_kernels.blocks import bias_blocks, weight_blocks
from pallas_kernels.chain_config import (
    Config,
    check,
    check_runs,
    default_config,
    plan_for,
    predicted_seconds,
    types_of,
)
from pallas_kernels.chain_plan import Plan, Step
from pallas_kernels.epilogue import Activation, activate

__all__ = ["Config", "chain", "default_config", "predicted_seconds"]


def chain(
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    axis: Literal[0, -1] = -1,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Applies a chain of factors, y = activation(K₁K₂…K_L x + bias), in one launch.

    Products accumulate in float32 and are rounded to the dtype of x after each factor;
    after the last one the bias is added and the activation applied before that.
    float32 is multiplied as sums of bfloat16 pieces (`pallas_kernels.pieces`), so an
    infinity becomes NaN. A block may be embedded in a larger one with zeros for
    weights, so a NaN or an infinity in x may reach more outputs of its own vector than
    it would otherwise; it never reaches another vector.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16, float16 or
        float32.
      factors: arrays (a, b, c, d) of the dtype of x, in the order of the matrix
        product: the last one touches x first.
      axis: the feature axis of x and of the result.
      bias: (n_out,) or None; taken as float32.
      activation: see `pallas_kernels.epilogue.activate`.
      out_dtype: of the result, one of those of x; None for that of x.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`. Products of 16-bit numbers are exact in
        float32. For float32 the default is three products of pieces, which keep 2⁻¹⁶,
        more than TF32; "highest" is six, as exact as float32.

    Returns:
      (batch, n_out) or (n_out, batch), of `out_dtype`.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    shapes, batch, n_out = arguments.check("chain", x, factors, bias, axis)
    types = types_of(x.dtype, out_dtype, precision)
    if batch == 0:
        return jnp.zeros((0, n_out) if axis == -1 else (n_out, 0), types.y)
    check_runs(shapes, types, batch, axis)
    if config is None:
        config = default_config(
            shapes, x.dtype, batch, axis=axis, out_dtype=out_dtype, precision=precision
        )
    plan = plan_for(shapes, types, config, axis)
    check(plan, config)
    blocks = [
        weight_blocks(factor, embedded, types.pieces)
        for factor, embedded in zip(factors, plan.whole, strict=True)
    ]
    return _launch(
        compat.gpu_only(x),
        blocks,
        None if bias is None else bias_blocks(bias, plan.whole[0]),
        activation,
        plan,
        config,
        axis,
        batch,
    )


def _launch(
    x: jax.Array,
    blocks: Sequence[jax.Array],
    bias: jax.Array | None,
    activation: Activation | None,
    plan: Plan,
    config: Config,
    axis: Literal[0, -1],
    batch: int,
) -> jax.Array:
    """Calls the kernel on weights (a·d, pieces, b, c) and a bias (a·d, b)."""
    types, rows = plan.types, config.rows
    last, first = plan.whole[0], plan.whole[-1]
    n_out = last.a * last.b * last.d
    y_shape: tuple[int, ...] = (batch, n_out)
    if axis == 0:
        x = x.reshape(first.a, first.c, first.d, batch)
        y_shape = (last.a, last.b, last.d, batch)
    num_tiles = pl.cdiv(batch, rows)
    clusters = min(max(1, config.ctas // plan.cluster), num_tiles)
    lanes = config.warpgroups * config.stages

    def slab(
        count: int, features: int, dtype: str, *, run: int = 0, width: int = 0
    ) -> Any:
        extents = (rows, features) if axis == -1 else (features, rows)
        if axis == 0 or not run:
            run = extents[1]
        width = width or slabs.panel(run, jnp.dtype(dtype).itemsize)
        shape = (extents[1] // width, extents[0], width)
        return slabs.slab((config.warpgroups * count, *shape), dtype)

    def scratch(step: Step) -> dict[str, Any]:
        refs = {}
        multiplies = step.kind == "multiply"
        # Where features come first, all vectors of a tile are one operand.
        whole = rows if multiplies and axis == 0 else 0
        if step.slab_in:
            width = plan.depth if multiplies and axis == -1 else whole
            refs["slab_in"] = slab(
                config.stages, step.slab_in, types.x, run=step.run, width=width
            )
            copies = refs["slab_in"].shape[1]
            refs["x_loaded"] = plgpu.Barrier(num_arrivals=copies, num_barriers=lanes)
        if step.slab_out:
            refs["slab_out"] = slab(
                config.out_stages, step.slab_out, types.y, run=step.run, width=whole
            )
        if multiplies:
            copies = types.pieces * plan.factors[step.factor].c // plan.depth
            barriers = lanes
            if step.resident:
                shape = (step.units, step.weights // plan.depth, plan.depth)
                refs["weights"] = slabs.slab(shape, types.operand)
                copies *= pl.cdiv(step.units, config.warpgroups)
                barriers = config.warpgroups
            refs["weights_loaded"] = plgpu.Barrier(
                num_arrivals=copies, num_barriers=barriers
            )
        return refs

    def weights_ring() -> list[Any]:
        if not plan.slab_weights:
            return []
        shape = (lanes, plan.slab_weights // plan.depth, plan.depth)
        return [slabs.slab(shape, types.operand)]

    def barriers() -> list[Any]:
        if plan.cluster == 1:
            return []
        barrier = plgpu.ClusterBarrier(
            collective_axes=(chain_plan.SHARE,), num_arrivals=config.warpgroups
        )
        assert plan.shares is not None
        shape = (config.warpgroups, *plan.shares.tile, rows)
        return [barrier, barrier, plgpu.SMEM(shape, types.operand)]

    def memory(group: Sequence[int]) -> Any:
        """Memory for buffers that take turns in it."""
        refs = [
            plgpu.SMEM(plan.buffers[index].shape, plan.buffers[index].dtype)
            for index in group
        ]
        return plgpu.RefUnion(*refs) if len(refs) > 1 else refs[0]

    def body(x_ref: Any, *refs: Any) -> None:
        *inputs, y_ref, groups, weights, steps, phase, exchanged = refs
        buffers = dict(
            pair
            for group, refs in zip(plan.groups, groups, strict=True)
            for pair in zip(group, refs if len(group) > 1 else [refs], strict=True)
        )
        _Kernel(
            plan,
            config,
            activation,
            axis,
            num_tiles,
            clusters,
            x_ref,
            inputs[: len(blocks)],
            inputs[len(blocks)] if bias is not None else None,
            y_ref,
            buffers,
            weights[0] if weights else None,
            steps,
            phase,
            *(exchanged or (None, None, None)),
        ).run()

    y = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(y_shape, types.y),
        scratch_types=[
            [memory(group) for group in plan.groups],
            weights_ring(),
            [scratch(step) for step in plan.steps],
            plgpu.Barrier(num_arrivals=config.warpgroups),
            barriers(),
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(clusters,),
        grid_names=("tile",),
        num_threads=config.warpgroups,
        thread_name="wg",
        **(
            {"cluster": (plan.cluster,), "cluster_names": (chain_plan.SHARE,)}
            if plan.cluster > 1
            else {}
        ),
    )(x, *blocks, *([] if bias is None else [bias]))
    y = compat.varying_as(y, x, *blocks)
    return y if axis == -1 else y.reshape(n_out, batch)


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: Plan
    config: Config
    activation: Activation | None
    axis: int
    num_tiles: int
    clusters: int
    x: Any
    blocks: Sequence[Any]
    bias: Any
    y: Any
    buffers: Mapping[int, Any]
    weights: Any
    scratch: Sequence[dict[str, Any]]
    phase: Any
    written: Any
    loaded: Any
    last_loaded: Any

    def run(self) -> None:
        """Takes tiles until none are left; the CTAs of a cluster take the same ones."""
        steps = self.plan.steps
        for index, step in enumerate(steps):
            if step.resident:
                self.fetch_resident(index, step)
        for ahead in range(self.config.stages):
            for index, step in enumerate(steps):
                if step.slab_in:
                    self.fetch_x(index, step, jnp.int32(ahead))
            if self.num_products:
                self.fetch_weights(jnp.int32(ahead), [ahead % self.num_products])

        def take_tile(turn: jax.Array, carry: None) -> None:
            for index, step in enumerate(steps):
                if step.kind == "exchange":
                    self.exchange(step)
                else:
                    self.apply(index, step, turn)
                if index + 1 < len(steps):
                    if steps[index + 1].kind != "exchange":
                        self.meet()
                elif self.plan.ends_where_it_began:
                    self.meet()
            return carry

        mine = jax.lax.div(
            self.num_tiles - jax.lax.axis_index("tile") + self.clusters - 1,
            self.clusters,
        )
        jax.lax.fori_loop(0, mine, take_tile, None)
        plgpu.wait_smem_to_gmem(0)

    def meet(self) -> None:
        """Waits for the CTA's other warpgroups."""
        plgpu.barrier_arrive(self.phase)
        plgpu.barrier_wait(self.phase)

    @property
    def mine(self) -> Any:
        """Which share of the features this CTA holds."""
        return jax.lax.axis_index(chain_plan.SHARE) if self.plan.cluster > 1 else 0

    def turns(self, step: Step) -> int:
        """Units of a tile for each warpgroup, the last perhaps idle."""
        return pl.cdiv(step.units, self.config.warpgroups)

    def unit_of(self, step: Step, turn: jax.Array) -> jax.Array:
        return turn * self.config.warpgroups + jax.lax.axis_index("wg")

    def when_busy(
        self, step: Step, unit: jax.Array, action: Callable[[], None]
    ) -> None:
        """Runs `action` unless this warpgroup has no such unit."""
        if step.units % self.config.warpgroups:
            pl.when(unit < step.units)(action)
        else:
            action()

    def stage(self, turn: jax.Array, stages: int) -> jax.Array:
        """Where in a warpgroup's ring of `stages` slabs a unit's slab lies."""
        wg = jax.lax.axis_index("wg")
        return wg * stages + jax.lax.rem(turn, stages)

    def rows_of(self, tile: jax.Array) -> Any:
        rows = self.config.rows
        return pl.ds(pl.multiple_of(tile * rows, rows), rows)

    def tile_of(self, turn: jax.Array) -> jax.Array:
        return jax.lax.axis_index("tile") + turn * self.clusters

    def fetch_x(self, index: int, step: Step, serial: jax.Array) -> None:
        """Starts the copies for unit number `serial` of a step, counted over tiles."""
        per_tile = self.turns(step)
        tile = self.tile_of(jax.lax.div(serial, per_tile))
        unit = self.unit_of(step, jax.lax.rem(serial, per_tile))
        at = self.stage(serial, self.config.stages)
        slab = self.scratch[index]["slab_in"].at[at]
        loaded = self.scratch[index]["x_loaded"].at[at]

        def copy() -> None:
            for panel in range(slab.shape[0]):
                source = self.part_of_x(step, unit, tile, panel, slab.shape[-1])
                plgpu.copy_gmem_to_smem(source, slab.at[panel], loaded)

        pl.when(tile < self.num_tiles)(lambda: self.when_busy(step, unit, copy))

    @property
    def products(self) -> list[tuple[int, int]]:
        """Steps that fetch weights: their indices, and the products before them."""
        found, before = [], 0
        for index, step in enumerate(self.plan.steps):
            if step.kind == "multiply" and not step.resident:
                found.append((index, before))
                before += self.turns(step)
        return found

    @property
    def num_products(self) -> int:
        """Products of a tile for which each warpgroup fetches weights."""
        steps = self.plan.steps
        return sum(self.turns(steps[index]) for index, _ in self.products)

    def fetch_weights(self, serial: jax.Array, places: Sequence[int]) -> None:
        """Starts the copies for product number `serial`, counted over steps and tiles.

        Args:
          serial: the number.
          places: where in a tile it can be, as far as that is known beforehand.
        """
        turn = jax.lax.div(serial, self.num_products)
        place = jax.lax.rem(serial, self.num_products)
        at = self.stage(serial, self.config.stages)
        slab = self.weights.at[at]
        wanted = self.tile_of(turn) < self.num_tiles
        for index, first in self.products:
            step = self.plan.steps[index]
            size = self.turns(step)
            if not any(first <= p < first + size for p in places):
                continue
            unit = self.unit_of(step, place - first)
            loaded = self.scratch[index]["weights_loaded"].at[at]
            copy = functools.partial(self.copy_weights, step, unit, slab, loaded)
            here = (place >= first) & (place < first + size)
            pl.when(wanted & here)(functools.partial(self.when_busy, step, unit, copy))

    def copy_weights(self, step: Step, unit: jax.Array, slab: Any, loaded: Any) -> None:
        """Starts the copies of one unit's weights into a slab."""
        depth, block = self.plan.depth, self.whole_block(step, unit)
        rows = pl.ds(step.first_row, step.num_rows)
        for panel, piece in itertools.product(
            range(self.plan.factors[step.factor].c // depth),
            range(self.plan.types.pieces),
        ):
            source = self.blocks[step.factor].at[
                block, piece, rows, pl.ds(panel * depth, depth)
            ]
            target = slab.at[self.rows_of_weights(step, panel, piece)]
            plgpu.copy_gmem_to_smem(source, target, loaded)

    def fetch_resident(self, index: int, step: Step) -> None:
        """Starts the copies of all weights of a step that this warpgroup needs."""
        refs = self.scratch[index]
        loaded = refs["weights_loaded"].at[jax.lax.axis_index("wg")]
        copies = self.plan.factors[step.factor].c // self.plan.depth
        copies *= self.plan.types.pieces

        def fetch(local: jax.Array, carry: None) -> None:
            unit = self.unit_of(step, local)

            @functools.partial(self.when_busy, step, unit)
            def _() -> None:
                self.copy_weights(step, unit, refs["weights"].at[unit], loaded)

            if step.units % self.config.warpgroups:

                @pl.when(unit >= step.units)
                def _() -> None:
                    for _ in range(copies):
                        plgpu.barrier_arrive(loaded)

            return carry

        jax.lax.fori_loop(0, self.turns(step), fetch, None)

    def rows_of_weights(
        self, step: Step, panel: int, piece: int, first: int = 0, size: int = 0
    ) -> Any:
        """Where in a slab the rows of a panel of weights are, from the first on."""
        before = (panel * self.plan.types.pieces + piece) * step.num_rows
        return pl.ds(before + first, size or step.num_rows)

    def part_of_x(
        self, step: Step, unit: jax.Array, tile: jax.Array, panel: int, width: int
    ) -> Any:
        """A panel of what a unit reads of x: (rows, features) or the transpose."""
        if self.axis == -1:
            start = self.start(unit, step.slab_in, panel * width)
            start = self.whole_feature(step, start, width)
            return self.x.at[self.rows_of(tile), pl.ds(start, width)]
        i, k = self.split(step, self.whole_block(step, unit))
        start = self.start(tile, self.config.rows, panel * width)
        return self.x.at[i, :, k, pl.ds(start, width)]

    def part_of_y(
        self, step: Step, unit: jax.Array, tile: jax.Array, panel: int, width: int
    ) -> Any:
        """A panel of what a unit writes of y: (rows, features) or the transpose."""
        size = step.slab_out
        if self.axis == 0:
            i, k = self.split(step, self.whole_block(step, unit))
            start = self.start(tile, self.config.rows, panel * width)
            return self.y.at[i, pl.ds(step.first_row, size), k, pl.ds(start, width)]
        start = self.start(unit, size, panel * width)
        factor = self.plan.factors[step.factor]
        if step.num_rows < factor.b:  # A share of the rows of every block.
            block = jax.lax.div(start, step.num_rows * factor.d)
            start += (block * (factor.b - step.num_rows) + step.first_row) * factor.d
        start = self.whole_feature(step, start, width)
        return self.y.at[self.rows_of(tile), pl.ds(start, width)]

    def whole_feature(self, step: Step, feature: jax.Array, width: int) -> jax.Array:
        """Where a feature of this CTA's is among all, with what divides it made known.

        Args:
          step: that reads x or writes y, as its factor's features are shared out.
          feature: a multiple of `width`.
          width: features that follow one another, too, among all.
        """
        plan = self.plan
        if plan.cluster > 1:
            if plan.held[step.factor] == "outer":
                factor = plan.factors[step.factor]
                size = factor.b if step.slab_out else factor.c
                feature += self.mine * (factor.num_blocks * size)
            else:
                u = jax.lax.div(feature, plan.share)
                feature += (u * (plan.cluster - 1) + self.mine) * plan.share
        return pl.multiple_of(feature, width)

    def whole_block(self, step: Step, unit: jax.Array) -> jax.Array:
        """Where a block (i, k) of this CTA's, i·d + k, is among all."""
        plan = self.plan
        if plan.cluster == 1:
            return unit
        if plan.held[step.factor] == "outer":
            return unit + self.mine * plan.factors[step.factor].num_blocks
        # Blocks that differ in k follow one another as features that differ in v do.
        u = jax.lax.div(unit, plan.share)
        return unit + (u * (plan.cluster - 1) + self.mine) * plan.share

    def start(self, index: jax.Array, size: int, offset: int) -> jax.Array:
        """index · size + offset, with what divides it made known."""
        return pl.multiple_of(index * size + offset, math.gcd(size, offset))

    def block_of(self, step: Step, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which block (i, k) of this CTA's part of the step's factor a unit is."""
        d = self.plan.factors[step.factor].d
        return jax.lax.div(unit, d), jax.lax.rem(unit, d)

    def split(self, step: Step, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(i, k) of a block among all, whose index is i·d + k."""
        d = self.plan.whole[step.factor].d
        return jax.lax.div(block, d), jax.lax.rem(block, d)

    def exchange(self, step: Step) -> None:
        """Swaps features with the cluster's CTAs, in the same memory M of each.

        Each warpgroup loads what it needs of all CTAs' M into registers, and then
        stores it to its own. Two barriers of the cluster order that. A warpgroup
        arrives at them by a few of its threads, in all CTAs at once, so before that all
        its threads meet, in `commit_smem`.

        `written`  A warpgroup arrives when it has written its share of M, and waits for
                   all of the cluster before it loads: what it loads is there.
        `loaded`   It arrives when what it loaded has come, and waits for all before it
                   stores: nobody still reads what it overwrites. An arrival would not
                   wait for a load under way, but a store of what was loaded does; so
                   the sum of all that was loaded is stored first, for nobody.

        No phase is missed: nobody arrives at `written` for the next tile before all
        have arrived at `loaded` for this one, and so have waited at `written`; nor at
        `loaded` before all have arrived at `written`, and so have waited at `loaded`.

        A CTA may leave after its last `loaded`. Nobody reads its M any more, nothing
        else of it is ever read by others, and all arrivals that there are at its
        barriers have come, for it has waited for them.
        """
        assert step.source is not None
        assert step.target is not None
        assert self.plan.shares is not None
        plan, wg = self.plan, jax.lax.axis_index("wg")
        load = cluster.load_by_outer
        if plan.held[0] == "inner":
            load = cluster.load_by_inner

        def part(index: int, piece: int) -> Any:
            layout = plan.buffers[index]
            minor = pl.ds(0, layout.inner) if layout.inner > 1 else 0
            return self.buffers[index].at[
                piece, :, pl.ds(0, layout.middle), minor, pl.ds(0, layout.rows)
            ]

        plgpu.barrier_arrive(self.written)
        plgpu.barrier_wait(self.written)
        found = [
            pair
            for piece in range(plan.types.pieces)
            for pair in load(
                part(step.source, piece),
                part(step.target, piece),
                plan.shares,
                warpgroup=wg,
                warpgroups=self.config.warpgroups,
            )
        ]
        values = [value for _, value in found]
        self.last_loaded.at[wg][...] = functools.reduce(operator.add, values)
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.loaded)
        plgpu.barrier_wait(self.loaded)
        for target, value in found:
            target[...] = value
        plgpu.commit_smem()

    def apply(self, index: int, step: Step, turn: jax.Array) -> None:
        """Runs one step on the tile of a turn."""
        per_tile = self.turns(step)
        tile = self.tile_of(turn)

        stages = self.config.stages
        first = dict(self.products).get(index)
        # Where in a tile the products are that are fetched meanwhile.
        places = [
            (first + local + stages) % self.num_products
            for local in range(per_tile)
            if first is not None
        ]
        if step.resident:
            loaded = self.scratch[index]["weights_loaded"]
            mine = loaded.at[jax.lax.axis_index("wg")]
            pl.when(turn == 0)(lambda: plgpu.barrier_wait(mine))

        def take_unit(local: jax.Array, carry: None) -> None:
            serial = turn * per_tile + local
            product = turn * self.num_products + (first or 0) + local
            unit = self.unit_of(step, local)
            self.when_busy(
                step,
                unit,
                lambda: self.apply_unit(index, step, unit, serial, product, tile),
            )
            if step.slab_in:
                self.fetch_x(index, step, serial + stages)
            if first is not None:
                self.fetch_weights(product + stages, places)
            return carry

        jax.lax.fori_loop(0, per_tile, take_unit, None)

    def apply_unit(
        self,
        index: int,
        step: Step,
        unit: jax.Array,
        serial: jax.Array,
        product: jax.Array,
        tile: jax.Array,
    ) -> None:
        """Multiplies one block, or transposes one run."""
        refs, config = self.scratch[index], self.config
        slab = out = None
        if step.slab_in:
            at = self.stage(serial, config.stages)
            plgpu.barrier_wait(refs["x_loaded"].at[at])
            slab = refs["slab_in"].at[at]
        if step.slab_out:
            # The slab's last journey has to be over before it is written again.
            plgpu.wait_smem_to_gmem(config.out_stages - 1, wait_read_only=True)
            out = refs["slab_out"].at[self.stage(serial, config.out_stages)]
        match step.kind:
            case "load":
                self.load(step, unit, slab)
            case "multiply":
                if step.resident:
                    weights = refs["weights"].at[unit]
                else:
                    at = self.stage(product, config.stages)
                    plgpu.barrier_wait(refs["weights_loaded"].at[at])
                    weights = self.weights.at[at]
                self.multiply(step, unit, slab, weights, out)
            case "store":
                self.store(step, unit, out)
        # TMA may read what was just written, and overwrite what was just read.
        plgpu.commit_smem()
        if out is not None:
            panels, _, width = out.shape
            for panel in range(panels):
                target = self.part_of_y(step, unit, tile, panel, width)
                last = panel == panels - 1
                plgpu.copy_smem_to_gmem(out.at[panel], target, commit_group=last)

    def load(self, step: Step, unit: jax.Array, slab: Any) -> None:
        """Brings a run of features of x, or a block's, from a slab into a buffer."""
        assert step.target is not None
        if self.is_narrow(step):
            tile = plgpu.load(slab, layout=_narrow(), optimized=False)
            self.write(step.target, self.narrow(step, step.target, unit), tile)
            return
        for panel, parts in enumerate(self.panels(step, step.target, unit, slab)):
            source = slab.at[panel]
            layout = self.moved(source)
            tile = plgpu.load(source, layout=layout, optimized=False)
            self.write(step.target, parts, tile)

    def store(self, step: Step, unit: jax.Array, slab: Any) -> None:
        """Brings a run of features of y, or a block's, from a buffer into a slab."""
        assert step.source is not None
        if self.is_narrow(step):
            parts = self.narrow(step, step.source, unit)
            slab[...] = self.sum_of(parts, _narrow())
            return
        for panel, parts in enumerate(self.panels(step, step.source, unit, slab)):
            target = slab.at[panel]
            target[...] = self.sum_of(parts, self.moved(target))

    def sum_of(self, parts: Sequence[Any], layout: Any) -> jax.Array:
        """Numbers of y, from a part of a buffer for each of their pieces."""
        found = [plgpu.load(part, layout=layout, optimized=False) for part in parts]
        if len(found) > 1:  # The smallest first.
            wide = [piece.astype(jnp.float32) for piece in reversed(found)]
            found = [functools.reduce(operator.add, wide)]
        return found[0].astype(self.plan.types.y)

    def is_narrow(self, step: Step) -> bool:
        """Whether a step moves runs of features that are too few for a warpgroup."""
        if self.axis == 0:
            return False
        return chain_plan.is_narrow(self.config.rows, step.run)

    def narrow(self, step: Step, buffer: int, unit: jax.Array) -> list[Any]:
        """The runs (runs, rows, features) that a unit moves, for each piece."""
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        count = (step.slab_in or step.slab_out) // step.run
        first = pl.multiple_of(unit * count, count)
        run, rows = pl.ds(0, step.run), pl.ds(0, self.config.rows)
        at: tuple[Any, ...] = (pl.ds(first, count), run, 0, rows)
        if layout.inner > 1:
            p, q = jax.lax.div(first, layout.middle), jax.lax.rem(first, layout.middle)
            at = (p, pl.ds(pl.multiple_of(q, count), count), run, rows)
        return [
            ref.at[piece, *at].transpose((0, 2, 1)) for piece in range(layout.pieces)
        ]

    def multiply(
        self, step: Step, unit: jax.Array, slab: Any, weights: Any, out: Any
    ) -> None:
        """One block of a factor: (rows × c) by (c × b)."""
        factor, types = self.plan.factors[step.factor], self.plan.types
        i, k = self.block_of(step, unit)
        load = functools.partial(plgpu.load, optimized=False)
        if step.source is None:
            sources = [self.cut(slab, self.plan.depth)]
        else:
            blocks = self.block(step.source, factor, factor.c, i, k)
            sources = [self.cut_parts(parts, self.plan.depth) for parts in blocks]
        x_tiles = [
            [load(part, layout=self.layout("LHS")) for part in parts]
            for parts in sources
        ]
        if step.target is None:
            targets = [self.cut(out, step.num_rows)]
        else:
            blocks = self.block(step.target, factor, step.num_rows, i, k)
            targets = [[part.T for part in parts] for parts in blocks]
        length = step.num_rows // len(targets[0])
        for n in range(len(targets[0])):
            sums = self.initial(step, unit, step.first_row + n * length, length)
            for x_piece, w_piece in pieces.products(types.pieces):
                for panel, x_tile in enumerate(x_tiles[x_piece]):
                    rows = self.rows_of_weights(
                        step, panel, w_piece, n * length, length
                    )
                    w_tile = load(weights.at[rows].T, layout=self.layout("RHS"))
                    sums = plgpu.mma(sums, x_tile, w_tile)
            if step.factor == 0:
                sums = activate(sums, self.activation)
            if step.target is None:
                targets[0][n][...] = sums.astype(types.y)
            else:
                self.write(step.target, [parts[n] for parts in targets], sums)

    def cut(self, slab: Any, size: int) -> list[Any]:
        """Parts (rows, size) of a slab of x or y."""
        if self.axis == -1:
            return [slab.at[panel] for panel in range(slab.shape[0])]
        return self.cut_parts([slab.at[0]], size)

    def cut_parts(self, parts: Sequence[Any], size: int) -> list[Any]:
        """Parts (rows, size) of parts (features, rows)."""
        return [
            part.at[pl.ds(start, size)].T
            for part in parts
            for start in range(0, part.shape[0], size)
        ]

    def initial(
        self, step: Step, unit: jax.Array, first_row: int, length: int
    ) -> jax.Array:
        """What the sums of (rows × length) products start from."""
        shape, layout = (self.config.rows, length), self.layout("ACC")
        if step.factor > 0 or self.bias is None:
            return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)
        bias = plgpu.load(
            self.bias.at[self.whole_block(step, unit), pl.ds(first_row, length)],
            layout=layout.reduce(0),
            optimized=False,
        )
        return plgpu.layout_cast(jax.lax.broadcast_in_dim(bias, shape, (1,)), layout)

    def write(self, buffer: int | None, parts: Sequence[Any], tile: jax.Array) -> None:
        """Writes numbers into a buffer, or each piece of them into its part."""
        assert buffer is not None
        if len(parts) == 1:
            parts[0][...] = tile.astype(self.plan.buffers[buffer].dtype)
            return
        for part, piece in zip(parts, pieces.split(tile, len(parts)), strict=True):
            part[...] = piece

    def layout(self, operand: Literal["LHS", "RHS", "ACC"]) -> Any:
        """How an operand of an mma is spread over a warpgroup's registers."""
        layout = getattr(plgpu.Layout, f"MMA_{operand}")
        return layout(jnp.dtype(self.plan.types.operand), m_warps=self.config.m_warps)

    def moved(self, slab: Any) -> Any:
        """How a slab that is only moved is spread over a warpgroup's registers."""
        tile = chain_plan.move_tile(*slab.shape)
        assert tile is not None
        return plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=tile.m_warps)

    def block(
        self, buffer: int, factor: tiles.Factor, length: int, i: jax.Array, k: jax.Array
    ) -> list[list[Any]]:
        """Block (i, k) of a factor in a buffer.

        Returns:
          For each piece of the numbers, the parts of shape (features, rows) that the
          block is cut into.
        """
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        rows = pl.ds(0, self.config.rows)
        if layout.has_columns(factor):
            q, r = jax.lax.div(k, layout.inner), jax.lax.rem(k, layout.inner)
            return [
                [ref.at[piece, pl.ds(i * length, length), q, r, rows]]
                for piece in range(layout.pieces)
            ]
        # The neighbour's blocks cut this one's features into parts.
        parts = layout.num_parts(factor, length)
        return [
            [
                ref.at[piece, i * parts + part, pl.ds(0, layout.middle), k, rows]
                for part in range(parts)
            ]
            for piece in range(layout.pieces)
        ]

    def panels(
        self, step: Step, buffer: int, unit: jax.Array, slab: Any
    ) -> list[list[Any]]:
        """What a unit moves, in a buffer.

        Returns:
          For each panel of the slab, a part of the same shape for each piece of the
          numbers.
        """
        count, features, width = slab.shape
        if self.axis == 0:
            i, k = self.block_of(step, unit)
            factor = self.plan.factors[step.factor]
            blocks = [part for (part,) in self.block(buffer, factor, features, i, k)]
            return [
                [part.at[:, pl.ds(panel * width, width)] for part in blocks]
                for panel in range(count)
            ]
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        size, rows = count * width, pl.ds(0, self.config.rows)
        runs = []
        for panel in range(count):
            if size % layout.run:
                feature = unit * size + panel * width
                number = jax.lax.div(feature, layout.run)
                start: Any = pl.multiple_of(jax.lax.rem(feature, layout.run), width)
            else:
                before, start = divmod(panel * width, layout.run)
                number = unit * (size // layout.run) + before
            at: tuple[Any, ...] = (number, pl.ds(start, width), 0, rows)
            if layout.inner > 1:
                p = jax.lax.div(number, layout.middle)
                q = jax.lax.rem(number, layout.middle)
                at = (p, q, pl.ds(start, width), rows)
            runs.append([ref.at[piece, *at].T for piece in range(layout.pieces)])
        return runs


def _narrow() -> Any:
    """How (runs, rows, 8) features lie in registers: a run for each warp."""
    return compat.tiled_layout(
        ((4, 8, 8), (1, 8, 8), (2,)),
        warp_dims=(-7,),
        lane_dims=(-3, -2),
        vector_dim=-1,
    )
