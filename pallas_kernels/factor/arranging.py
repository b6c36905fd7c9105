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
    run: int,
    source: Callable[[int], Any],
    store: Callable[[int, jax.Array], None],
) -> None:
    """Moves one unit: loads neighbours along d together, and stores them one by one.

    Args:
      units: what the unit is like.
      run: neighbours along d that are wanted.
      source: the part (rows, columns, `units.vector`) of w in HBM that begins with
        neighbour number n of these.
      store: takes the (rows, columns) weights of neighbour number n.
    """
    layout = _layout(units)
    for first in range(0, run, units.vector):
        value = plgpu.load(source(first), layout=layout, optimized=False)
        for n, plane in enumerate(compat.unstack_vector(value), first):
            store(n, plane)


def _layout(units: Units) -> Any:
    """How a unit, (rows, columns, vector), lies in a warpgroup's registers."""
    (warps_down, warps_across), lanes = units.warps, units.lanes
    block = (warps_down * lanes[0], warps_across * lanes[1])
    return compat.tiled_layout(
        [(*block, units.vector), (*lanes, units.vector)],
        warp_dims=(-6, -5, compat.replicated(4 // (warps_down * warps_across))),
        lane_dims=(-3, -2, compat.replicated(32 // (lanes[0] * lanes[1]))),
        vector_dim=-1,
    )
