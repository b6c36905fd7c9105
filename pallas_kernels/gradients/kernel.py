"""The kernel of `gradients`: dx and dw of one factor, x and dy read once.

    x, dy in HBM ──TMA, runs of 128 bytes──▶ ring of panels, 64 vectors × 64 features
        dy, w ──wgmma──▶ sums ──▶ panel of dx ──TMA──▶ dx in HBM
        dy, x ──wgmma──▶ sums, in registers over a CTA's whole share of the batch
                           ──once──▶ partial sums of a share in HBM ──XLA──▶ dw

A CTA, of one warpgroup, owns one *unit*: as many blocks side by side as fill panels of
64 features, of dy and of x, whose products with one another are computed and dropped:
tensor cores have time to spare. Its weights stay in shared memory, with zeros between
blocks. Of the batch it takes every `shares`-th panel. Both products read panels where
TMA put them: wgmma takes operands in either order. Shares are added up by XLA in fixed
order, so that the same bits come out each time.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from pallas_kernels.common.slabs import slab
from pallas_kernels.gradients.plan import PANEL, Plan


def launch(
    x: jax.Array, dy: jax.Array, weights: jax.Array, plan: Plan, feature_first: bool
) -> tuple[jax.Array, jax.Array]:
    """Calls the kernel.

    Args:
      x: (a, c, d, batch) if feature_first, else (batch, a·c).
      dy: the same of b.
      weights: (units, b, c) of the blocks of a unit, with zeros between them.
      plan: the plan.
      feature_first: see x.

    Returns:
      dx, and partial sums (shares, units, b, c) in float32.
    """
    _, b, c, d = plan.shape
    of_dy, of_x = plan.panels
    stages, out_stages = plan.config.stages, plan.config.out_stages

    def panels(*leading: int) -> Any:
        return slab((*leading, PANEL, PANEL), x.dtype, tiled=True)

    copies = plan.blocks * (-(-b // PANEL) + -(-c // PANEL))
    if not feature_first:
        copies = of_dy + of_x

    def parts(
        ref: Any, size: int, unit: jax.Array, step: jax.Array
    ) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Pieces of an array in HBM that a step has, and their places in its panels."""
        vectors = pl.ds(pl.multiple_of(step * PANEL, PANEL), PANEL)
        if not feature_first:
            start = unit * (plan.blocks * size)
            for p in range(plan.blocks * size // PANEL):
                run = pl.ds(pl.multiple_of(start + p * PANEL, PANEL), PANEL)
                yield ref.at[vectors, run], (p,)
            return
        rows = min(size, PANEL)
        for n in range(plan.blocks):
            block = unit * plan.blocks + n
            i, k = jax.lax.div(block, d), jax.lax.rem(block, d)
            for first in range(0, size, rows):
                panel, row = divmod(n * size + first, PANEL)
                place = (panel, pl.ds(row, rows)) if rows < PANEL else (panel,)
                yield ref.at[i, pl.ds(first, rows), k, vectors], place

    def body(*refs: Any) -> None:
        x_ref, dy_ref, w_ref, dx_ref, dw_ref, *scratch = refs
        x_panels, dy_panels, dx_panels, w_panels, loaded, w_loaded = scratch
        cta = jax.lax.axis_index("cta")
        unit, share = jax.lax.rem(cta, plan.units), jax.lax.div(cta, plan.units)
        mine = jax.lax.div(plan.steps - share + plan.shares - 1, plan.shares)

        def fetch(turn: jax.Array) -> None:
            slot = jax.lax.rem(turn, stages)

            @pl.when(turn < mine)
            def _() -> None:
                step = share + turn * plan.shares
                for ref, to, size in ((dy_ref, dy_panels, b), (x_ref, x_panels, c)):
                    for source, place in parts(ref, size, unit, step):
                        target = compat.untiled(to).at[(slot, *place)]
                        plgpu.copy_gmem_to_smem(source, target, loaded.at[slot])

        def multiply(slot: jax.Array, sums: Any) -> list[jax.Array]:
            """Adds the step's products to the sums; returns its part of dx."""

            def products(*of_dx: Any) -> list[jax.Array]:
                for j in range(of_dy):
                    dy_panel = dy_panels.at[slot, j]
                    for l in range(of_x):
                        w_panel = w_panels.at[j, l]
                        if feature_first:
                            plgpu.wgmma(of_dx[l], w_panel.T, dy_panel)
                        else:
                            plgpu.wgmma(of_dx[l], dy_panel, w_panel)
                for j in range(of_dy):
                    dy_panel = dy_panels.at[slot, j]
                    for l in range(of_x):
                        x_panel = x_panels.at[slot, l]
                        one = sums[j * of_x + l]
                        if feature_first:
                            plgpu.wgmma(one, dy_panel, x_panel.T)
                        else:
                            plgpu.wgmma(one, dy_panel.T, x_panel)
                plgpu.wgmma_wait(0)
                return [one[...] for one in of_dx]

            found: list[jax.Array] = pl.run_scoped(
                products, *[compat.wgmma_sums((PANEL, PANEL))] * of_x
            )
            return found

        for turn in range(stages):
            fetch(jnp.int32(turn))
        for j in range(of_dy):
            for l in range(of_x):
                source = w_ref.at[
                    unit, pl.ds(j * PANEL, PANEL), pl.ds(l * PANEL, PANEL)
                ]
                target = compat.untiled(w_panels).at[j, l]
                plgpu.copy_gmem_to_smem(source, target, w_loaded)
        plgpu.barrier_wait(w_loaded)

        def add(*sums: Any) -> list[jax.Array]:
            def take(turn: jax.Array, carry: None) -> None:
                slot, out = jax.lax.rem(turn, stages), jax.lax.rem(turn, out_stages)
                plgpu.barrier_wait(loaded.at[slot])
                found = multiply(slot, sums)
                fetch(turn + stages)
                plgpu.wait_smem_to_gmem(out_stages - 1, wait_read_only=True)
                for l, value in enumerate(found):
                    dx_panels.at[out, l][...] = value.astype(x.dtype)
                plgpu.commit_smem()
                step = share + turn * plan.shares
                pieces = list(parts(dx_ref, c, unit, step))
                for n, (target, place) in enumerate(pieces, 1):
                    source = compat.untiled(dx_panels).at[(out, *place)]
                    plgpu.copy_smem_to_gmem(
                        source, target, commit_group=n == len(pieces)
                    )
                return carry

            jax.lax.fori_loop(0, mine, take, None)
            plgpu.wait_smem_to_gmem(0)
            return [one[...] for one in sums]

        totals = pl.run_scoped(
            add, *[compat.wgmma_sums((PANEL, PANEL))] * (of_dy * of_x)
        )
        for n, total in enumerate(totals):
            j, l = divmod(n, of_x)
            rows, columns = pl.ds(j * PANEL, PANEL), pl.ds(l * PANEL, PANEL)
            dw_ref.at[share, unit, rows, columns][...] = total

    sums_shape = (plan.shares, plan.units, of_dy * PANEL, of_x * PANEL)
    dx, sums = plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct(sums_shape, jnp.float32),
        ),
        scratch_types=[
            panels(stages, of_x),
            panels(stages, of_dy),
            panels(out_stages, of_x),
            panels(of_dy, of_x),
            plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
            plgpu.Barrier(num_arrivals=of_dy * of_x),
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(plan.shares * plan.units,),
        grid_names=("cta",),
        num_threads=1,
        thread_name="wg",
    )(x, dy, weights)
    return dx, sums
