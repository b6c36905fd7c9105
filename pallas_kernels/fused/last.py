"""Features last: 16 vectors at a time, the left operand of mma.sync.

    x, 128-byte lines ──ldmatrix──▶ products with factors[1] ──▶ h ──ldmatrix.trans──▶
    products with factors[0] ──▶ y, 16 bytes of neighbouring blocks at a time

A warp has blocks of factors[1] of its own, whose x it alone reads, and of factors[0]
eight neighbouring blocks at a time: eight neighbouring features of y end up in one
thread. In turn t a warpgroup applies factors[1] to tile t + 1 and factors[0] to tile t,
so that all meet once in a tile; x and y are a warpgroup's own affair.
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
from pallas_kernels.fused.plan import LINE, Plan


def x_fragment(plan: Plan) -> Fragment:
    """(warps, halves of 8 columns, halves of 8 rows, sixteens of columns, 8, 4, 2)."""
    sixteens = plan.blocks_of_warp * plan.inputs // 16
    panels = plan.width // 16
    return Fragment(
        (
            (4, "warp"),
            *along((2, 2, *of_two(sixteens // panels), *of_two(panels))),
            (8, "lane"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def right_fragment(plan: Plan) -> Fragment:
    """(warps, blocks, outputs / 8, 8, inputs / 8, 4, 2)."""
    return Fragment(
        (
            (4, "warp"),
            (plan.blocks_of_warp, "register"),
            (plan.middle // 8, "register"),
            (8, "lane"),
            (plan.inputs // 8, "register"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def h_stored(plan: Plan) -> Fragment:
    """(warps, halves of the rows, blocks, 8 rows, outputs / 8, 4, 2), float32."""
    return Fragment(
        (
            (4, "warp"),
            (2, "register"),
            (plan.blocks_of_warp, "register"),
            (8, "lane"),
            (plan.middle // 8, "register"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def h_fragment(plan: Plan) -> Fragment:
    """(halves of 8 inputs, halves of the rows, sixteens, warps, blocks, 8, 4, 2)."""
    eights = of_two(plan.middle_of_warp)
    return Fragment(
        (
            (plan.warps_outputs, "same warps"),
            *along((2, 2, *of_two(plan.blocks // 16))),
            (plan.warps_middle, "warp"),
            *along((*eights, 2, 2, 2)),
            (8, "lane"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def h_rest(plan: Plan) -> Fragment:
    """(2, halves of the rows, warps, blocks, 8, 4, 2) of 8 inputs beyond sixteens."""
    eights = of_two(plan.middle_of_warp)
    return Fragment(
        (
            (plan.warps_outputs, "same warps"),
            *along((2, 2)),
            (plan.warps_middle, "warp"),
            *along((*eights, 2, 2)),
            (8, "lane"),
            (4, "lane"),
            (2, "vector"),
        )
    )


def left_operands(plan: Plan) -> list[Fragment]:
    """Of h, in sixteens of inputs and eight that may be left, and of factors[0]."""
    rest = [h_rest(plan)] if plan.blocks % 16 else []
    return [h_fragment(plan), *rest, left_fragment(plan)]


def left_as_given(plan: Plan) -> Fragment:
    """(warps, eights, 8 outputs, inputs / 8, 4, 2, warps, eights, 8 blocks)."""
    return Fragment(
        (
            (plan.warps_outputs, "warp"),
            (plan.outputs_of_warp, "register"),
            (8, "lane"),
            (plan.blocks // 8, "register"),
            (4, "lane"),
            (2, "register"),
            (plan.warps_middle, "warp"),
            (plan.middle_of_warp, "register"),
            (8, "vector"),
        )
    )


def left_fragment(plan: Plan) -> Fragment:
    """The array of `left_as_given`, paired along the inputs."""
    axes = list(left_as_given(plan).axes)
    axes[5], axes[8] = (2, "vector"), (8, "register")
    return Fragment(tuple(axes))


def y_fragment(plan: Plan) -> Fragment:
    """(halves, 8 rows, then as `bias_fragment`), float32."""
    return Fragment(((2, "register"), (8, "lane"), *bias_fragment(plan).axes[1:]))


def bias_fragment(plan: Plan) -> Fragment:
    """(warps, eights, 4, 2 outputs, warps, eights, 8 blocks)."""
    return Fragment(
        (
            (8, "same lanes"),
            (plan.warps_outputs, "warp"),
            (plan.outputs_of_warp, "register"),
            (4, "lane"),
            (2, "register"),
            (plan.warps_middle, "warp"),
            (plan.middle_of_warp, "register"),
            (8, "vector"),
        )
    )


# --- Products, from registers to registers -------------------------------------------


def multiply_right(plan: Plan, dtype: Any, x: Any, w: Any, isa: Any = registers) -> Any:
    """Registers of h, (halves, blocks, outputs / 8, 2), of x's and factors[1]'s."""
    x = x.reshape(2, 2, -1)
    w = w[..., 0]  # blocks, outputs / 8, inputs / 8
    steps = plan.inputs // 16
    found = np.empty((2, plan.blocks_of_warp, plan.middle // 8, 2), dtype=object)
    for block, at in np.ndindex(*found.shape[1:3]):
        sums: Any = None
        for step in range(steps):
            a = x[:, :, block * steps + step].reshape(-1)
            sums = isa.mma(sums, a, w[block, at, 2 * step : 2 * step + 2], dtype)
        for half in range(2):
            found[half, block, at] = sums[2 * half : 2 * half + 2]
    return found


def multiply_left(
    plan: Plan, dtype: Any, h: Any, *rest_and_w: Any, isa: Any = registers
) -> Any:
    """Registers of y, (halves, eights, 2 outputs, eights, 8), likewise."""
    count = 8 * plan.middle_of_warp
    h = h.reshape(2, 2, plan.blocks // 16, count)
    *rest, w = rest_and_w
    w = w[..., 0].reshape(plan.outputs_of_warp, -1, count)
    found = np.empty((2, plan.outputs_of_warp, 2, count), dtype=object)
    for eight, block in np.ndindex(plan.outputs_of_warp, count):
        sums: Any = None
        for step in range(plan.blocks // 16):
            a = h[:, :, step, block].reshape(-1)
            b = w[eight, 2 * step : 2 * step + 2, block]
            sums = isa.mma(sums, a, b, dtype)
        for of_eight in rest:
            a = of_eight.reshape(2, 2, -1, 4).transpose(1, 2, 0, 3)
            a = a.reshape(2, count)[:, block]
            sums = isa.mma(sums, a, w[eight, -1:, block], dtype)
        for at in range(4):
            found[at // 2, eight, at % 2, block] = sums[at]
    isa.fence()
    return found.reshape(2, plan.outputs_of_warp, 2, plan.middle_of_warp, 8)


def pair_left(plan: Plan, w: Any, isa: Any = registers) -> Any:
    """Registers of `left_fragment` of those of `left_as_given`."""
    found = np.empty((*w.shape[:2], w.shape[3], 8, 1), dtype=object)
    for eight, group, some, block in np.ndindex(*found.shape[:4]):
        low, high = (w[eight, group, e, some, block // 2] for e in range(2))
        found[eight, group, some, block] = [isa.pair(low, high, block % 2)]
    return found


def right_values(plan: Plan, x: jax.Array, w: jax.Array) -> jax.Array:
    """`multiply_right` on arrays."""
    blocks = plan.blocks_of_warp
    x = x.astype(jnp.float32).reshape(4, 2, 2, -1, 8, 8)
    x = x.transpose(0, 2, 4, 3, 1, 5).reshape(4, 2, 8, blocks, 1, plan.inputs)
    w = w.astype(jnp.float32).reshape(4, 1, 1, blocks, plan.middle, plan.inputs)
    return (x * w).sum(-1).swapaxes(2, 3).reshape(h_stored(plan).shape)


def left_values(plan: Plan, h: jax.Array, *rest_and_w: jax.Array) -> jax.Array:
    """`multiply_left` on arrays."""
    *rest, w = rest_and_w
    h = h.astype(jnp.float32).reshape(2, 2, -1, plan.middle, 8, 8)
    h = h.transpose(1, 4, 2, 0, 5, 3).reshape(16, 1, -1, plan.middle)
    for r in rest:
        r = r.astype(jnp.float32).reshape(2, 2, plan.middle // 8, 4, 8, 8)
        r = r.transpose(1, 4, 5, 2, 0, 3).reshape(16, 1, 8, plan.middle)
        h = jnp.concatenate([h, r], axis=2)
    w = w.astype(jnp.float32).reshape(-1, plan.blocks, plan.middle)
    return (h * w).sum(2).reshape(y_fragment(plan).shape)


# --- The kernel -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One warpgroup's part of a launch.

    Attributes:
      plan, config, activation: as in `launch`.
      place: where it is.
      x, right, left, bias, y: arrays in HBM, the bias or None.
      xs, hs, ys: its team's slabs of x, of h and of y.
      left_slab, right_slab: those of the weights, all of them, in memory of hs and ys.
      loaded: for each warpgroup of the CTA and each of its slabs of x.
      weights_loaded: for each warpgroup of a team.
      begun: of the CTA.
      phase: of the team.
    """

    plan: Plan
    config: Config
    activation: Activation | None
    place: teams.Place
    x: Any
    right: Any
    left: Any
    bias: Any
    y: Any
    xs: Any
    hs: Any
    ys: Any
    left_slab: Any
    right_slab: Any
    loaded: Any
    weights_loaded: Any
    begun: Any
    phase: Any

    def run(self) -> None:
        """Takes tiles until there are none left."""
        # Before x, so that they are there first.
        pl.when(self.place.team == 0)(self.fetch_weights)
        for ahead in range(self.config.stages):
            pl.when(ahead < self.place.turns)(functools.partial(self.fetch, ahead))
        right, left = self.weights()
        teams.meet(self.begun)  # Their memory is free.
        self.apply_right(0, right)
        plgpu.commit_smem()
        self.refill(0)
        teams.meet(self.phase)

        def take(turn: Any, carry: None) -> None:
            # After the last tile this multiplies what is left in a slab, for nobody.
            self.apply_right(turn + 1, right)
            found = self.apply_left(turn, left)
            # The slab of y is free again.
            plgpu.wait_smem_to_gmem(self.config.out_stages - 1, wait_read_only=True)
            plgpu.barrier_arrive(self.phase)
            slab = self.ys.at[jax.lax.rem(turn, self.config.out_stages), self.wg]
            slab.reshape(*y_fragment(self.plan).shape)[...] = found
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(slab, self.y.at[self.rows_of(turn), self.wg])
            self.refill(turn + 1)  # All four warps have read their x.
            plgpu.barrier_wait(self.phase)

        jax.lax.fori_loop(0, self.place.turns, take, None)
        plgpu.wait_smem_to_gmem(0)

    @property
    def wg(self) -> Any:
        return self.place.warpgroup

    def rows_of(self, turn: Any) -> Any:
        return pl.ds(self.place.start(turn), self.plan.rows)

    def loaded_at(self, slot: Any) -> Any:
        return self.loaded.at[self.place.thread * self.config.stages + slot]

    def fetch(self, turn: Any) -> None:
        slot = jax.lax.rem(jnp.int32(turn), self.config.stages)
        plgpu.copy_gmem_to_smem(
            self.x.at[self.rows_of(turn), self.wg],
            self.xs.at[slot, self.wg].transpose((1, 0, 2)),
            self.loaded_at(slot),
        )

    def refill(self, turn: Any) -> None:
        """Fetches into the slab that tile `turn` was in."""
        after = turn + self.config.stages
        pl.when(after < self.place.turns)(functools.partial(self.fetch, after))

    def fetch_weights(self) -> None:
        """This warpgroup's, to memory that h and y have later."""
        for given, slab in ((self.right, self.right_slab), (self.left, self.left_slab)):
            mine = teams.share(slab, self.wg, self.plan.warpgroups)
            plgpu.copy_gmem_to_smem(
                given.at[mine], slab.at[mine], self.weights_loaded.at[self.wg]
            )

    def weights(self) -> tuple[jax.Array, jax.Array]:
        """This warpgroup's, once they have been fetched."""
        plan = self.plan
        plgpu.barrier_wait(self.weights_loaded.at[self.wg])
        fragment, given = right_fragment(plan), left_as_given(plan)
        pair = by_lanes(
            lambda w: w,
            functools.partial(pair_left, plan),
            [given],
            left_fragment(plan),
            self.left.dtype,
        )
        left, right = (
            slab.at[teams.share(slab, self.wg, plan.warpgroups)]
            for slab in (self.left_slab, self.right_slab)
        )
        return (
            fragment.load(right.reshape(*fragment.shape)),
            pair(given.load(left.reshape(*given.shape))),
        )

    def apply_right(self, turn: Any, weights: jax.Array) -> None:
        """factors[1] on a tile, from x in shared memory to h there."""
        plan = self.plan
        slot = jax.lax.rem(jnp.int32(turn), self.config.stages)

        @pl.when(turn < self.place.turns)
        def _() -> None:
            plgpu.barrier_wait(self.loaded_at(slot))

        fragment = x_fragment(plan)
        panels = of_two(plan.width // 16)
        lines = fragment.shape[3 : len(fragment.shape) - 3 - len(panels)]
        view = self.xs.at[slot, self.wg]
        view = view.reshape(4, *lines, 2, 8, *panels, 2, 4, 2)
        u = 3 + len(lines) + len(panels)
        order = [*range(1, 1 + len(lines)), *range(u - len(panels), u)]
        view = view.transpose(
            (0, u, 1 + len(lines), *order, 2 + len(lines), u + 1, u + 2)
        )
        multiply = by_lanes(
            functools.partial(right_values, plan),
            functools.partial(multiply_right, plan, weights.dtype),
            [fragment, right_fragment(plan)],
            h_stored(plan),
            jnp.float32,
        )
        found = multiply(fragment.load(view), weights).astype(weights.dtype)
        blocks = plan.blocks // plan.warpgroups
        mine = pl.ds(pl.multiple_of(self.wg * blocks, 4), blocks)
        view = self.hs.at[
            jax.lax.rem(jnp.int32(turn), 2), :, mine, pl.ds(0, plan.middle)
        ]
        view = view.reshape(2, 4, blocks // 4, plan.middle // 8, 4, 2, 8)
        view.transpose((1, 0, 2, 6, 3, 4, 5))[...] = found

    def apply_left(self, turn: Any, weights: jax.Array) -> jax.Array:
        """factors[0] on a tile of h: this warpgroup's outputs."""
        plan = self.plan
        sixteens, eights = of_two(plan.blocks // 16), of_two(plan.middle_of_warp)
        h = self.hs.at[jax.lax.rem(jnp.int32(turn), 2), :, :, pl.ds(0, plan.middle)]
        ends = (4, 2, plan.warps_middle, *eights, 2, 2, 2, 8)
        whole = plan.blocks // 16 * 16
        view = h.at[:, pl.ds(0, whole)].reshape(2, *sixteens, 2, *ends)
        u, last = 1 + len(sixteens), view.ndim - 1
        order = (u, 0, *range(1, u), *range(u + 3, last), last, u + 1, u + 2)
        tiles = [h_fragment(plan).load(view.transpose(order))]
        if plan.blocks % 16:
            view = h.at[:, pl.ds(whole, 8)].reshape(2, *ends)
            last = view.ndim - 1
            order = (last - 3, 0, *range(3, last - 3), last - 2, last - 1, last, 1, 2)
            tiles.append(h_rest(plan).load(view.transpose(order)))
        multiply = by_lanes(
            functools.partial(left_values, plan),
            functools.partial(multiply_left, plan, weights.dtype),
            left_operands(plan),
            y_fragment(plan),
            jnp.float32,
        )
        found = multiply(*tiles, weights)
        if self.bias is not None:
            bias = bias_fragment(plan)
            found = add_bias(
                found,
                y_fragment(plan),
                bias.load(self.bias.at[self.wg]).astype(jnp.float32),
                bias,
            )
        return activate(found, self.activation).astype(weights.dtype)


def launch(
    x: jax.Array,
    left: jax.Array,
    right: jax.Array,
    bias: jax.Array | None,
    activation: Activation | None,
    plan: Plan,
    config: Config,
) -> jax.Array:
    """y (batch, n_out) of x (batch, n_in)."""
    batch, g, t = x.shape[0], plan.warpgroups, plan.teams
    num_tiles = pl.cdiv(batch, plan.rows)
    ctas = min(config.ctas, pl.cdiv(num_tiles, t))

    def slab(*shape: int) -> Any:
        swizzle = plgpu.SwizzleTransform(2 * shape[-1])  # type: ignore[abstract]
        return plgpu.SMEM(shape, x.dtype, transforms=(swizzle,))

    lines_in = plan.n_in // (g * plan.width)
    lines_out = plan.n_out // (g * LINE)
    memory = plgpu.RefUnion(
        [
            # Eights of the rows apart: eight outputs of a block are 128 bytes.
            plgpu.SMEM((t, 2, 2, plan.blocks, plan.padded, 8), x.dtype),
            slab(t, config.out_stages, g, plan.rows, lines_out, LINE),
        ],
        [slab(entries // LINE, LINE) for entries in plan.weights],
    )

    def body(x_ref: Any, right_ref: Any, left_ref: Any, *refs: Any) -> None:
        *biases, y_ref, xs, ((hs, ys), (left_slab, right_slab)) = refs[:-4]
        loaded, weights_loaded, begun, phase = refs[-4:]
        place = teams.place(plan, ctas, num_tiles, plan.rows)
        Kernel(
            plan,
            config,
            activation,
            place,
            x_ref,
            right_ref,
            left_ref,
            biases[0] if biases else None,
            y_ref,
            xs.at[place.team],
            hs.at[place.team],
            ys.at[place.team],
            left_slab,
            right_slab,
            loaded,
            weights_loaded,
            begun,
            phase.at[place.team],
        ).run()

    args = [right.reshape(-1, LINE), left.reshape(-1, LINE)]
    if bias is not None:
        args.append(bias.reshape(g, *bias_fragment(plan).shape))
    run = teams.launch(
        body,
        plan,
        ctas,
        jax.ShapeDtypeStruct((batch, g, lines_out, LINE), x.dtype),
        [
            # Lines apart: eight rows of a column of 16 bytes are in different banks.
            slab(t, config.stages, g, lines_in, plan.rows, plan.width),
            memory,
            plgpu.Barrier(num_barriers=t * g * config.stages),
            plgpu.Barrier(num_arrivals=2, num_barriers=g),
            plgpu.Barrier(num_arrivals=t * g),
            plgpu.Barrier(num_arrivals=g, num_barriers=t),
        ],
    )
    y: jax.Array = run(x.reshape(batch, g, lines_in, plan.width), *args)
    return y.reshape(batch, plan.n_out)
