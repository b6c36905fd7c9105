"""How weights of the one-factor kernel arrive: what XLA does before, and threads after.

See `factor_tiles` for the three ways. What arranging them costs, with s = itemsize: a
CTA reads a block's weights when it comes to it, in sectors of 32 bytes, of which it
needs only its own neighbours along d. That is b·c·min(s·d, max(32, s·blocks)) bytes
from L2, for each CTA and each group of blocks it visits, a little more than one; then
b·c·blocks stores of s bytes, without bank conflicts. XLA's order costs a launch more,
2·s·a·b·c·d bytes of HBM and as many bytes of memory as w.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import compat
from pallas_kernels.arrangement import Units
from pallas_kernels.blocks import weight_blocks
from pallas_kernels.factor_tiles import Tiling

# Deals units of work out to the warpgroups.
Deal = Callable[[int, Callable[[jax.Array], None]], None]


def before_launch(w: jax.Array, plan: Tiling) -> jax.Array:
    """The weights as the kernel gets them; only *ordered* ones are moved.

    Returns:
      (a·d, b, c), or for weights that are arranged (a, b/s, s, c/s, s·d), where s of
      the inputs, and outputs, share a run of the turned buffer.
    """
    a, b, c, d = w.shape
    s = plan.interleave
    if plan.arrival == "fetched":
        return w.reshape(a, b, c)
    if plan.arrival == "arranged":
        return w.reshape(a, b // s, s, c // s, s * d)
    return _ordered(w, plan)


def _ordered(w: jax.Array, plan: Tiling) -> jax.Array:
    config, s = plan.config, plan.interleave
    blocks = weight_blocks(w, plan.factor, 1)[:, 0]
    b, c = plan.factor.b, plan.factor.c
    # TMA fills up with zeros, but starts rows of weights at multiples of 16 bytes; and
    # interleaving wants whole tiles.
    to_b = -(-b // plan.features) * plan.features if s > 1 else b
    unit = config.depth if s > 1 else 16 // plan.item_in
    to_c = -(-c // unit) * unit
    if (to_b, to_c) != (b, c):
        blocks = jnp.pad(blocks, ((0, 0), (0, to_b - b), (0, to_c - c)))
    if s > 1:
        blocks = interleave(blocks, 1, plan.features, s)
        blocks = interleave(blocks, 2, config.depth, s)
    return blocks


def interleave(array: jax.Array, axis: int, length: int, s: int) -> jax.Array:
    """Within runs of `length` puts entry t·s + o at o·(length / s) + t."""
    shape = array.shape
    split = (*shape[:axis], -1, length // s, s, *shape[axis + 1 :])
    return array.reshape(split).swapaxes(axis + 1, axis + 2).reshape(shape)


def panels(
    slabs: Any, plan: Tiling, feature: jax.Array, chunk: jax.Array, stage: jax.Array
) -> list[Any]:
    """A chunk of weights in shared memory, in panels (blocks, features, width).

    Args:
      slabs: all of them.
      plan: the tiling.
      feature: the first output of the tile.
      chunk: which of the chunks of inputs.
      stage: where the chunk is, if weights are not resident.
    """
    at = stage
    if plan.config.resident:
        at = jax.lax.div(feature, plan.config.features) * plan.chunks + chunk
    return [slabs.at[at, p] for p in range(plan.slab_weights[0])]


def clear(slabs: Any, plan: Tiling, deal: Deal) -> None:
    """Writes zeros where tiles and chunks reach beyond a block."""
    config, factor = plan.config, plan.factor
    whole = plan.feature_tiles * config.features, plan.chunks * config.depth
    if whole == (factor.b, factor.c):
        return
    count, blocks, *shape = plan.slab_weights
    layout = plgpu.Layout.MMA_LHS(jnp.bfloat16, m_warps=config.m_warps)

    def take_unit(unit: jax.Array) -> None:
        unit, block = _divmod(unit, blocks)
        at, p = _divmod(unit, count)
        zeros = jnp.zeros(shape, slabs.dtype)
        slabs.at[at, p, block][...] = plgpu.layout_cast(zeros, layout)

    deal(plan.weight_stages * count * blocks, take_unit)


def arrange(w: Any, block: jax.Array, slabs: Any, plan: Tiling, deal: Deal) -> None:
    """Brings all weights of a group of blocks from w into shared memory.

    Args:
      w: in HBM, as `before_launch` returns it.
      block: the first block of the group.
      slabs: (feature tiles · chunks, panels, blocks, features, width).
      plan: the tiling.
      deal: deals units of work out to the warpgroups.
    """
    for units in plan.units or ():
        _arrange(w, block, slabs, plan, deal, units)


def _arrange(
    w: Any, block: jax.Array, slabs: Any, plan: Tiling, deal: Deal, units: Units
) -> None:
    config, s, width = plan.config, plan.interleave, plan.weight_width
    layout, part_rows = _layout(units), plan.features // s
    # Inputs that share a run are in panels one after the other.
    panels_of = config.depth // s // width
    i, k = _divmod(block, plan.factor.d)

    def take_unit(unit: jax.Array) -> None:
        unit, start = _divmod(unit, units.parts.length // units.rows)
        unit, row_of = _divmod(unit, s)
        panel, part = _divmod(unit, units.parts.count)
        panel, part = panel + units.panels.first, part + units.parts.first
        tile, share = _divmod(part, config.split_features)
        chunk, p = _divmod(panel, panels_of)
        at, start = tile * plan.chunks + chunk, start * units.rows
        rows = pl.ds(share * plan.features + row_of * part_rows + start, units.rows)
        columns = pl.ds(0, units.panels.length)
        for first in range(0, plan.run, units.vector):
            source = w.at[
                i,
                pl.ds(part * part_rows + start, units.rows),
                row_of,
                pl.ds(panel * width, units.panels.length),
                pl.ds(k + first, units.vector),
            ]
            value = plgpu.load(source, layout=layout, optimized=False)
            for n, plane in enumerate(compat.unstack_vector(value)):
                column_of, n_of = divmod(first + n, config.blocks)
                at_panel = column_of * panels_of + p
                slabs.at[at, at_panel, n_of, rows, columns][...] = plane

    deal(s * units.count, take_unit)


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


def _divmod(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.div(n, by), jax.lax.rem(n, by)
