"""How weights and bias of the one-factor kernel arrive, before the launch and in it.

    d = 1                 w in HBM ──TMA──▶ slab
    d > 1, resident       w in HBM ──loads of up to 16 bytes──▶ registers ──▶ slab
    d > 1, streamed       w in HBM ──XLA──▶ (a·d, b, c) in HBM ──TMA──▶ slab

*Fetched* weights need no order but their own. *Arranged* ones, with s = itemsize, cost
a CTA b·c·min(s·d, max(32, s·kept)) bytes of L2 whenever it comes to a group of `kept`
neighbours along d: whole sectors, of which it wants these. CTAs take runs of items, so
that happens `ctas` + a·d / kept times in all, and while it does, a CTA only fetches x.
In shared memory it is b·c·kept stores of s bytes, a warp's in different banks.
*Ordered* ones cost a launch, 2·s·a·b·c·d bytes of HBM, and s·a·b·c·d bytes of memory;
but then any CTA streams tiles of them, as many times as it likes.

Seconds · 10⁶ for each, by `factor_choice.preparation` with the best configuration of
its kind, next to what HBM takes for x and y, for 16 bits and batch 25,088 (512).
Predictions; a launch is taken for 3. In brackets, what the whole is predicted to take
with arranged weights, as a multiple of what it takes with ordered ones.

                              x and y      arranged     ordered
    (16, 16, 16, 16)   last     96  (2.0)   1.1  (1.0)   3.1  (3.1)   [0.98 (0.67)]
                       first                1.3  (1.3)   3.1  (3.1)   [0.99 (0.73)]
    (1, 32, 32, 32)    last     24  (0.5)   1.6  (1.0)   3.0  (3.0)   [0.94 (0.57)]
                       first                2.4  (1.2)   3.0  (3.0)   [0.99 (0.63)]
    (1, 64, 64, 16)    last     24  (0.5)   4.8  (1.6)   3.1  (3.1)   [0.97 (0.90)]
                       first                4.1  (1.6)   3.1  (3.1)   [1.04 (0.83)]
    (1, 128, 128, 4)   last     12  (0.2)   6.4  (4.0)   3.1  (3.1)   [2.01 (1.63)]
                       first                4.1  (1.0)   3.1  (3.1)   [1.12 (0.50)]
    (1, 128, 128, 16)  last     48  (1.0)   no room      3.2  (3.2)
                       first               15.0  (3.9)   3.2  (3.2)   [1.27 (1.81)]
    (96, 192, 192, 4)  last   1721   (35)   no room       16   (16)
                       first                 34   (34)    16   (16)   [1.01 (1.64)]
    (4, 1024, 1024, 16)       1530   (31)   no room       65   (65)

A copy of w has to gain 5 % to be worth its memory. So blocks up to about 48 × 48 are
read where they are, and larger ones where a CTA visits few of them, and of few
neighbours: 64 × 64 mostly, 128 × 128 of a feature-first array for d ≤ 4. Beyond that,
each CTA reads sectors for a few of their bytes, which costs more than a launch: at
(1, 128, 128, 16) five times as much. Feature-last, several neighbours of that size have
no room, 2·8·128·128 bytes; arranged anew for each tile they would add a third to the
bytes from L2, which binds there, to save 7 % of the time of HBM. In float32
feature-last, the turned buffers, in two pieces in and three out, leave room for weights
up to about 32 × 32.

Merged blocks are ordered too. Theirs lie on diagonals of v entries, b·c·u·blocks of
them, of which a warpgroup stores one at a time between two barriers. For radix-2 that
should take about as long as the launch.

The bias is read where it is, by tiles of the tensor core, unless b is no multiple of
these: then XLA pads it. For wgmma XLA puts it in the order of the blocks.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import arranging, compat
from pallas_kernels.arrangement import Units
from pallas_kernels.blocks import bias_blocks, loadable, weight_blocks
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
        blocks = _interleave(blocks, 1, plan.features, s)
        blocks = _interleave(blocks, 2, config.depth, s)
    return blocks


def _interleave(array: jax.Array, axis: int, length: int, s: int) -> jax.Array:
    """Within runs of `length` puts entry t·s + o at o·(length / s) + t."""
    shape = array.shape
    split = (*shape[:axis], -1, length // s, s, *shape[axis + 1 :])
    return array.reshape(split).swapaxes(axis + 1, axis + 2).reshape(shape)


def bias_before_launch(bias: jax.Array, plan: Tiling) -> jax.Array:
    """The bias as the kernel gets it, (a, b/s, s, d); padded where it has to be.

    Outputs of a block are read in runs of what one tile of the tensor core has. None
    may reach beyond the bias. For wgmma it is (a·d, b), in whole tiles.
    """
    if plan.config.wgmma:
        more = plan.feature_tiles * plan.config.features - plan.factor.b
        return jnp.pad(bias_blocks(bias, plan.factor), ((0, 0), (0, more)))
    a, b, d, s = plan.factor.a, plan.factor.b, plan.factor.d, plan.interleave
    view = loadable(bias).reshape(a, b // s, s, d)
    if b // s % plan.output_unit:
        more = (plan.feature_tiles * plan.config.features - b) // s
        view = jnp.pad(view, ((0, 0), (0, more), (0, 0), (0, 0)))
    return view


def load_bias(
    bias: Any,
    block: jax.Array,
    feature: jax.Array,
    length: int,
    plan: Tiling,
    layout: Any,
) -> jax.Array:
    """The bias of a warpgroup's part of a tile, (length,) in float32.

    Args:
      bias: in HBM, as `bias_before_launch` returns it.
      block: which block.
      feature: its first output.
      length: how many; all that the warpgroup has, except with wgmma.
      plan: the tiling.
      layout: of the sums.
    """
    if plan.config.wgmma:
        rows = bias.at[block, pl.ds(feature, length)]
        return plgpu.load(rows, layout=layout.reduce(0), optimized=False)
    s = plan.interleave
    length, unit, whole = length // s, plan.output_unit, bias.shape[1]
    i, k = _divmod(block, plan.factor.d)
    start = jax.lax.div(feature, s)
    if whole % length:  # Units of outputs that there are not read something else.
        starts = [
            jnp.minimum(start + first, whole - unit) for first in range(0, length, unit)
        ]
    else:
        starts, unit = [start], length
    parts = []
    for row_of, start in itertools.product(range(s), starts):
        rows = bias.at[i, pl.ds(start, unit), row_of]
        if plan.way == "flat":
            reduced = layout.reduce(0)
            part = plgpu.load(rows.at[:, 0], layout=reduced, optimized=False)
        else:  # What a thread loads must lie side by side, be it only one number.
            column = compat.with_unit_axis(layout.reduce(1))
            part = plgpu.load(rows.at[:, pl.ds(k, 1)], layout=column, optimized=False)
            (part,) = compat.unstack_vector(part)
        parts.append(part.astype(jnp.float32))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def panels(
    slabs: Any,
    plan: Tiling,
    block: jax.Array,
    feature: jax.Array,
    chunk: jax.Array,
    stage: jax.Array,
) -> list[Any]:
    """A chunk of weights in shared memory, in panels (blocks, features, width).

    Args:
      slabs: all of them.
      plan: the tiling.
      block: the first block of the tile.
      feature: the first output of the tile.
      chunk: which of the chunks of inputs.
      stage: where the chunk is, if weights are not resident.
    """
    at, config = stage, plan.config
    if config.resident:
        at = jax.lax.div(feature, config.features) * plan.chunks + chunk
    _, first = _divmod(block, plan.kept)
    blocks = pl.ds(first, config.blocks)
    return [slabs.at[at, p, blocks] for p in range(plan.slab_weights[0])]


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
      block: one of the group.
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
    part_rows = plan.features // s
    # Inputs that share a run are in panels one after the other.
    panels_of = config.depth // s // width
    i, k = _divmod(jax.lax.div(block, plan.kept) * plan.kept, plan.factor.d)

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

        def source(first: int) -> Any:
            return w.at[
                i,
                pl.ds(part * part_rows + start, units.rows),
                row_of,
                pl.ds(panel * width, units.panels.length),
                pl.ds(k + first, units.vector),
            ]

        def store(n: int, plane: jax.Array) -> None:
            column_of, n_of = divmod(n, plan.kept)
            at_panel = column_of * panels_of + p
            slabs.at[at, at_panel, n_of, rows, columns][...] = plane

        arranging.move(units, s * plan.kept, source, store)

    deal(s * units.count, take_unit)


def _divmod(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.div(n, by), jax.lax.rem(n, by)
