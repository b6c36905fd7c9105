"""What warpgroups do to bring weights into order, inside a kernel."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from pallas_kernels.factor.arrangement import Units


def deal(units: int, warpgroups: int, take: Callable[[jax.Array], None]) -> None:
    """Deals units of work out to the warpgroups."""

    def step(turn: jax.Array, carry: None) -> None:
        unit = turn * warpgroups + jax.lax.axis_index("wg")
        if units % warpgroups:
            pl.when(unit < units)(lambda: take(unit))
        else:
            take(unit)
        return carry

    jax.lax.fori_loop(0, pl.cdiv(units, warpgroups), step, None)


def move(
    units: Units,
    source: Any,
    target: Any,
) -> None:
    """Moves one unit of a block's weights.

    Args:
      units: what the unit is like.
      source: the part (rows, columns, 1) of w in HBM.
      target: where it belongs, (rows, columns) in shared memory.
    """
    value = plgpu.load(source, layout=_layout(units), optimized=False)
    (plane,) = compat.unstack_vector(value)
    target[...] = plane


def _layout(units: Units) -> Any:
    """How a unit, (rows, columns, 1), lies in a warpgroup's registers."""
    (warps_down, warps_across), lanes = units.warps, units.lanes
    block = (warps_down * lanes[0], warps_across * lanes[1])
    return compat.tiled_layout(
        [(*block, 1), (*lanes, 1)],
        warp_dims=(-6, -5, compat.replicated(4 // (warps_down * warps_across))),
        lane_dims=(-3, -2, compat.replicated(32 // (lanes[0] * lanes[1]))),
        vector_dim=-1,
    )
