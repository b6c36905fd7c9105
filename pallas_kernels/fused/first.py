"""Features first: 32 vectors at a time, the right operand of mma.sync.

    x, runs of 64 or 128 bytes ──ldmatrix.trans──▶ products with factors[1] ──▶ h
    ──ldmatrix.trans──▶ products with factors[0] ──▶ y, 16 bytes at a time

A warp has blocks of factors[1] of its own, whose x it alone reads, and of factors[0]
some blocks and all or some of their outputs. A thread ends up with eight vectors' sums
of one feature and stores them to HBM as they are: y touches no shared memory. In
between, vector 8n + 2t + e of a tile lies at (t, n, e): the 16 bytes that a thread has
are what it stores, and n of the next product the right vectors.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import registers
from pallas_kernels.common.epilogue import Activation, activate
from pallas_kernels.fused import teams
from pallas_kernels.fused.config import Config
from pallas_kernels.fused.fragments import Fragment, add_bias, along, by_lanes, of_two
from pallas_kernels.fused.last import right_fragment
from pallas_kernels.fused.plan import LINE, Plan


def x_fragment(plan: Plan, steps: int) -> Fragment:
    """(warps, 2, halves of 8 inputs, sixteens, 2, steps, 8 vectors, 4, 2)."""
    return Fragment(
        (
            (4, "warp"),
            *along((2, 2, *of_two(plan.inputs // 16), 2, steps)),
            (8, "lane"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def h_stored(plan: Plan) -> Fragment:
    """(warps, outputs / 8, 8, 4, 8 vectors) of a block, float32."""
    return Fragment(
        (
            (4, "warp"),
            (plan.middle // 8, "register"),
            (8, "lane"),
            (4, "lane"),
            (8, "vector"),
        )
    )


def h_fragment(plan: Plan) -> Fragment:
    """(2, halves of 8 inputs, sixteens, warps, blocks, 2, 8 vectors, 4, 2)."""
    return Fragment(
        (
            *along((2, 2, *of_two(plan.blocks // 16))),
            (4, "warp"),
            *along((*of_two(plan.middle_of_warp), 2)),
            (8, "lane"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def left_operands(plan: Plan) -> list[Fragment]:
    """Of h and of factors[0]."""
    return [h_fragment(plan), left_fragment(plan)]


def left_as_given(plan: Plan) -> Fragment:
    """(sixteens, 2, 8 outputs, inputs / 8, 4, 2, groups, warps, fours, 4 blocks)."""
    return Fragment(
        (
            (plan.outputs_of_warp, "register"),
            (2, "register"),
            (8, "lane"),
            (plan.blocks // 8, "register"),
            (4, "lane"),
            (2, "register"),
            (plan.groups_middle, "register"),
            (4, "warp"),
            (plan.middle_of_warp // 4, "register"),
            (4, "vector"),
        )
    )


def left_fragment(plan: Plan) -> Fragment:
    """(sixteens, 2, 8 outputs, inputs / 8, 4, 2, warps, blocks), inputs in pairs."""
    return Fragment(
        (
            (plan.outputs_of_warp, "register"),
            (2, "register"),
            (8, "lane"),
            (plan.blocks // 8, "register"),
            (4, "lane"),
            (2, "vector"),
            (4, "warp"),
            (plan.middle_of_warp, "register"),
        )
    )


def y_fragment(plan: Plan) -> Fragment:
    """(sixteens, 2, 8 outputs, warps, 4, 8 vectors) of a warp's block, float32."""
    return Fragment(
        (
            (plan.outputs_of_warp, "register"),
            (2, "register"),
            (8, "lane"),
            (4, "warp"),
            (4, "lane"),
            (8, "vector"),
        )
    )


def bias_fragment(plan: Plan) -> Fragment:
    """(sixteens, 2, 8 outputs, warps, 1) of a warp's block."""
    return Fragment(
        (
            (plan.outputs_of_warp, "register"),
            (2, "register"),
            (8, "lane"),
            (4, "warp"),
            (4, "same lanes"),
            (1, "vector"),
        )
    )


# --- Products, from registers to registers -------------------------------------------


