"""What a warpgroup of the chain kernel does; `pallas_kernels.chain` describes it."""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import arranging, chain_plan, cluster, compat, pieces
from pallas_kernels.chain_plan import Step
from pallas_kernels.chain_views import Views
from pallas_kernels.epilogue import Activation, activate


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel(Views):
    """What the kernel's functions share while they are traced; refs are Pallas refs.

    Attributes:
      activation: applied to the last factor's sums.
      num_tiles: of the batch.
      clusters: that were launched, or CTAs without clusters.
      blocks: weights (a·d, pieces, b, c) of each factor, in HBM; (a, b, c, d) where
        this kernel arranges them.
      bias: (a·d, b) of the last factor, in HBM, or None.
      weights: the ring of slabs that they are fetched into, None if all are resident.
      scratch: slabs and barriers of each step.
      phase: barrier of the CTA's warpgroups.
      written, loaded: barriers of the cluster's, and
      last_loaded: memory for what nobody reads; see `exchange`. None without a cluster.
    """

    activation: Activation | None
    num_tiles: int
    clusters: int
    blocks: Sequence[Any]
    bias: Any
    weights: Any
    scratch: Sequence[dict[str, Any]]
    phase: Any
    written: Any
    loaded: Any
    last_loaded: Any

    def run(self) -> None:
        """Takes tiles until none are left; the CTAs of a cluster take the same ones."""
        steps = self.plan.steps
        arranged = [
            (index, step)
            for index, step in enumerate(steps)
            if step.resident and self.plan.arrival(step.factor) == "arranged"
        ]
        for index, step in enumerate(steps):
            if step.resident and (index, step) not in arranged:
                self.fetch_resident(index, step)
        for ahead in range(self.config.stages):
            for index, step in enumerate(steps):
                if step.slab_in:
                    self.fetch_x(index, step, jnp.int32(ahead))
            if self.num_products:
                self.fetch_weights(jnp.int32(ahead), [ahead % self.num_products])
        for index, step in arranged:  # While the copies are under way.
            self.arrange(index, step)
        if arranged:  # Others use the blocks than those who wrote them.
            plgpu.commit_smem()
            self.meet()

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

    def arrange(self, index: int, step: Step) -> None:
        """Brings this CTA's share of a step's weights from w into shared memory."""
        plan, warpgroups = self.plan, self.config.warpgroups
        w, weights = self.blocks[step.factor], self.scratch[index]["weights"]
        neighbours, units = plan.neighbours(step), plan.units(step, warpgroups)
        groups, parts = step.units // neighbours, step.num_rows // units.rows
        depth = plan.depth

        def take(unit: jax.Array) -> None:
            # Neighbours in memory at the same time, by different warpgroups.
            unit, group = jax.lax.div(unit, groups), jax.lax.rem(unit, groups)
            panel, part = jax.lax.div(unit, parts), jax.lax.rem(unit, parts)
            block, row = group * neighbours, part * units.rows
            i, k = self.split(step, self.whole_block(step, block))

            def source(n: int) -> Any:
                return w.at[
                    i,
                    pl.ds(step.first_row + row, units.rows),
                    pl.ds(panel * depth, depth),
                    pl.ds(k + n, units.vector),
                ]

            def store(n: int, plane: jax.Array) -> None:
                count = plan.types.pieces
                found = pieces.split(plane, count) if count > 1 else (plane,)
                for piece, value in enumerate(found):
                    rows = self.rows_of_weights(step, panel, piece, row, units.rows)
                    weights.at[block + n].at[rows][...] = value

            arranging.move(units, neighbours, source, store)

        arranging.deal(groups * units.count, warpgroups, take)

    def rows_of_weights(
        self, step: Step, panel: Any, piece: int, first: Any = 0, size: int = 0
    ) -> Any:
        """Where in a slab the rows of a panel of weights are, from the first on."""
        before = (panel * self.plan.types.pieces + piece) * step.num_rows
        return pl.ds(before + first, size or step.num_rows)

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
        plan, wg = self.plan, jax.lax.axis_index("wg")
        shares = plan.shares
        assert shares is not None
        load = cluster.load_by_outer
        if plan.held[0] == "inner":
            load = cluster.load_by_inner

        def part(index: int, piece: int) -> Any:
            layout = plan.buffers[index]
            middle: Any = pl.ds(0, layout.middle)
            inner: Any = 0
            if layout.inner > 1:
                inner = pl.ds(0, layout.inner)
                middle = middle if layout.middle > 1 else 0
            return self.buffers[index].at[
                piece, :, middle, inner, pl.ds(0, layout.rows)
            ]

        plgpu.barrier_arrive(self.written)
        plgpu.barrier_wait(self.written)
        found = [
            pair
            for piece in range(plan.types.pieces)
            for pair in load(
                part(step.source, piece),
                part(step.target, piece),
                shares,
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
        if step.resident and self.plan.arrival(step.factor) != "arranged":
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
        bias = bias.astype(jnp.float32)
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


def _narrow() -> Any:
    """How (runs, rows, 8) features lie in registers: a run for each warp."""
    return compat.tiled_layout(
        ((4, 8, 8), (1, 8, 8), (2,)),
        warp_dims=(-7,),
        lane_dims=(-3, -2),
        vector_dim=-1,
    )
