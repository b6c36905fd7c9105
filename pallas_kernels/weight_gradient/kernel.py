"""The launch of `weight_gradient`: partial sums of every share of the batch.

    x, dy in HBM ──TMA, 16 vectors a step──▶ ring of stages ──16-byte loads──▶ pairs of
    vectors' entries, packed for each block ──▶ mma.sync ──▶ sums in registers ──▶ HBM

A CTA has some neighbours of one of the a groups of blocks, a tile of their outputs and
inputs, and a share of the batch: every shares-th step, so that all CTAs read about the
same vectors at a time. Its sums stay in registers from its first step to its last. CTAs
of a cluster have the same neighbours and steps; dy goes to all of them that are side by
side along the inputs, x to all along the outputs, each fetching a part and sending it
to the others.

The first warpgroup fetches. A stage is fetched anew when the next step begins, by when
all warpgroups of the cluster have told that they are done with it, or will soon. No
thread writes to shared memory, so there is nothing else to wait for: Pallas's automatic
barriers are off.

What lies beyond the batch, or beyond b and c, TMA fills up with zeros.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import zipped_products
from pallas_kernels.common.zipped_products import EIGHT, LINE, TILE
from pallas_kernels.weight_gradient.plan import Plan


def partial_sums(x: jax.Array, dy: jax.Array, plan: Plan) -> jax.Array:
    """Sums of every share of the batch, `plan.sums_shape`, float32.

    Args:
      x: (batch, a·c·d).
      dy: (batch, a·b·d).
      plan: of the launch.
    """
    a, b, c, d = plan.shape
    config, stages = plan.config, plan.config.stages
    shared = math.prod(config.cluster) > 1
    warpgroups = math.prod(plan.warpgroups)
    free: Any = plgpu.Barrier(num_arrivals=warpgroups, num_barriers=stages)
    options: dict[str, Any] = {}
    if shared:
        options = {"cluster": config.cluster, "cluster_names": ("j", "l")}
        free = plgpu.ClusterBarrier(
            collective_axes=("j", "l"), num_arrivals=warpgroups, num_barriers=stages
        )

    def slab(features: int) -> Any:
        # One feature's row after the other, or lines that are full of them.
        unit = (LINE,) if plan.has_whole_lines else (2, config.neighbours)
        width = 2 * plan.row
        swizzle: tuple[Any, ...] = ()
        if width > 16:
            swizzle = (plgpu.SwizzleTransform(width),)  # type: ignore[abstract]
        return plgpu.SMEM(
            (stages, features // plan.merged, plan.depth, *unit),
            x.dtype,
            transforms=swizzle,
        )

    def view(z: jax.Array, features: int) -> jax.Array:
        unit = (LINE,) if plan.has_whole_lines else (2, d)
        return z.reshape(plan.batch, a, features // plan.merged, *unit)

    kernel = plgpu.kernel(
        functools.partial(_body, plan=plan),
        out_type=jax.ShapeDtypeStruct(plan.sums_shape, jnp.float32),
        scratch_types=[
            slab(config.inputs),
            slab(config.outputs),
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            free,
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
        grid=(math.prod(plan.clusters), config.shares),
        grid_names=("cluster", "share"),
        num_threads=warpgroups,
        thread_name="wg",
        **options,
    )
    return kernel(view(x, c), view(dy, b))


def _body(
    x: Any,
    dy: Any,
    sums: Any,
    x_slab: Any,
    dy_slab: Any,
    loaded: Any,
    free: Any,
    *,
    plan: Plan,
) -> None:
    config, stages = plan.config, plan.config.stages
    share, wg = jax.lax.axis_index("share"), jax.lax.axis_index("wg")
    place, j, l = _place(plan)
    _, by_inputs = plan.warpgroups
    wg_j, wg_l = jax.lax.div(wg, by_inputs), jax.lax.rem(wg, by_inputs)
    left = plan.steps - share + config.shares - 1
    turns = jax.lax.div(left, config.shares)

    def fetch(turn: Any) -> None:
        slot = jax.lax.rem(turn, stages)
        start = (share + turn * config.shares) * plan.depth
        vectors = pl.ds(pl.multiple_of(start, plan.depth), plan.depth)
        for ref, to, first, along, others in (
            (dy, dy_slab, j, "l", config.cluster[1]),
            (x, x_slab, l, "j", config.cluster[0]),
        ):
            lines = to.shape[1]
            at: Any = (
                vectors,
                place[0],
                pl.ds(first // TILE * (TILE // plan.merged), lines),
            )
            if not plan.has_whole_lines:
                at = (*at, slice(None), pl.ds(place[1], config.neighbours))
            order = (1, 0, *range(2, to.ndim - 1))
            plgpu.copy_gmem_to_smem(
                ref.at[at],
                to.at[slot].transpose(order),
                loaded.at[slot],
                collective_axes=along if others > 1 else None,
            )

    for stage in range(stages):
        pl.when((stage < turns) & (wg == 0))(functools.partial(fetch, jnp.int32(stage)))

    def operand(slab: Any, tile: Any, *, is_dy: bool) -> jax.Array:
        """Of the warpgroup, from one tile of 16 for each of its warps."""
        tiles = plan.warps.outputs if is_dy else plan.warps.inputs
        lines = tiles * TILE // plan.merged
        ref = slab.at[pl.ds(tile * lines, lines)]
        layout = zipped_products.operand_layout(ref.shape, plan.warps, is_dy=is_dy)
        return plgpu.load(ref, layout=layout, optimized=False)

    each = EIGHT * plan.groups

    def step(turn: Any, held: list[jax.Array]) -> list[jax.Array]:
        @pl.when((turn > 0) & (turn - 1 + stages < turns) & (wg == 0))
        def _() -> None:
            plgpu.barrier_wait(free.at[jax.lax.rem(turn - 1, stages)])
            fetch(turn - 1 + stages)

        slot = jax.lax.rem(turn, stages)
        plgpu.barrier_wait(loaded.at[slot])
        right = operand(x_slab.at[slot], wg_l, is_dy=False)
        made = []
        for at in range(plan.held):
            left = operand(dy_slab.at[slot], wg_j * plan.held + at, is_dy=True)
            own = held[at * each : (at + 1) * each]
            made += zipped_products.add_products(left, right, own, plan.warps)

        @pl.when(turn + stages < turns)
        def _() -> None:
            plgpu.commit_smem()  # All of the warpgroup have read: TMA may write there.
            plgpu.barrier_arrive(free.at[slot])

        return made

    zero = zipped_products.zero_sums()
    made = jax.lax.fori_loop(0, turns, step, [zero] * (each * plan.held))

    _, width_j, width_l, width_k = plan.warps.sizes
    width_j, width_l, width_k = width_j * TILE, width_l * TILE, width_k * EIGHT
    vectors = pl.ds(share * plan.warps.vectors, plan.warps.vectors)
    for at in range(plan.held):
        for group in range(plan.groups):
            first = (at * plan.groups + group) * EIGHT
            part = sums.at[
                vectors,
                place[0],
                pl.ds(j + (wg_j * plan.held + at) * width_j, width_j),
                pl.ds(l + wg_l * width_l, width_l),
                pl.ds(place[1] + group * width_k, width_k),
            ]
            part[...] = zipped_products.zip_sums(
                made[first : first + EIGHT], plan.warps, plan.merged
            )


def _place(plan: Plan) -> tuple[tuple[Any, Any], Any, Any]:
    """Where the CTA is: (of a, of d), and its first output and input."""
    config, (_, parts, outputs, inputs) = plan.config, plan.clusters
    shared = math.prod(config.cluster) > 1
    rest = jax.lax.axis_index("cluster")
    found = []
    for count in (inputs, outputs, parts):
        found.append(jax.lax.rem(rest, count))
        rest = jax.lax.div(rest, count)
    l, j, k = found
    if shared:
        j = j * config.cluster[0] + jax.lax.axis_index("j")
        l = l * config.cluster[1] + jax.lax.axis_index("l")
    return (rest, k * config.neighbours), j * config.outputs, l * config.inputs
