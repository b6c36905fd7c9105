"""The warpgroups of a CTA in teams, each of which takes tiles of its own."""

import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.fused.plan import Plan


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a warpgroup is.

    Attributes:
      plan: how the work is dealt out.
      team: its team's number in the CTA.
      warpgroup: its own number in the team.
      ctas: of the launch.
      num_tiles: of the batch.
      rows: vectors of a tile.
    """

    plan: Plan
    team: Any
    warpgroup: Any
    ctas: int
    num_tiles: int
    rows: int

    @property
    def thread(self) -> Any:
        """Number of the warpgroup in the CTA."""
        return self.team * self.plan.warpgroups + self.warpgroup

    @property
    def turns(self) -> Any:
        """Tiles that its team takes."""
        return jax.lax.div(self.num_tiles - self._first + self._step - 1, self._step)

    def start(self, turn: Any) -> Any:
        """First vector of the tile that it takes in a turn."""
        tile = self._first + turn * self._step
        return pl.multiple_of(tile * self.rows, self.rows)

    @property
    def _first(self) -> Any:
        return jax.lax.axis_index("cta") * self.plan.teams + self.team

    @property
    def _step(self) -> int:
        return self.ctas * self.plan.teams


def place(plan: Plan, ctas: int, num_tiles: int, rows: int) -> Place:
    """Of the warpgroup that runs this; axes are named "cta" and "wg"."""
    thread, g = jax.lax.axis_index("wg"), plan.warpgroups
    if plan.teams == 1:
        return Place(plan, 0, thread, ctas, num_tiles, rows)
    team, warpgroup = jax.lax.div(thread, g), jax.lax.rem(thread, g)
    return Place(plan, team, warpgroup, ctas, num_tiles, rows)


def meet(barrier: Any) -> None:
    """Waits until all have come."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def share(slab: Any, at: Any, of: int) -> Any:
    """Lines of a slab of weights, of so many shares; swizzles want eights of them."""
    lines = slab.shape[0] // of
    return pl.ds(pl.multiple_of(at * lines, 8), lines)


def launch(body: Any, plan: Plan, ctas: int, out_type: Any, scratch_types: Any) -> Any:
    """`plgpu.kernel` for a body that has a `place`."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch_types,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
            reduction_scratch_bytes=0,
            approx_math=True,  # Of activations, which are rounded to 16 bits.
        ),
        grid=(ctas,),
        grid_names=("cta",),
        num_threads=plan.teams * plan.warpgroups,
        thread_name="wg",
    )
