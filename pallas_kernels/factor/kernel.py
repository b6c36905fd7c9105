"""The kernel of `factor`: how CTAs, warpgroups and TMA apply one factor.

    x in HBM ──TMA──▶ slab ──ldmatrix────────────────────▶ registers ─┐
                       ├─loads of 16 bytes─▶ blocks parted in them ───┤
                       └▶ pieces in turned buffer ─ldmatrix.trans─▶ " ┤
    weights (L2) ─TMA▶ slab ──the same──▶ registers ──────────────────┴▶ mma.sync ─┐
    large blocks of 16 bits: both slabs ──────────────────────────────▶ wgmma ─────┤
                                                                                   │
    y in HBM ◀──TMA── slab ◀──stmatrix, or blocks zipped── bias, activation ◀──────┘

An item of work is a tile of `rows` vectors by `features` outputs of one block, or of
all d neighbours, summed over chunks of `depth` inputs. CTAs stay and take
items until there are none left; the first warpgroup fetches `stages` chunks ahead,
across the ends of items, and stores go out while the next item is computed. Where all
weights of a block fit beside the rest (`resident`), a CTA keeps them while the batch
goes by, and fetches x only. See `pallas_kernels.factor.plan` for the three ways from x
to the tensor core; in short: where a block of x is contiguous along features
(feature-last, d = 1) or along the batch (feature-first), it is multiplied as it was
fetched. Of a feature-last x all d blocks, which are few, are taken together: their
features lie zipped, in x, w and y alike, so a thread loads what all blocks have of an
input side by side and parts it in its registers into an operand for each
(`compat.unzip_operands`), and zips the sums before it stores them. float32 is
multiplied in bfloat16 pieces. Operands are split in registers as they are loaded, but a
feature-first x goes through the turned buffer in pieces.

Blocks of 128 × 128 and more are multiplied by wgmma, if they are of 16 bits and do not
lie zipped: it reads both operands where TMA put them, x with the vectors or the
features in order, so that all registers are left for sums, of 64 × 256 for each of two
or three warpgroups. Products of a chunk run on while the next one is waited for; a
stage is free once those of the chunk after it are queued up. Sums leave by way of a
slab for 64 outputs, in turns. Weights that are not resident are shared by the two or
four CTAs of a `cluster`, at neighbouring tiles of the batch: each fetches a part of a
chunk and sends it to all. Likewise x, by those at neighbouring tiles of outputs
(`cluster_features`). So a stage is fetched anew only when all warpgroups of the cluster
have told all of its CTAs that they are done with it, by a barrier that takes as many
arrivals. All CTAs take as many chunks, and wait for whatever is sent to them, data or
arrivals, so that none leaves before. What lies zipped may be shared so, too.

Nothing of x or y is permuted in HBM. Nor is w as a rule: blocks of d = 1 are (a, b, c)
already, neighbouring ones are parted in registers, and resident ones of a feature-first
array may be put in order by the CTA that keeps them. Only where that loses, for large
feature-first blocks in large batches, XLA writes w in order before the launch: see
`pallas_kernels.factor.weights`. Neighbours are merged into larger blocks where b or c
is far below 16; those, too, XLA writes, unless `pallas_kernels.radix` takes them.

Bytes per vector and block, with s = itemsize, p pieces of 16 bits (1, 2 or 3), and
T = ⌈b / features⌉:

    HBM    s·(b + c), x read once and y written once: the floor. For T > 1 the tiles of
           outputs run at about the same time, so that x comes from L2 but once.
    L2     s·(T·c + b) + s·b·c / (rows·cluster); nearly no weights if they are
           resident.
    SMEM   TMA writes what L2 gave, and reads s·b; each operand of the product is read
           by every warp that needs it: x by split_features · (4 or fewer) warps,
           weights by split_rows · (4 or fewer); y is written once. The turned buffer
           adds s·c + 4p·c. wgmma reads x split_features times, and weights once for
           each 64 vectors: s·(c·T·split_features + b·c / 64).

Shared memory: `stages` · s·depth·(rows + features), times d where blocks lie zipped,
slabs of y (with wgmma 8 KB for each warpgroup and out_stage), and where the turned
buffer is used about 2p·rows·depth; see `Tiling.smem_bytes`.

Bank conflicts: none between TMA, ldmatrix and stmatrix, by swizzles of the width of the
panels that slabs consist of, and by padding in the turned buffer; nor where blocks lie
zipped in 16, 24 or 48 bytes, as rows of a panel are four times that apart, or, of 32
bytes, a swizzle of whole rows parts them. ldmatrix's loads and stores of float32 take
twice the time.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat, pieces, tiles
from pallas_kernels.common.epilogue import Activation, activate
from pallas_kernels.common.slabs import slab
from pallas_kernels.factor import arranging
from pallas_kernels.factor import weights as factor_weights
from pallas_kernels.factor.config import WGMMA_ROWS
from pallas_kernels.factor.plan import OUTPUTS, Tiling

_EPILOGUE_STEP = 16  # Outputs that wgmma's sums are finished for at a time.


def view(plan: Tiling, length: int) -> tuple[int, ...]:
    """Shape in which x (length c) or y (length b) is read: no data moves."""
    a, d = plan.factor.a, plan.factor.d
    if plan.feature_first:
        return (a, length, d, plan.batch)
    return (plan.batch, a, length * d)


def launch(
    x: jax.Array,
    weights: jax.Array,
    offsets: jax.Array | None,
    plan: Tiling,
    activation: Activation | None,
    out: Any,
) -> jax.Array:
    config = plan.config
    lanes = config.warpgroups * config.out_stages

    def panels(zipped: bool, count: int, shape: tuple[int, ...], dtype: Any) -> Any:
        if zipped and not plan.zip_swizzle:
            return plgpu.SMEM((count, *shape), dtype)
        return slab((count, *shape), dtype, tiled=config.wgmma)

    scratch = {
        "x_slab": panels(plan.zips, config.stages, plan.slab_in, x.dtype),
        "w_slab": panels(plan.zips, plan.weight_stages, plan.slab_weights, x.dtype),
        "y_slab": slab((lanes, *plan.slab_out), out),
        "loaded": plgpu.Barrier(
            num_arrivals=_num_copies(plan), num_barriers=config.stages
        ),
    }
    axes = {"row": config.cluster, "column": config.cluster_features}
    if config.cluster_size > 1:
        scratch["free"] = plgpu.ClusterBarrier(
            collective_axes=tuple(axes),
            num_arrivals=config.warpgroups,
            num_barriers=config.stages,
        )
    elif config.warpgroups > 1:
        scratch["free"] = plgpu.Barrier(
            num_arrivals=config.warpgroups, num_barriers=config.stages
        )
    if config.resident and plan.arrival != "arranged":
        scratch["w_loaded"] = plgpu.Barrier(
            num_arrivals=plan.weight_stages * _num_weight_copies(plan)
        )
    if plan.way == "turned" or config.resident:
        scratch["phase"] = plgpu.Barrier(num_arrivals=config.warpgroups)
    if plan.way == "turned":
        shape = (plan.pieces, *plan.turned)
        scratch["turned"] = plgpu.SMEM(shape, jnp.bfloat16)
    operands = (x, weights) if offsets is None else (x, weights, offsets)

    def body(*refs: Any) -> None:
        *inputs, y_ref, named = refs
        x_ref, w_ref, *offset_ref = inputs
        _Kernel(
            plan, activation, x_ref, w_ref, (offset_ref or [None])[0], y_ref, **named
        ).run()

    y: jax.Array = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(view(plan, plan.factor.b), out),
        scratch_types=[scratch],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(plan.clusters,),
        grid_names=("cta",),
        cluster=tuple(axes.values()) if config.cluster_size > 1 else (),
        cluster_names=tuple(axes) if config.cluster_size > 1 else (),
        num_threads=config.warpgroups,
        thread_name="wg",
    )(*operands)
    return compat.varying_as(y, *operands)


def _num_copies(plan: Tiling) -> int:
    """TMA copies that fetch a chunk."""
    weights = 0 if plan.config.resident else _num_weight_copies(plan)
    return plan.slab_in[0] + weights


def _num_weight_copies(plan: Tiling) -> int:
    """Those of them that fetch weights."""
    return plan.slab_weights[0]


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    """One item of work: block, first output, first vector."""

    block: jax.Array
    feature: jax.Array
    row: jax.Array


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: Tiling
    activation: Activation | None
    x: Any
    w: Any
    offsets: Any
    y: Any
    x_slab: Any
    w_slab: Any
    y_slab: Any
    loaded: Any
    free: Any = None
    turned: Any = None
    phase: Any = None
    w_loaded: Any = None

    def run(self) -> None:
        """Takes items until there are none left."""
        plan, config = self.plan, self.plan.config
        mine = self.mine()
        for serial in range(config.stages - self.lag):
            self.fetch(jnp.int32(serial))
        if plan.arrival == "arranged":
            factor_weights.clear(self.untiled(self.w_slab), plan, self.deal)

        def take_item(turn: jax.Array, carry: None) -> None:
            item = self.item_of(turn)
            if config.resident:
                self.keep_weights(item, turn)

            add_up = self.add_up_wgmma if config.wgmma else self.add_up
            self.finish(item, turn, add_up(item, turn))
            return carry

        jax.lax.fori_loop(0, mine, take_item, None)
        plgpu.wait_smem_to_gmem(0)

    @property
    def lag(self) -> int:
        """Chunks after which a stage is fetched anew.

        The first warpgroup fetches for all. It takes the stage of the chunk before, if
        there are more, which the others have mostly left, so that it need not wait.
        """
        config = self.plan.config
        if config.wgmma:  # The products of a chunk are finished with the next one's.
            return 1
        return 1 if config.warpgroups > 1 and config.stages > 1 else 0

    def add_up(self, item: _Item, turn: jax.Array) -> list[jax.Array]:
        """Sums over an item's chunks, of each block or of each panel of vectors."""
        plan, config = self.plan, self.plan.config

        def take_chunk(chunk: jax.Array, sums: Any) -> Any:
            serial = turn * plan.chunks + chunk
            at = jax.lax.rem(serial, config.stages)
            plgpu.barrier_wait(self.loaded.at[at])
            if plan.way == "turned":
                self.meet()  # Nobody reads the chunk before any more.
                self.turn(at)
                self.meet()
            weights = self.weights(item, chunk, at)
            if plan.zips:
                sums = self.multiply_zipped(at, weights, sums)
            else:
                sums = self.multiply(at, weights, sums)
            plgpu.commit_smem()  # TMA may overwrite what was just read.
            self.release(serial)
            self.fetch(serial + config.stages - self.lag)
            return sums

        sums: list[jax.Array] = jax.lax.fori_loop(
            0, plan.chunks, take_chunk, self.zeros()
        )
        return sums

    def add_up_wgmma(self, item: _Item, turn: jax.Array) -> list[jax.Array]:
        """The same by wgmma, for each panel of 64 vectors.

        The products of a chunk run on while the next chunk is waited for, and its
        products are queued up behind them. Only then is it known that those of the
        chunk before are finished, and its stage may be fetched anew.
        """
        plan, config = self.plan, self.plan.config

        def take_item(*sums: Any) -> list[jax.Array]:
            def take_chunk(chunk: jax.Array, carry: None) -> None:
                serial = turn * plan.chunks + chunk
                at = jax.lax.rem(serial, config.stages)
                plgpu.barrier_wait(self.loaded.at[at])
                weights = self.weights(item, chunk, at)
                plgpu.wgmma_wait(self.start_products(at, weights, sums))
                self.release(serial - 1)
                self.fetch(serial - 1 + config.stages)
                return carry

            jax.lax.fori_loop(0, plan.chunks, take_chunk, None)
            return [one[...] for one in sums]  # Waits for all products.

        one = compat.wgmma_sums((WGMMA_ROWS, plan.features))
        found: list[jax.Array] = pl.run_scoped(
            take_item, *[one] * (plan.rows // WGMMA_ROWS)
        )
        return found

    def weights(self, item: _Item, chunk: jax.Array, at: jax.Array) -> Any:
        """A chunk of weights in shared memory, of the item's block if not zipped."""
        plan = self.plan
        stage = factor_weights.stage_of(plan, item.feature, chunk, at)
        return self.w_slab.at[stage]

    def release(self, serial: jax.Array) -> None:
        """Tells that this warpgroup has read chunk `serial`, if anybody waits."""
        plan, config = self.plan, self.plan.config
        if self.free is None:
            return
        wanted = serial + config.stages < self.mine() * plan.chunks

        @pl.when((serial >= 0) & wanted)
        def _() -> None:
            if config.cluster_size > 1:
                plgpu.commit_smem()  # One thread speaks for all: wait for the others.
            plgpu.barrier_arrive(self.free.at[jax.lax.rem(serial, config.stages)])

    def meet(self) -> None:
        """Waits for the CTA's other warpgroups."""
        if self.plan.config.warpgroups > 1:
            plgpu.barrier_arrive(self.phase)
            plgpu.barrier_wait(self.phase)

    def mine(self) -> jax.Array:
        """How many items this CTA takes."""
        each, more = divmod(self.plan.items, self.plan.clusters)
        return each + (jax.lax.axis_index("cta") < more).astype(jnp.int32)

    def item_of(self, turn: jax.Array) -> _Item:
        plan, config = self.plan, self.plan.config
        cta = jax.lax.axis_index("cta")
        if config.resident:  # A run of items, most of them of one block.
            each, more = divmod(plan.items, plan.clusters)
            index = cta * each + jnp.minimum(cta, more) + turn
        else:
            index = cta + turn * plan.clusters
        index, feature = _divmod(index, plan.feature_steps)
        if config.batch_first:
            group, tile = _divmod(index, plan.batch_steps)
        else:
            tile, group = _divmod(index, plan.groups)
        if config.cluster_size > 1:
            tile = tile * config.cluster + jax.lax.axis_index("row")
            column = jax.lax.axis_index("column")
            feature = feature * config.cluster_features + column
        return _Item(group * plan.blocks, feature * config.features, tile * config.rows)

    def parts(self) -> tuple[jax.Array, jax.Array]:
        """This warpgroup's first output and vector within the tile."""
        plan, config = self.plan, self.plan.config
        features, rows = _divmod(jax.lax.axis_index("wg"), config.split_rows)
        return features * plan.features, rows * plan.rows

    def fetch(self, serial: jax.Array) -> None:
        """Starts the copies of chunk number `serial`, counted over items."""
        plan, config = self.plan, self.plan.config
        turn, chunk = _divmod(serial, plan.chunks)
        at = jax.lax.rem(serial, config.stages)

        @pl.when((turn < self.mine()) & (jax.lax.axis_index("wg") == 0))
        def _() -> None:
            if self.free is not None:
                used = serial >= config.stages
                pl.when(used)(lambda: plgpu.barrier_wait(self.free.at[at]))
            item = self.item_of(turn)
            self.fetch_x(item, chunk * config.depth, at)
            if not config.resident:
                self.fetch_weights(item, chunk, at, self.loaded.at[at])

    def keep_weights(self, item: _Item, turn: jax.Array) -> None:
        """Brings the weights of an item's group, unless they are those at hand."""
        plan = self.plan
        before = self.item_of(jnp.maximum(turn - 1, 0))

        @pl.when((turn == 0) | (item.block != before.block))
        def _() -> None:
            self.meet()  # Nobody multiplies by the weights at hand any more.
            if plan.arrival == "arranged":
                slab = self.untiled(self.w_slab)
                factor_weights.arrange(self.w, item.block, slab, plan, self.deal)
                if plan.config.wgmma:  # It reads as TMA does, not as threads do.
                    plgpu.commit_smem()
                self.meet()
                return

            @pl.when(jax.lax.axis_index("wg") == 0)
            def _() -> None:
                for at in range(plan.weight_stages):
                    tile, chunk = divmod(at, plan.chunks)
                    part = dataclasses.replace(
                        item, feature=jnp.int32(tile * plan.config.features)
                    )
                    self.fetch_weights(part, jnp.int32(chunk), at, self.w_loaded)

            plgpu.barrier_wait(self.w_loaded)

    def fetch_x(self, item: _Item, depth: jax.Array, at: jax.Array) -> None:
        plan, config = self.plan, self.plan.config
        i, k = _divmod(item.block, plan.factor.d)
        slab, loaded = self.untiled(self.x_slab).at[at], self.loaded.at[at]
        panels, _, *last = plan.slab_in
        all_rows = pl.ds(item.row, config.rows)
        for p in range(panels):
            if plan.zips:
                first = depth + p * plan.panel_depth
                source = factor_weights.zipped(
                    self.x.at[all_rows, i], plan, first, plan.panel_depth
                )
            elif plan.feature_first:
                rows = pl.ds(item.row + p * last[0], last[0])
                source = self.x.at[i, pl.ds(depth, config.depth), k, rows]
            else:
                source = self.x.at[all_rows, i, pl.ds(depth + p * last[0], last[0])]
            plgpu.copy_gmem_to_smem(
                source,
                slab.at[p],
                loaded,
                collective_axes="column" if config.cluster_features > 1 else None,
            )

    def fetch_weights(
        self, item: _Item, chunk: jax.Array, at: Any, loaded: Any
    ) -> None:
        plan = self.plan
        found = factor_weights.sources(self.w, plan, item.block, item.feature, chunk)
        for p, source in enumerate(found):
            plgpu.copy_gmem_to_smem(
                source,
                self.untiled(self.w_slab).at[at, p],
                loaded,
                collective_axes="row" if plan.config.cluster > 1 else None,
            )

    def untiled(self, slab: Any) -> Any:
        """A slab of x or of weights as rows, for others than wgmma."""
        return compat.untiled(slab) if self.plan.config.wgmma else slab

    def zeros(self) -> list[jax.Array]:
        """Sums, of each block, and there of each panel of vectors."""
        plan = self.plan
        shape, count = (plan.rows, plan.features), plan.blocks
        if plan.way != "flat":
            width = plan.slab_in[-1] if plan.way == "columns" else plan.rows
            shape, count = (plan.features, width), plan.rows // width
        zero = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), self.layout("ACC"))
        return [zero] * count

    def layout(self, operand: Literal["LHS", "RHS", "ACC"]) -> Any:
        """How an operand of an mma is spread over a warpgroup's registers."""
        layout = getattr(plgpu.Layout, f"MMA_{operand}")
        # float32 is multiplied in pieces, all of 16 bits.
        return layout(jnp.bfloat16, m_warps=self.plan.config.m_warps)

    def turn(self, at: jax.Array) -> None:
        """Brings a chunk of x into the turned buffer, in pieces."""
        plan = self.plan
        panels, _, width = plan.slab_in

        def take_unit(p: jax.Array) -> None:
            columns = pl.ds(p * width, width)
            whole = _load(self.x_slab.at[at, p], _turning())
            for n, part in enumerate(self.split(whole)):
                self.turned.at[n, :, columns][...] = part

        self.deal(panels, take_unit)

    def split(self, x: jax.Array) -> Sequence[jax.Array]:
        """What was loaded, as the tensor core takes it."""
        if self.plan.item_in == 4:
            return pieces.split(x, self.plan.pieces)
        return (x,)

    def deal(self, units: int, take: Callable[[jax.Array], None]) -> None:
        """Deals units out to the warpgroups."""
        arranging.deal(units, self.plan.config.warpgroups, take)

    def multiply(
        self, at: jax.Array, weights: Any, sums: list[jax.Array]
    ) -> list[jax.Array]:
        """Adds the products of a chunk to the sums, panel by panel of weights."""
        plan = self.plan
        feature, _ = self.parts()
        width = plan.weight_width
        side: Literal["LHS", "RHS"] = "RHS" if plan.way == "flat" else "LHS"

        def take_panel(p: Any, sums: list[jax.Array]) -> list[jax.Array]:
            ref = weights.at[p, pl.ds(feature, plan.features)]
            ref = ref.T if plan.way == "flat" else ref
            w_parts = self.split(_load(ref, self.layout(side)))
            sums = list(sums)
            for m in range(len(sums)):
                if plan.way == "flat":
                    for start, parts in self.inputs(at, p, width):
                        stop = start + parts[0].shape[1]
                        w = [part[start:stop] for part in w_parts]
                        sums[m] = self.add_products(sums[m], parts, w)
                else:
                    parts = [
                        self.columns(at, pl.ds(p * width, width), m, piece)
                        for piece in range(plan.pieces)
                    ]
                    sums[m] = self.add_products(sums[m], w_parts, parts)
            return sums

        panels = weights.shape[0]
        if plan.sums_apart:
            # Panels' sums do not wait for one another: all would be begun at once.
            return jax.lax.fori_loop(0, panels, take_panel, sums)
        for p in range(panels):
            sums = take_panel(p, sums)
        return sums

    def multiply_zipped(
        self, at: jax.Array, weights: Any, sums: list[jax.Array]
    ) -> list[jax.Array]:
        """The same for neighbouring blocks of a feature-last x.

        x of all blocks is held while weights come and go, a tile of the tensor core at
        a time, as one load has the entries of all blocks.
        """
        plan = self.plan
        feature, row = self.parts()
        tile = plan.output_unit
        starts = range(0, plan.features, tile)

        def take_inputs(step: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            found = [[one[:, start : start + tile] for start in starts] for one in sums]
            x = self.unzip(self.x_slab.at[at], "LHS", step, row, plan.rows)
            for n, start in enumerate(starts):
                w = self.unzip(weights, "RHS", step, feature + start, tile)
                for block, tiles_of_block in enumerate(found):
                    tiles_of_block[n] = self.add_products(
                        tiles_of_block[n], x[block], w[block]
                    )
            return [_joined(parts, axis=1) for parts in found]

        return self.over_inputs(take_inputs, sums)

    def add_products(
        self, sums: jax.Array, a: Sequence[jax.Array], b: Sequence[jax.Array]
    ) -> jax.Array:
        """Adds the product of two operands in pieces, the smallest products first.

        Where `Tiling.sums_apart`, they are summed by themselves and then added to the
        rest by ordinary additions, which round.
        """
        pairs = pieces.products(self.plan.pieces)
        if not self.plan.sums_apart:
            for i, j in pairs:
                sums = plgpu.mma(sums, a[i], b[j])
            return sums
        found = []
        # A tile of the tensor core at a time: it takes as many registers more.
        width = 8 * (4 // self.plan.config.m_warps)
        zero = jnp.zeros((sums.shape[0], width), sums.dtype)
        zero = plgpu.layout_cast(zero, self.layout("ACC"))
        for start in range(0, sums.shape[1], width):
            columns, few = slice(start, start + width), zero
            for i, j in pairs:
                few = plgpu.mma(few, a[i], b[j][:, columns])
            found.append(sums[:, columns] + few)
        return _joined(found, axis=1)

    def over_inputs(
        self,
        take: Callable[[jax.Array, list[jax.Array]], list[jax.Array]],
        sums: list[jax.Array],
    ) -> list[jax.Array]:
        """Adds the products of a chunk to the sums, 16 inputs at a time.

        A loop, as operands of several steps at a time would take more registers.
        """
        steps = self.plan.config.depth // tiles.MMA_K
        found: list[jax.Array] = jax.lax.fori_loop(0, steps, take, sums)
        return found

    def unzip(
        self,
        slab: Any,
        operand: Literal["LHS", "RHS"],
        step: jax.Array,
        row: Any,
        rows: int,
    ) -> list[Sequence[jax.Array]]:
        """Operands of a step's 16 inputs for each block, in pieces."""
        plan = self.plan
        m_warps, blocks = plan.config.m_warps, plan.blocks
        panels = tiles.MMA_K // plan.panel_depth
        source = slab.at[pl.ds(step * panels, panels), pl.ds(row, rows)]
        layout = compat.zipped_operands(operand, source.shape, m_warps, plan.item_in)
        value = _load(source, layout)
        parts = compat.unzip_operands(value, operand, blocks, m_warps)
        return [self.split(part) for part in parts]

    def start_products(self, at: jax.Array, slab: Any, sums: Sequence[Any]) -> int:
        """Has wgmma add the products of a chunk to the sums; counts what it started.

        Sums are of 64 vectors each. Both operands stay where TMA put them: x has the
        vectors in its first axis, or features first and is read transposed.
        """
        plan = self.plan
        feature, row = self.parts()
        width, panels = plan.weight_width, slab.shape[0]
        for p in range(panels):
            weights = slab.at[p, pl.ds(feature, plan.features)].T
            for m, one in enumerate(sums):
                first = row + m * WGMMA_ROWS
                if plan.feature_first:
                    vectors = jax.lax.div(first, WGMMA_ROWS)
                    x = self.x_slab.at[at, vectors, pl.ds(p * width, width)].T
                else:
                    x = self.x_slab.at[at, p, pl.ds(first, WGMMA_ROWS)]
                plgpu.wgmma(one, x, weights)
        return panels * len(sums)

    def inputs(
        self, at: jax.Array, p: Any, length: int
    ) -> list[tuple[int, Sequence[jax.Array]]]:
        """Inputs of panel p of the weights as left operands, in pieces.

        With where they begin, as panels of x may be shorter.
        """
        plan = self.plan
        _, row = self.parts()
        width = plan.slab_in[-1]
        found = []
        for n, start in enumerate(range(0, length, width)):
            panel = p * length // width + n
            ref = self.x_slab.at[at, panel, pl.ds(row, plan.rows)]
            found.append((start, self.split(_load(ref, self.layout("LHS")))))
        return found

    def columns(self, at: jax.Array, inputs: Any, m: int, i: int) -> jax.Array:
        """Inputs of a block as a right operand: piece i of panel m of the vectors."""
        plan = self.plan
        _, row = self.parts()
        if plan.way == "columns":
            width = plan.slab_in[-1]
            panel = jax.lax.div(row, width) + m
            ref = self.x_slab.at[at, panel, inputs]
        else:
            ref = self.turned.at[i, inputs, pl.ds(row, plan.rows)]
        return _load(ref, self.layout("RHS"))

    def finish(self, item: _Item, turn: jax.Array, sums: Any) -> None:
        """Applies the epilogue to the sums and sends them to y."""
        plan = self.plan
        if plan.config.wgmma:
            self.send_parts(item, turn, sums)
        elif plan.zips:
            self.send_zipped(item, turn, sums)
        else:
            feature, _ = self.parts()
            first = item.feature + feature
            (offsets,) = self.load_offsets(item.block, first, plan.features)
            self.send(item, turn, [self.epilogue(one, offsets) for one in sums])

    def load_offsets(self, block: Any, feature: jax.Array, length: int) -> list[Any]:
        """The bias of so many outputs of each block; None if there is none."""
        if self.offsets is None:
            return [None] * self.plan.blocks
        return factor_weights.load_bias(
            self.offsets, block, feature, length, self.plan, self.layout("ACC")
        )

    def epilogue(self, sums: jax.Array, offsets: jax.Array | None) -> jax.Array:
        if offsets is not None:
            outputs = 1 if self.plan.vectors_lead else 0
            # Which of several layouts it has is not clear from the reduced one.
            wide = jax.lax.broadcast_in_dim(offsets, sums.shape, (outputs,))
            sums = sums + plgpu.layout_cast(wide, self.layout("ACC"))
        return activate(sums, self.activation)

    def send(self, item: _Item, turn: jax.Array, values: list[jax.Array]) -> None:
        """Sends a warpgroup's own part of a tile."""
        plan = self.plan
        feature, row = self.parts()
        i, k = _divmod(item.block, plan.factor.d)
        panels, _, width = plan.slab_out
        slab = self.slab(turn)
        per_value = panels // len(values)
        for m, value in enumerate(values):
            value = value.astype(self.y.dtype)
            for q in range(per_value):
                part = value[:, q * width : (q + 1) * width]
                slab.at[m * per_value + q][...] = part
        plgpu.commit_smem()
        for p in range(panels):
            first, start = item.row + row, item.feature + feature
            if plan.way == "flat":
                target = self.y.at[
                    pl.ds(first, plan.rows), i, pl.ds(start + p * width, width)
                ]
            else:
                target = self.y.at[
                    i, pl.ds(start, plan.features), k, pl.ds(first + p * width, width)
                ]
            plgpu.copy_smem_to_gmem(slab.at[p], target, commit_group=p == panels - 1)

    def send_parts(
        self, item: _Item, turn: jax.Array, sums: Sequence[jax.Array]
    ) -> None:
        """Sends wgmma's sums part by part, lest shared memory hold them all."""
        plan = self.plan
        feature, row = self.parts()
        i, k = _divmod(item.block, plan.factor.d)
        width = plan.slab_out[1 if plan.feature_first else 2]
        per_panel = plan.features // width
        for m, q in itertools.product(range(len(sums)), range(per_panel)):
            part = sums[m][:, q * width : (q + 1) * width]
            start = item.feature + feature + q * width
            (offsets,) = self.load_offsets(item.block, start, width)
            part = self.finish_part(part, offsets)
            slab = self.slab((turn * len(sums) + m) * per_panel + q).at[0]
            rows = pl.ds(item.row + row + m * WGMMA_ROWS, WGMMA_ROWS)
            if plan.feature_first:
                slab.T[...] = part
                target = self.y.at[i, pl.ds(start, width), k, rows]
            else:
                slab[...] = part
                target = self.y.at[rows, i, pl.ds(start, width)]
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(slab, target)

    def finish_part(self, sums: jax.Array, offsets: jax.Array | None) -> jax.Array:
        """Applies the epilogue and rounds, with few registers beside the sums'."""
        step = math.gcd(_EPILOGUE_STEP, sums.shape[1])
        parts = []
        for start in range(0, sums.shape[1], step):
            outputs = slice(start, start + step)
            finish = functools.partial(
                self.epilogue, offsets=None if offsets is None else offsets[outputs]
            )
            part = jax.lax.cond(
                self.always, finish, lambda part: part, sums[:, outputs]
            )
            parts.append(part.astype(self.y.dtype))
        return _joined(parts, axis=1)

    @property
    def always(self) -> jax.Array:
        """True, but not to the compiler: it would work on all steps at once."""
        return jax.lax.axis_index("wg") < self.plan.config.warpgroups

    def slab(self, serial: jax.Array) -> Any:
        """A slab of y that this warpgroup may write."""
        out_stages = self.plan.config.out_stages
        # Its last journey has to be over.
        plgpu.wait_smem_to_gmem(out_stages - 1, wait_read_only=True)
        wg = jax.lax.axis_index("wg")
        return self.y_slab.at[wg * out_stages + jax.lax.rem(serial, out_stages)]

    def send_zipped(
        self, item: _Item, turn: jax.Array, sums: Sequence[jax.Array]
    ) -> None:
        """Finishes neighbouring blocks' sums, zips them and sends them, tile by tile.

        The bias of all their outputs would take too many registers.
        """
        plan = self.plan
        feature, row = self.parts()
        i = jax.lax.div(item.block, plan.blocks)
        slab, tile = self.slab(turn), plan.output_unit
        rows = self.y.at[pl.ds(item.row + row, plan.rows), i]
        panels = tile // OUTPUTS

        def finish_tile(start: int) -> None:
            first = item.feature + feature + start
            offsets = self.load_offsets(item.block, first, tile)
            parts = [
                self.epilogue(one[:, start : start + tile], offset).astype(self.y.dtype)
                for one, offset in zip(sums, offsets, strict=True)
            ]
            target = slab.at[pl.ds(start // OUTPUTS, panels)]
            target[...] = compat.zip_sums(parts, target.shape, plan.config.m_warps)

        for start in range(0, plan.features, tile):
            pl.when(self.always)(functools.partial(finish_tile, start))
        plgpu.commit_smem()
        count = plan.features // OUTPUTS
        for p in range(count):
            first = item.feature + feature + p * OUTPUTS
            part = factor_weights.zipped(rows, plan, first, OUTPUTS)
            plgpu.copy_smem_to_gmem(slab.at[p], part, commit_group=p == count - 1)


def _joined(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=axis)


def _turning() -> Any:
    """How a panel lies in registers while it is split."""
    return plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=1)


def _divmod(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    if by == 1:
        return n, jnp.int32(0)
    return jax.lax.div(n, by), jax.lax.rem(n, by)


def _load(ref: Any, layout: Any) -> Any:
    return plgpu.load(ref, layout=layout, optimized=False)
