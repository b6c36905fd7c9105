"""The body of `strided`.

    w in HBM ─TMA─▶ ring ─loads of 16 bytes─▶ registers, for many tiles of vectors
    x in HBM ─TMA─▶ ring ─loads of 16 bytes─▶ operands ─▶ mma.sync ─▶ bias, activation
    y in HBM ◀─TMA─ two slots ◀─stores of 16 bytes─ neighbours side by side ◀─┘

A CTA has all inputs of some blocks that are neighbours along d, and all or a share of
their outputs: as many as the registers of two warpgroups hold weights of. It stays with
them for a run of tiles of the batch. A warp has 8 neighbours (4, if they have more than
64 inputs) and 16 or more of the outputs; what it loads is 16 bytes, of which a byte
permutation makes operands of mma.sync, one for each neighbour; and what it stores.

Where weights are more than the registers of a CTA take, outputs are split over a
cluster, which x is sent to once.

The first warpgroup leads: it starts all copies. A slot of the ring is filled anew once
both warpgroups have stored the sums of the tile (`done`); in a cluster, once all of its
CTAs have told so (`free`), one tile later, lest they wait for each other. A slot of y
is written anew once TMA has read it (`vacant`), which is after the next tile is sent.

Vectors, inputs and outputs that there are not TMA fills up with zeros, and leaves out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat, registers
from pallas_kernels.common.epilogue import Activation, activate
from pallas_kernels.common.slabs import slab
from pallas_kernels.strided.plan import OUT_STAGES, WARPGROUPS, Plan
from pallas_kernels.strided.warps import Warps


def launch(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None,
    plan: Plan,
    activation: Activation | None,
    out: Any,
) -> jax.Array:
    """Runs the kernel.

    Args:
      x: (batch, n_in).
      w: (a, b, c, d).
      bias: None, or (n_out,) in float32 or the dtype of x.
      plan: what fits them.
      activation: what is applied to the sums and the bias.
      out: dtype of the result.

    Returns:
      (batch, n_out).
    """
    a, b, c, d = plan.shape
    cluster, stages = plan.config.cluster, plan.config.stages
    inside = (c * d // plan.line, plan.line) if plan.is_whole else (c, d)
    outside = (plan.outputs * d // plan.line, plan.line)
    outside = outside if plan.is_whole else (plan.outputs, d)
    operands = [
        x.reshape(plan.batch, a, *inside),
        w.reshape(a, cluster, plan.outputs, *inside),
    ]
    if bias is not None:
        operands.append(bias.reshape(a, b, d))
    scratch: dict[str, Any] = {
        "ring": slab((stages, *plan.slot_in), x.dtype),
        "sums": slab((OUT_STAGES, *plan.slot_out), out),
        "loaded": plgpu.Barrier(num_barriers=stages),
        "read": plgpu.Barrier(num_arrivals=WARPGROUPS),
        "done": plgpu.Barrier(num_arrivals=WARPGROUPS, num_barriers=OUT_STAGES),
        "vacant": plgpu.Barrier(num_barriers=OUT_STAGES),
    }
    if cluster > 1:
        scratch["free"] = plgpu.ClusterBarrier(
            collective_axes=("rank",), num_barriers=stages
        )

    def body(*refs: Any) -> None:
        *inputs, y_ref, named = refs
        x_ref, w_ref, *bias_ref = inputs
        _Kernel(
            plan, activation, x_ref, w_ref, (bias_ref or [None])[0], y_ref, **named
        ).run()

    y: jax.Array = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((plan.batch, a, cluster, *outside), out),
        scratch_types=[scratch],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
            approx_math=True,  # Of activations, which are rounded to 16 bits.
        ),
        grid=(plan.walkers * plan.abreast,),
        grid_names=("team",),
        cluster=(cluster,) if cluster > 1 else (),
        cluster_names=("rank",) if cluster > 1 else (),
        num_threads=WARPGROUPS,
        thread_name="wg",
    )(*operands)
    return compat.varying_as(y, *operands).reshape(plan.batch, a * b * d)


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """What a CTA works on for a run of tiles.

    Attributes:
      block: i of its blocks.
      neighbour: k of the first one.
      tile: the first tile of the batch.
      count: how many tiles.
    """

    block: jax.Array
    neighbour: jax.Array
    tile: jax.Array
    count: jax.Array


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: Plan
    activation: Activation | None
    x: Any
    w: Any
    bias: Any
    y: Any
    ring: Any
    sums: Any
    loaded: Any
    read: Any
    done: Any
    vacant: Any
    free: Any = None

    def run(self) -> None:
        """Takes the tiles of this CTA's run, group after group."""
        plan = self.plan
        team = jax.lax.axis_index("team")
        walker, place = _divmod(team, plan.abreast)
        each, more = divmod(plan.groups * plan.tiles, plan.walkers)
        first = walker * each + jnp.minimum(walker, more)
        stop = first + each + (walker < more).astype(jnp.int32)
        first_group = jax.lax.div(first, plan.tiles)
        groups = jax.lax.div(stop - 1, plan.tiles) - first_group + 1

        def take_group(n: jax.Array, sent: jax.Array) -> jax.Array:
            group = first_group + n
            start = group * plan.tiles
            tile = jnp.maximum(first - start, 0)
            count = jnp.minimum(stop - start, plan.tiles) - tile
            block, outer = _divmod(group, plan.groups // plan.shape[0])
            neighbour = (outer * plan.abreast + place) * plan.config.neighbours
            part = _Part(block, neighbour, tile, count)
            return self.take_part(part, sent, stop - start - tile - 1)

        jax.lax.fori_loop(0, groups, take_group, jnp.int32(0))
        pl.when(self.leads)(lambda: plgpu.wait_smem_to_gmem(0))

    @property
    def warps(self) -> Warps:
        return Warps(self.plan, self.x.dtype)

    @property
    def leads(self) -> jax.Array:
        return jax.lax.axis_index("wg") == 0

    @property
    def rank(self) -> jax.Array:
        if self.plan.config.cluster == 1:
            return jnp.int32(0)
        return jax.lax.axis_index("rank")

    def take_part(self, part: _Part, sent: jax.Array, last: jax.Array) -> jax.Array:
        """Multiplies a run of tiles by the same blocks.

        Args:
          part: which ones.
          sent: tiles of y that were sent before.
          last: tile of the part, or beyond it, after which there are no more.

        Returns:
          Tiles of y that were sent.
        """
        plan, stages = self.plan, self.plan.config.stages

        @pl.when(self.leads)
        def _() -> None:
            _times(plan.chunks, functools.partial(self.fetch_weights, part))

        _times(plan.chunks, lambda chunk: plgpu.barrier_wait(self.loaded.at[chunk]))
        weights = self.warps.load_weights(registers.thread(), self.ring)
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.read)
        thread = registers.thread()

        @pl.when(self.leads)
        def _() -> None:
            plgpu.barrier_wait(self.read)
            ahead = jnp.minimum(stages, part.count)
            if self.free is not None:
                _times(ahead, self.release)
            _times(ahead, lambda n: self.fetch(part, n, n))

        lag = 0 if self.free is None else 1

        def take_tile(n: jax.Array, carry: Any) -> Any:
            slot, before, at = carry
            plgpu.barrier_wait(self.loaded.at[slot])
            x = self.warps.load_vectors(thread, self.ring.at[slot], 0)
            pl.when(sent + n >= OUT_STAGES)(
                lambda: plgpu.barrier_wait(self.vacant.at[at])
            )
            for tile in range(plan.tiles_of_warp):
                if tile and tile % 2 == 0:  # See `Plan.loads`.
                    x = self.warps.load_vectors(
                        thread, self.ring.at[slot], 0, later=True
                    )
                sums = self.warps.multiply(weights[tile], x, None, 0)
                for more in range(1, plan.parts):  # Then there is one tile.
                    x = self.warps.load_vectors(
                        thread, self.ring.at[slot], more, later=True
                    )
                    sums = self.warps.multiply(weights[tile], x, sums, more)
                sums = self.epilogue(sums, thread, part, tile)
                self.warps.store(thread, sums, self.sums.at[at], tile, self.y.dtype)
            plgpu.commit_smem()
            plgpu.barrier_arrive(self.done.at[at])

            @pl.when(self.leads)
            def _() -> None:
                plgpu.barrier_wait(self.done.at[at])
                self.send(part, n, at)
                plgpu.wait_smem_to_gmem(OUT_STAGES - 1, wait_read_only=True)
                pl.when((sent + n >= OUT_STAGES - 1) & (n < last))(
                    lambda: plgpu.barrier_arrive(self.vacant.at[1 - at])
                )
                if self.free is not None:
                    pl.when(n + stages < part.count)(
                        functools.partial(self.release, slot)
                    )
                pl.when((n >= lag) & (n - lag + stages < part.count))(
                    lambda: self.fetch(part, n - lag + stages, before if lag else slot)
                )

            following = jnp.where(slot + 1 == stages, 0, slot + 1)
            return following, slot, 1 - at

        start = (jnp.int32(0), jnp.int32(0), jax.lax.rem(sent, OUT_STAGES))
        jax.lax.fori_loop(0, part.count, take_tile, start)
        return sent + part.count

    def release(self, slot: Any) -> None:
        """Tells the cluster that this CTA has read a slot of the ring."""
        plgpu.barrier_arrive(self.free.at[slot])

    def fetch(self, part: _Part, n: Any, slot: Any) -> None:
        """Starts the copy of tile n of the part."""
        plan = self.plan
        if self.free is not None:
            plgpu.barrier_wait(self.free.at[slot])
        rows = pl.ds((part.tile + n) * plan.rows, plan.rows)
        plgpu.copy_gmem_to_smem(
            self.window(self.x.at[rows, part.block], part, plan.slot_in[1]),
            self.ring.at[slot],
            self.loaded.at[slot],
            collective_axes=None if self.free is None else "rank",
        )

    def fetch_weights(self, part: _Part, chunk: jax.Array) -> None:
        """Starts the copy of the weights of `rows` outputs."""
        plan = self.plan
        rows = pl.ds(chunk * plan.rows, plan.rows)
        source = self.w.at[part.block, self.rank, rows]
        plgpu.copy_gmem_to_smem(
            self.window(source, part, plan.slot_in[1]),
            self.ring.at[chunk],
            self.loaded.at[chunk],
        )

    def send(self, part: _Part, n: jax.Array, at: jax.Array) -> None:
        """Starts the copy of tile n of y."""
        plan = self.plan
        rows = pl.ds((part.tile + n) * plan.rows, plan.rows)
        target = self.y.at[rows, part.block, self.rank]
        plgpu.copy_smem_to_gmem(
            self.sums.at[at], self.window(target, part, plan.slot_out[1])
        )

    def window(self, rows: Any, part: _Part, pitch: int) -> Any:
        """What a CTA has of rows of an array in HBM, and of lines beyond their end."""
        lines = pl.ds(jnp.int32(0), pitch)  # A constant would be found out of bounds.
        if self.plan.is_whole:
            return rows.at[:, lines]
        return rows.at[:, lines, pl.ds(part.neighbour, self.plan.config.neighbours)]

    def epilogue(self, sums: Any, thread: Any, part: _Part, tile: int) -> Any:
        if self.bias is not None:
            output = self.rank * self.plan.outputs
            sums = sums + self.warps.load_bias(
                thread, self.bias, part.block, output, part.neighbour, tile
            )
        return activate(sums, self.activation)


def _times(count: Any, act: Callable[[jax.Array], None]) -> None:
    """Acts for each number below count; unrolled it would take more registers."""

    def one(n: jax.Array, carry: None) -> None:
        act(n)
        return carry

    jax.lax.fori_loop(0, count, one, None)


def _divmod(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    if by == 1:
        return n, jnp.int32(0)
    return jax.lax.div(n, by), jax.lax.rem(n, by)
