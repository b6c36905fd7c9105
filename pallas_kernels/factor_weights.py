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
from pallas_kernels.blocks import weight_blocks
from pallas_kernels.factor_tiles import Arrangement, Tiling

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
    config, width = plan.config, plan.weight_width
    tile = jax.lax.div(feature, config.features)
    count = config.depth // width
    if plan.arrival == "arranged":
        _, blocks, features, _ = plan.slab_weights
        slab = slabs.at[tile, 0, pl.ds(0, blocks), pl.ds(0, features)]
        starts = [chunk * config.depth + p * width for p in range(count)]
        return [slab.at[:, :, pl.ds(start, width)] for start in starts]
    at = tile * plan.chunks + chunk if config.resident else stage
    return [slabs.at[at, p] for p in range(count)]


def clear(slabs: Any, plan: Tiling, deal: Deal) -> None:
    """Writes zeros where tiles and chunks reach beyond a block."""
    config, factor = plan.config, plan.factor
    whole = plan.feature_tiles * config.features, plan.chunks * config.depth
    if whole == (factor.b, factor.c):
        return
    _, blocks, *shape = plan.slab_weights
    vector = next(n for n in (8, 4, 2, 1) if not shape[0] * shape[1] % (128 * n))
    layout = plgpu.Layout.WG_STRIDED(tuple(shape), vec_size=vector)

    def take_unit(unit: jax.Array) -> None:
        at, block = jax.lax.div(unit, blocks), jax.lax.rem(unit, blocks)
        zeros = plgpu.layout_cast(jnp.zeros(shape, slabs.dtype), layout)
        slabs.at[at, 0, block][...] = zeros

    deal(plan.weight_stages * blocks, take_unit)


def arrange(w: Any, block: jax.Array, slabs: Any, plan: Tiling, deal: Deal) -> None:
    """Brings all weights of a group of blocks from w into shared memory.

    Args:
      w: in HBM, as `before_launch` returns it.
      block: the first block of the group.
      slabs: (feature tiles, 1, blocks, features, all inputs and padding).
      plan: the tiling.
      deal: deals units of work out to the warpgroups.
    """
    config, factor, s = plan.config, plan.factor, plan.interleave
    unit_of = plan.arrangement
    layout = _layout(unit_of)
    part, chunk_of = plan.features // s, config.depth // s
    down = factor.b // s // unit_of.rows
    across = factor.c // s // unit_of.columns
    i, k = jax.lax.div(block, factor.d), jax.lax.rem(block, factor.d)

    def take_unit(unit: jax.Array) -> None:
        unit, row_of = jax.lax.div(unit, s), jax.lax.rem(unit, s)
        row = jax.lax.div(unit, across) * unit_of.rows
        column = jax.lax.rem(unit, across) * unit_of.columns
        # The parts of a tile's outputs that belong to one warpgroup each.
        tile, which = _divmod(jax.lax.div(row, part), config.split_features)
        first = which * plan.features + row_of * part + jax.lax.rem(row, part)
        chunk, start = _divmod(column, chunk_of)
        start += chunk * config.depth
        rows = pl.ds(first, unit_of.rows)
        for n in range(0, s * config.blocks, unit_of.vector):
            source = w.at[
                i,
                pl.ds(row, unit_of.rows),
                row_of,
                pl.ds(column, unit_of.columns),
                pl.ds(k + n, unit_of.vector),
            ]
            value = plgpu.load(source, layout=layout, optimized=False)
            for m, plane in enumerate(compat.unstack_vector(value)):
                which_of, k_of = divmod(n + m, config.blocks)
                columns = pl.ds(which_of * chunk_of + start, unit_of.columns)
                slabs.at[tile, 0, k_of, rows, columns][...] = plane

    deal(s * down * across, take_unit)


def _layout(unit: Arrangement) -> Any:
    """How a unit, (rows, columns, vector), lies in a warpgroup's registers."""
    (warps_down, warps_across), lanes = unit.warps, unit.lanes
    block = (warps_down * lanes[0], warps_across * lanes[1])
    return compat.tiled_layout(
        [(*block, unit.vector), (*lanes, unit.vector)],
        warp_dims=(-6, -5, compat.Replicated(4 // (warps_down * warps_across))),
        lane_dims=(-3, -2, compat.Replicated(32 // (lanes[0] * lanes[1]))),
        vector_dim=-1,
    )


def _divmod(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.div(n, by), jax.lax.rem(n, by)
