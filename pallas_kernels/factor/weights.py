"""How weights and bias of the one-factor kernel arrive, before the launch and in it.

    fetched     w in HBM ──TMA──▶ slab
    arranged    w in HBM ──loads of up to 16 bytes──▶ registers ──▶ slab
    ordered     w in HBM ──XLA──▶ (a·d, b, c) in HBM ──TMA──▶ slab

*Fetched* weights need no order but their own: d = 1, or neighbours that lie zipped,
whose weights are parted in registers. *Arranged* ones, resident and of a feature-first
array, with s = itemsize, cost a CTA b·c·min(s·d, 32) bytes of L2 whenever it comes to a
block: whole sectors, of which it wants s bytes. CTAs take runs of items, so that
happens `ctas` + a·d times in all, and while it does, a CTA only fetches x. *Ordered*
ones cost a launch, 2·s·a·b·c·d bytes of HBM, and s·a·b·c·d bytes of memory; but then
any CTA streams tiles of them, as many times as it likes: what is needed where a block's
weights do not fit shared memory beside x.

Merged blocks are ordered too; `butterjax.gpu.plan_launches` sends what it can of
them to `pallas_kernels.radix`, which reads them as they are.

The bias is read where it is, by tiles of the tensor core, unless b is no multiple of
these: then XLA pads it. For wgmma XLA puts it in the order of the blocks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from pallas_kernels.factor import arranging
from pallas_kernels.factor.arrangement import Units
from pallas_kernels.factor.blocks import bias_blocks, loadable, weight_blocks
from pallas_kernels.factor.plan import OUTPUTS, Tiling

# Deals units of work out to the warpgroups.
Deal = Callable[[int, Callable[[jax.Array], None]], None]


def before_launch(w: jax.Array, plan: Tiling) -> jax.Array:
    """The weights as the kernel gets them; only *ordered* ones are moved.

    Returns:
      (a·d, b, c); (a, b, c, d) if threads arrange them; (a, b, c·d) if they lie zipped.
    """
    if plan.zips:
        factor = plan.factor
        if plan.arrival == "ordered":
            w = _merged(w, plan)
        return w.reshape(factor.a, factor.b, factor.c * factor.d)
    if plan.arrival == "arranged":
        return w
    if plan.arrival == "fetched":
        return w.reshape(w.shape[:3])
    blocks = weight_blocks(w, plan.factor, 1)[:, 0]
    # TMA starts rows of weights at multiples of 16 bytes.
    more = -plan.factor.c % (16 // plan.item_in)
    return jnp.pad(blocks, ((0, 0), (0, 0), (0, more))) if more else blocks


def _merged(w: jax.Array, plan: Tiling) -> jax.Array:
    """A factor embedded in one of larger blocks."""
    factor = plan.factor
    blocks = weight_blocks(w, factor, 1)
    blocks = blocks.reshape(factor.a, factor.d, factor.b, factor.c)
    return blocks.transpose(0, 2, 3, 1)


def bias_before_launch(bias: jax.Array, plan: Tiling) -> jax.Array:
    """The bias as the kernel gets it, padded where it has to be.

    Outputs of a block are read in runs of what one tile of the tensor core has. None
    may reach beyond the bias.

    Returns:
      (a, b, d); (a·d, b) for wgmma; if features lie zipped, (a, b/8, 8·d).
    """
    a, b, d = plan.factor.a, plan.factor.b, plan.factor.d
    more = plan.padded_features - b
    if plan.config.wgmma:
        return jnp.pad(bias_blocks(bias, plan.factor), ((0, 0), (0, more)))
    view = loadable(bias).reshape(a, b, d)
    if b % plan.output_unit:
        view = jnp.pad(view, ((0, 0), (0, more), (0, 0)))
    return view.reshape(a, -1, OUTPUTS * d) if plan.zips else view


def load_bias(
    bias: Any,
    block: jax.Array,
    feature: jax.Array,
    length: int,
    plan: Tiling,
    layout: Any,
) -> list[jax.Array]:
    """The bias of a warpgroup's part of a tile, (length,) in float32 for each block.

    Args:
      bias: in HBM, as `bias_before_launch` returns it.
      block: the block, or the first of those whose features lie zipped.
      feature: its first output.
      length: how many; all that the warpgroup has, except with wgmma.
      plan: the tiling.
      layout: of the sums.
    """
    if plan.config.wgmma:
        rows = bias.at[block, pl.ds(feature, length)]
        return [plgpu.load(rows, layout=layout.reduce(0), optimized=False)]
    i, k = _divmod(block, plan.factor.d)
    if plan.zips:
        return _load_zipped_bias(bias, i, feature, length, plan, layout)
    unit, whole = plan.output_unit, bias.shape[1]
    if whole % length:  # Units of outputs that there are not read something else.
        starts = [
            jnp.minimum(feature + first, whole - unit)
            for first in range(0, length, unit)
        ]
    else:
        starts, unit = [feature], length
    parts = []
    for start in starts:
        rows = bias.at[i, pl.ds(start, unit)]
        if plan.way == "flat":
            reduced = layout.reduce(0)
            part = plgpu.load(rows.at[:, 0], layout=reduced, optimized=False)
        else:  # What a thread loads must lie side by side, be it only one number.
            column = compat.with_unit_axis(layout.reduce(1))
            part = plgpu.load(rows.at[:, pl.ds(k, 1)], layout=column, optimized=False)
            (part,) = compat.unstack_vector(part)
        parts.append(part.astype(jnp.float32))
    return [parts[0] if len(parts) == 1 else jnp.concatenate(parts)]


def _load_zipped_bias(
    bias: Any,
    i: jax.Array,
    feature: jax.Array,
    length: int,
    plan: Tiling,
    layout: Any,
) -> list[jax.Array]:
    m_warps = plan.config.m_warps
    # Outputs that there are not read something else.
    start = jnp.minimum(
        jax.lax.div(feature, OUTPUTS), bias.shape[1] - length // OUTPUTS
    )
    source = bias.at[i, pl.ds(start, length // OUTPUTS)]
    zipped = compat.zipped_bias(source.shape, m_warps, bias.dtype.itemsize)
    value = plgpu.load(source, layout=zipped, optimized=False)
    parts = compat.unzip_bias(value, plan.blocks, layout.reduce(0))
    return [part.astype(jnp.float32) for part in parts]


def stage_of(
    plan: Tiling, feature: jax.Array, chunk: jax.Array, stage: jax.Array
) -> jax.Array:
    """Where in shared memory a chunk of weights is.

    Args:
      plan: the tiling.
      feature: the first output of the tile.
      chunk: which of the chunks of inputs.
      stage: where the chunk is, if weights are not resident.
    """
    if not plan.config.resident:
        return stage
    return jax.lax.div(feature, plan.config.features) * plan.chunks + chunk


def sources(
    w: Any, plan: Tiling, block: jax.Array, feature: jax.Array, chunk: jax.Array
) -> list[Any]:
    """What TMA copies of w: a panel of a chunk after the other.

    Args:
      w: in HBM, as `before_launch` returns it.
      plan: the tiling.
      block: the first block of the tile.
      feature: the first output of the tile.
      chunk: which of the chunks of inputs.
    """
    count, *shape = plan.slab_weights
    depth = chunk * plan.config.depth
    if plan.zips:
        rows = w.at[jax.lax.div(block, plan.blocks), pl.ds(feature, shape[0])]
        width = plan.panel_depth
        return [zipped(rows, plan, depth + p * width, width) for p in range(count)]
    features, width = shape
    return [
        w.at[block, pl.ds(feature, features), pl.ds(depth + p * width, width)]
        for p in range(count)
    ]


def zipped(rows: Any, plan: Tiling, first: jax.Array, count: int) -> Any:
    """So many features of all neighbouring blocks, from the given one on."""
    return rows.at[:, pl.ds(first * plan.blocks, count * plan.blocks)]


def clear(slabs: Any, plan: Tiling, deal: Deal) -> None:
    """Writes zeros where tiles and chunks reach beyond a block."""
    config, factor = plan.config, plan.factor
    whole = plan.feature_tiles * config.features, plan.chunks * config.depth
    if whole == (factor.b, factor.c):
        return
    count, *shape = plan.slab_weights
    layout = plgpu.Layout.MMA_LHS(jnp.bfloat16, m_warps=config.m_warps)

    def take_unit(unit: jax.Array) -> None:
        at, p = _divmod(unit, count)
        zeros = jnp.zeros(shape, slabs.dtype)
        slabs.at[at, p][...] = plgpu.layout_cast(zeros, layout)

    deal(plan.weight_stages * count, take_unit)


def arrange(w: Any, block: jax.Array, slabs: Any, plan: Tiling, deal: Deal) -> None:
    """Brings all weights of a block from w into shared memory.

    Args:
      w: in HBM, as `before_launch` returns it.
      block: which.
      slabs: (feature tiles · chunks, panels, features, width).
      plan: the tiling.
      deal: deals units of work out to the warpgroups.
    """
    for units in plan.units or ():
        _arrange(w, block, slabs, plan, deal, units)


def _arrange(
    w: Any, block: jax.Array, slabs: Any, plan: Tiling, deal: Deal, units: Units
) -> None:
    config, width = plan.config, plan.weight_width
    panels_of = config.depth // width
    i, k = _divmod(block, plan.factor.d)

    def take_unit(unit: jax.Array) -> None:
        unit, start = _divmod(unit, units.parts.length // units.rows)
        panel, part = _divmod(unit, units.parts.count)
        panel, part = panel + units.panels.first, part + units.parts.first
        tile, share = _divmod(part, config.split_features)
        chunk, p = _divmod(panel, panels_of)
        at, start = tile * plan.chunks + chunk, start * units.rows
        rows = pl.ds(share * plan.features + start, units.rows)
        columns = pl.ds(0, units.panels.length)

        source = w.at[
            i,
            pl.ds(part * plan.features + start, units.rows),
            pl.ds(panel * width, units.panels.length),
            pl.ds(k, 1),
        ]
        arranging.move(units, source, slabs.at[at, p, rows, columns])

    deal(units.count, take_unit)


def _divmod(n: jax.Array, by: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.div(n, by), jax.lax.rem(n, by)