def multiply_right(
    plan: Plan, dtype: Any, block: int, step: int, x: Any, w: Any, isa: Any = registers
) -> Any:
    """Registers of h, (outputs / 8, 8), of x's and factors[1]'s: a block, a step."""
    sixteens = plan.inputs // 16
    x = x.reshape(2, 2, sixteens, 2, -1)[..., step]
    w = w[block, ..., 0]  # outputs / 8, inputs / 8
    found = np.empty((plan.middle // 16, 2, 4, 2), dtype=object)
    for n, at in np.ndindex(4, plan.middle // 16):
        sums: Any = None
        for k in range(sixteens):
            a = w[2 * at : 2 * at + 2, 2 * k : 2 * k + 2].T.reshape(-1)
            sums = isa.mma(sums, a, x[n // 2, :, k, n % 2], dtype)
        for half in range(2):
            found[at, half, n] = sums[2 * half : 2 * half + 2]
    isa.fence()
    return found.reshape(-1, 8)


def multiply_left(
    plan: Plan, dtype: Any, block: int, h: Any, w: Any, isa: Any = registers
) -> Any:
    """Registers of y, (sixteens, halves, 8), likewise."""
    h = h.reshape(2, 2, plan.blocks // 16, -1, 2)[..., block, :]
    w = w[..., block, 0]  # sixteens, halves, inputs / 8
    found = np.empty((plan.outputs_of_warp, 2, 4, 2), dtype=object)
    for sixteen, n in np.ndindex(plan.outputs_of_warp, 4):
        sums: Any = None
        for k in range(plan.blocks // 16):
            a = w[sixteen, :, 2 * k : 2 * k + 2].T.reshape(-1)
            sums = isa.mma(sums, a, h[n // 2, :, k, n % 2], dtype)
        for half in range(2):
            found[sixteen, half, n] = sums[2 * half : 2 * half + 2]
    isa.fence()
    return found.reshape(plan.outputs_of_warp, 2, 8)


def pair_left(plan: Plan, group: int, w: Any, isa: Any = registers) -> Any:
    """Registers of `left_fragment` of those of `left_as_given`, for some warpgroups."""
    shape = (plan.outputs_of_warp, 2, plan.blocks // 8, plan.middle_of_warp, 1)
    found = np.empty(shape, dtype=object)
    for sixteen, half, eight, block in np.ndindex(*shape[:4]):
        some, word = block // 4, block % 4 // 2
        low, high = (w[sixteen, half, eight, e, group, some, word] for e in range(2))
        found[sixteen, half, eight, block] = [isa.pair(low, high, block % 2)]
    return found


def right_values(
    plan: Plan, block: int, step: int, x: jax.Array, w: jax.Array
) -> jax.Array:
    """`multiply_right` on arrays."""
    x = x.astype(jnp.float32)[..., step, :, :, :]
    x = x.reshape(4, 2, 2, -1, 2, 8, 8)  # w n1 u sixteen n0 row l
    x = x.transpose(0, 1, 4, 5, 3, 2, 6).reshape(4, 1, 32, plan.inputs)
    shape = (4, plan.blocks_of_warp, plan.middle, 1, plan.inputs)
    h = (x * w.astype(jnp.float32).reshape(shape)[:, block]).sum(-1)
    h = h.reshape(4, plan.middle, 4, 4, 2).swapaxes(2, 3)  # n, t, e: t, n, e
    return h.reshape(h_stored(plan).shape)


def left_values(plan: Plan, block: int, h: jax.Array, w: jax.Array) -> jax.Array:
    """`multiply_left` on arrays."""
    # n1 u step w block n0 (n, e) i
    h = h.astype(jnp.float32).reshape(2, 2, -1, 4, plan.middle_of_warp, 2, 4, 2, 8)
    h = h[:, :, :, :, block].transpose(2, 1, 7, 3, 5, 0, 4, 6)
    h = h.reshape(1, plan.blocks, 4, 4, 8)
    w = w.astype(jnp.float32)[..., block].reshape(-1, plan.blocks, 4, 1, 1)
    return (h * w).sum(1).reshape(y_fragment(plan).shape)


def pair_values(plan: Plan, group: int, w: jax.Array) -> jax.Array:
    """`pair_left` on arrays."""
    return w[:, :, :, :, :, :, group].reshape(left_fragment(plan).shape)


# --- What is stored, of which vectors beyond the batch are left out -------------------


def store_lanes(
    plan: Plan,
    batch: int,
    block: int,
    ctx: Any,
    y: Any,
    found: Any,
    thread: Any,
    *places: Any,
) -> tuple[()]:
    """Stores eight vectors of each feature that a thread has."""
    del ctx
    isa = registers
    outputs, middle, start = map(isa.scalar, places)
    [number] = isa.kept(thread)
    warp = isa.bit_and(isa.shift_right(number, 5), 3)
    g, t = isa.bit_and(isa.shift_right(number, 2), 7), isa.bit_and(number, 3)
    feature = isa.add(isa.multiply(outputs, 16 * plan.outputs_of_warp), g)
    feature = isa.add(
        isa.multiply(feature, plan.middle),
        isa.multiply(isa.add(isa.multiply(middle, 4), warp), plan.middle_of_warp),
    )
    vector = isa.add(start, isa.multiply(t, 8))
    words = isa.words(found).reshape(-1, 4)  # sixteens, halves

    def store() -> None:
        for eight, entries in enumerate(words):
            at = isa.add(feature, 8 * plan.middle * eight + block)
            isa.store_wide(y, at, batch, vector, list(entries))

    if batch % plan.rows:
        isa.where(isa.less(vector, batch), store)
    else:
        store()
    return ()


def store_values(
    plan: Plan,
    batch: int,
    block: int,
    y: Any,
    found: jax.Array,
    thread: Any,
    outputs: Any,
    middle: Any,
    start: Any,
) -> None:
    """`store_lanes` on arrays."""
    del thread
    for run in range(plan.rows // 8):
        first = start + 8 * run

        @pl.when(first < batch)
        def _(first: Any = first, run: int = run) -> None:
            view = y.at[outputs, :, :, :, middle, :, block, pl.ds(first, 8)]
            view[...] = found[:, :, :, :, run]


# --- The kernel -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One warpgroup's part of a launch.

    Attributes:
      plan, config, activation: as in `launch`.
      batch: vectors of x.
      place: where it is.
      x, right, left, bias, y: arrays in HBM, the bias or None.
      slabs, hs: its team's slabs of x and of h.
      left_slab, right_slab: those of the weights, all of them, in memory of hs, one
        after the other.
      loaded: for each warpgroup of the CTA and each of its slabs of x.
      weights_loaded: for all, first of factors[1], then of factors[0].
      begun: of the CTA.
      phase: of the team.
    """

    plan: Plan
    config: Config
    activation: Activation | None
    batch: int
    place: teams.Place
    x: Any
    right: Any
    left: Any
    bias: Any
    y: Any
    slabs: Any
    hs: Any
    left_slab: Any
    right_slab: Any
    loaded: Any
    weights_loaded: Any
    begun: Any
    phase: Any

    def run(self) -> None:
        """Takes tiles until there are none left."""
        stages, turns = self.config.stages, self.place.turns
        steps = self.config.rows // self.plan.rows
        # Before x, so that they are there first.
        fetch = functools.partial(self.fetch_weights, self.right, self.right_slab)
        pl.when(self.place.team == 0)(fetch)
        for ahead in range(stages):
            pl.when(ahead < turns)(functools.partial(self.fetch, ahead, ahead))
        right = self.right_weights()
        plgpu.commit_smem()
        teams.meet(self.begun)  # Their memory is free.
        fetch = functools.partial(self.fetch_weights, self.left, self.left_slab)
        pl.when(self.place.team == 0)(fetch)
        left = self.left_weights()
        teams.meet(self.begun)

        def take(turn: Any, slot: int) -> None:
            for step in range(steps):
                if step == 0:
                    plgpu.barrier_wait(self.loaded_at(slot))
                self.apply_right(slot, step, right)
                if step == steps - 1:
                    plgpu.commit_smem()
                teams.meet(self.phase)
                if step == steps - 1:  # All have read their x.
                    after = turn + stages
                    refill = functools.partial(self.fetch, after, slot)
                    pl.when(after < turns)(refill)
                self.apply_left(turn, step, left)
                plgpu.barrier_wait(self.phase)

        def take_all(rounds: Any, carry: None) -> None:
            take(rounds * stages, 0)
            for slot in range(1, stages):
                turn = rounds * stages + slot
                pl.when(turn < turns)(functools.partial(take, turn, slot))

        rounds = jax.lax.div(turns + stages - 1, stages)
        jax.lax.fori_loop(0, rounds, take_all, None)

    @property
    def wg(self) -> Any:
        return self.place.warpgroup

    def loaded_at(self, slot: int) -> Any:
        return self.loaded.at[self.place.thread * self.config.stages + slot]

    def fetch(self, turn: Any, slot: int) -> None:
        plgpu.copy_gmem_to_smem(
            self.x.at[
                self.wg, :, :, :, pl.ds(self.place.start(turn), self.config.rows)
            ],
            self.slabs[slot].at[self.wg],
            self.loaded_at(slot),
        )

    def fetch_weights(self, given: Any, slab: Any) -> None:
        """To memory that h has later, a share by each warpgroup."""
        share = teams.share(slab, self.wg, self.plan.warpgroups)
        plgpu.copy_gmem_to_smem(given.at[share], slab.at[share], self.weights_loaded)

    def right_weights(self) -> jax.Array:
        """This warpgroup's, once they have been fetched."""
        plgpu.barrier_wait(self.weights_loaded)
        share = teams.share(self.right_slab, self.wg, self.plan.warpgroups)
        fragment = right_fragment(self.plan)
        return fragment.load(self.right_slab.at[share].reshape(*fragment.shape))

    def left_weights(self) -> jax.Array:
        """This warpgroup's, once they have been fetched."""
        plan, given = self.plan, left_as_given(self.plan)
        plgpu.barrier_wait(self.weights_loaded)
        share = teams.share(self.left_slab, self.group_outputs, plan.groups_outputs)
        tile = given.load(self.left_slab.at[share].reshape(*given.shape))

        def pair(group: int) -> jax.Array:
            paired = by_lanes(
                functools.partial(pair_values, plan, group),
                functools.partial(pair_left, plan, group),
                [given],
                left_fragment(plan),
                tile.dtype,
            )
            found: jax.Array = paired(tile)
            return found

        groups = range(plan.groups_middle)
        branches = [functools.partial(pair, group) for group in groups]
        found: jax.Array = jax.lax.switch(self.group_middle, branches)
        return found

    @property
    def group_outputs(self) -> Any:
        return jax.lax.rem(self.wg, self.plan.groups_outputs)

    @property
    def group_middle(self) -> Any:
        return jax.lax.div(self.wg, self.plan.groups_outputs)

    def apply_right(self, slot: int, step: int, weights: jax.Array) -> None:
        """factors[1] on a step of a tile, from x in shared memory to h there."""
        plan, steps = self.plan, self.config.rows // self.plan.rows
        fragment = x_fragment(plan, steps)
        sixteens = of_two(plan.inputs // 16)
        last = 1 + len(sixteens)
        for block in range(plan.blocks_of_warp):
            view = self.slabs[slot].at[self.wg, :, block]
            view = view.reshape(4, *sixteens, 2, 4, 2, steps, 2, 2, 8)
            order = (0, last + 4, last, *range(1, last), last + 5, last + 3, last + 6)
            view = view.transpose((*order, last + 1, last + 2))
            multiply = by_lanes(
                functools.partial(right_values, plan, block, step),
                functools.partial(multiply_right, plan, weights.dtype, block, step),
                [fragment, right_fragment(plan)],
                h_stored(plan),
                jnp.float32,
            )
            found = multiply(fragment.load(view), weights).astype(weights.dtype)
            warps = pl.ds(pl.multiple_of(self.wg * 4, 4), 4)
            view = self.hs.at[warps, block, pl.ds(0, 4 * plan.middle)]
            view.reshape(*h_stored(plan).shape)[...] = found

    def apply_left(self, turn: Any, step: int, weights: jax.Array) -> None:
        """factors[0] on a step of a tile, from h to y."""
        plan = self.plan
        fragment = h_fragment(plan)
        sixteens, blocks = of_two(plan.blocks // 16), of_two(plan.middle_of_warp)
        runs = 4 * plan.middle // plan.groups_middle
        splat = plgpu.Layout.WG_SPLAT
        start = self.place.start(turn) + step * plan.rows
        thread = registers.thread()
        outputs, middle = self.group_outputs, self.group_middle
        for block in range(plan.middle_of_warp):
            mine = pl.ds(pl.multiple_of(middle * runs, 4), runs)
            view = self.hs.at[:, :, mine].reshape(plan.blocks, runs, 8)
            view = view.reshape(*sixteens, 2, 4, 2, 4, *blocks, 2, 2, 8)
            u = len(sixteens)
            last = u + 4 + len(blocks)
            order = (last, u, *range(u), *range(u + 3, last), last + 1, last + 2)
            tile = fragment.load(view.transpose((*order, u + 1, u + 2)))
            multiply = by_lanes(
                functools.partial(left_values, plan, block),
                functools.partial(multiply_left, plan, weights.dtype, block),
                left_operands(plan),
                y_fragment(plan),
                jnp.float32,
            )
            found = multiply(tile, weights)
            if self.bias is not None:
                bias = bias_fragment(plan)
                view = self.bias.at[outputs, :, :, :, middle, :, block]
                found = add_bias(
                    found,
                    y_fragment(plan),
                    bias.load(view).astype(jnp.float32),
                    bias,
                )
            found = activate(found, self.activation).astype(weights.dtype)
            if block == plan.middle_of_warp - 1:
                plgpu.barrier_arrive(self.phase)  # It has read h.
            store = registers.by_lanes(
                functools.partial(store_values, plan, self.batch, block),
                arg_types=[
                    *(plgpu.RefType(), y_fragment(plan).layout, registers.THREAD),
                    *[splat] * 3,
                ],
            )(functools.partial(store_lanes, plan, self.batch, block))
            store(self.y, found, thread, outputs, middle, start)


def launch(
    x: jax.Array,
    left: jax.Array,
    right: jax.Array,
    bias: jax.Array | None,
    activation: Activation | None,
    plan: Plan,
    config: Config,
) -> jax.Array:
    """y (n_out, batch) of x (n_in, batch)."""
    batch, g, t = x.shape[1], plan.warpgroups, plan.teams
    num_tiles = pl.cdiv(batch, config.rows)
    ctas = min(config.ctas, pl.cdiv(num_tiles, t))
    x_shape = (g, 4, plan.blocks_of_warp, plan.inputs)

    def slab(*shape: int) -> Any:
        swizzle = plgpu.SwizzleTransform(2 * shape[-1])  # type: ignore[abstract]
        return plgpu.SMEM(shape, x.dtype, transforms=(swizzle,))

    left_lines, right_lines = (entries // LINE for entries in plan.weights)
    x_slab = slab(t, *x_shape, config.rows)
    # Runs of 8 vectors apart: neighbouring blocks are in different banks.
    h_slab = plgpu.SMEM((t, 4 * g, plan.blocks_of_warp, plan.padded, 8), x.dtype)

    def body(x_ref: Any, right_ref: Any, left_ref: Any, *refs: Any) -> None:
        *biases, y_ref, xs, (hs, left_slab, right_slab) = refs[:-4]
        loaded, weights_loaded, begun, phase = refs[-4:]
        place = teams.place(plan, ctas, num_tiles, config.rows)
        Kernel(
            plan,
            config,
            activation,
            batch,
            place,
            x_ref,
            right_ref,
            left_ref,
            biases[0] if biases else None,
            y_ref,
            [ref.at[place.team] for ref in xs],
            hs.at[place.team],
            left_slab,
            right_slab,
            loaded,
            weights_loaded,
            begun,
            phase.at[place.team],
        ).run()

    # Outputs: warpgroups, sixteens, 2, 8; blocks: warpgroups, warps, some.
    y_shape = (
        *(plan.groups_outputs, plan.outputs_of_warp, 2, 8),
        *(plan.groups_middle, 4, plan.middle_of_warp),
    )
    args = [right.reshape(-1, LINE), left.reshape(-1, LINE)]
    if bias is not None:
        args.append(bias.reshape(*y_shape, 1))
    run = teams.launch(
        body,
        plan,
        ctas,
        jax.ShapeDtypeStruct((*y_shape, batch), x.dtype),
        [
            [x_slab] * config.stages,
            plgpu.RefUnion(h_slab, slab(left_lines, LINE), slab(right_lines, LINE)),
            plgpu.Barrier(num_barriers=t * g * config.stages),
            plgpu.Barrier(num_arrivals=g),
            plgpu.Barrier(num_arrivals=t * g),
            plgpu.Barrier(num_arrivals=g, num_barriers=t),
        ],
    )
    y: jax.Array = run(x.reshape(*x_shape, batch), *args)
    return y.reshape(plan.n_out, batch)
