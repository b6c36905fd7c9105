"""What a tiling of the one-factor kernel asks of a chip."""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import pieces
from pallas_kernels.common.chip import LINE, Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.factor import arrangement
from pallas_kernels.factor.config import WGMMA_ROWS, Config
from pallas_kernels.factor.plan import Tiling, tiling

# Instructions of a warp, as SASS of compiled kernels has them beside products, loads of
# operands and sums: of a chunk and of a tile, of each copy that it starts, and where
# warpgroups or CTAs tell one another what they have read.
_OF_STEP = 24
_OF_COPY = 16
_OF_MEETING = 38
_OF_RESIDENT = 50  # To see whether the weights at hand are those of a tile.
_OF_SPLITTING = 4  # For each entry and piece that it is split off from.


def seconds(plan: Tiling, chip: Chip) -> float:
    """What applying a factor should take, with what XLA does before the launch."""
    return chip.seconds(usage(plan, chip)) + preparation(plan, chip)


def preparation(plan: Tiling, chip: Chip) -> float:
    """Seconds that XLA needs to bring weights into order."""
    if plan.arrival != "ordered":
        return 0.0
    factor = plan.factor
    given = factor.num_weights // (factor.merged_a * factor.merged_d)
    return chip.moved_seconds(plan.item_in * (given + factor.num_weights))


def usage(plan: Tiling, chip: Chip) -> Usage:
    """What the launch asks for."""
    config, factor = plan.config, plan.factor
    tiles = plan.items * config.cluster_size
    x = plan.batch * factor.num_blocks * factor.c * plan.item_in
    y = plan.batch * factor.num_blocks * factor.b * plan.item_out
    weights = factor.num_weights * plan.item_in
    x_fetched = x * plan.feature_tiles / config.cluster_features
    streamed = 0.0
    if not config.resident:
        streamed = tiles * plan.chunks * plan.weight_bytes / config.cluster
    visits = _visits(plan) if config.resident else 0
    tensor = 2 * plan.batch_tiles * config.rows * plan.padded_features
    tensor *= factor.num_blocks * plan.chunks * config.depth
    tensor *= plan.pieces * (plan.pieces + 1) // 2
    mmas = 0.0 if config.wgmma else tensor / (2 * 16 * 8 * 16)
    registers = 128 * config.warpgroups * (plan.registers + 24)
    turning = 3 if plan.way == "turned" else 0
    return Usage(
        hbm_bytes=x + y + weights,
        l2_bytes=x_fetched + streamed + visits * _visit_bytes(plan) + y,
        runs=(
            *_runs(x_fetched, factor.c, plan.slab_in, plan, plan.item_in),
            *_runs(y, factor.b, plan.slab_out, plan, plan.item_out),
            (plan.weight_width * plan.item_in, streamed / plan.weight_width / 2),
        ),
        wavefronts=tiles * _wavefronts(plan),
        instructions=mmas + tiles * _instructions(plan),
        mmas=mmas,
        wgmma_flops=tensor if config.wgmma else 0.0,
        tiles=tiles,
        ctas=plan.ctas,
        per_multiprocessor=chip.ctas_per_multiprocessor(plan.smem_bytes, registers),
        cluster=config.cluster_size,
        warps=4 * config.warpgroups,
        trips=plan.chunks / max(1, plan.ahead),
        meetings=plan.chunks * (1 + turning + 4 * (config.cluster_size > 1)) + 2,
        prologue_bytes=visits * _visit_bytes(plan) / plan.ctas,
        prologue_trips=visits / plan.ctas * _waits(plan),
    )


def _runs(
    moved: float, length: int, slab: tuple[int, ...], plan: Tiling, itemsize: int
) -> tuple[tuple[int, float], ...]:
    """Runs of what TMA moves of x or y, of blocks of so many features."""
    if plan.zips or plan.feature_first:
        width = slab[-1] * itemsize
    else:  # A panel may reach beyond its block.
        width = round(length / math.ceil(length / slab[-1])) * itemsize
    return ((min(width, LINE), moved / min(width, LINE)),)


def _loads(plan: Tiling) -> tuple[float, float]:
    """Entries of x and of weights that warps load as operands for a tile."""
    config = plan.config
    depth = plan.chunks * config.depth * plan.blocks
    # Warps that share rows of the product each load all of the other operand. wgmma
    # reads 64 rows at a time and the other operand for them all.
    vertical, horizontal = config.m_warps, 4 // config.m_warps
    if config.wgmma:
        by_row, by_feature = config.split_features, config.rows // WGMMA_ROWS
    elif plan.way == "flat":
        by_row = horizontal * config.split_features
        by_feature = vertical * config.split_rows
    else:
        by_row = vertical * config.split_features
        by_feature = horizontal * config.split_rows
    return by_row * config.rows * depth, by_feature * config.features * depth


def _wavefronts(plan: Tiling) -> float:
    """Wavefronts of shared memory for a tile."""
    config = plan.config
    x, weights = _loads(plan)
    # Operands are loaded as they were fetched, float32 at half the speed, but for x in
    # the turned buffer, which holds pieces.
    as_fetched = plan.item_in * (plan.item_in // 2)
    passed = as_fetched * weights
    passed += config.rows * config.features * plan.blocks * plan.item_out
    if plan.way == "turned":
        chunks = config.rows * plan.chunks * config.depth
        passed += 2 * plan.pieces * x + chunks * (plan.item_in + 2 * plan.pieces)
    else:
        passed += as_fetched * x
    return passed / LINE


def _instructions(plan: Tiling) -> float:
    """Instructions of all warps for a tile, beside products."""
    config = plan.config
    x, weights = _loads(plan)
    loads = 0.0 if config.wgmma else (x + weights) * plan.item_in / LINE
    if plan.zips:
        loads *= 1 + 1 / 3  # Of 8 or 16 bytes a lane, each word of which is made anew.
    elif plan.item_in == 2:
        loads /= 4
    split = weights
    split += config.rows * plan.chunks * config.depth if plan.way == "turned" else x
    split *= _OF_SPLITTING * (plan.pieces - 1) / 32
    sums = config.rows * config.features * plan.blocks / 32
    # They are set to zero, but in the first products of what is no loop; rounded in
    # pairs; and stored 16 bytes at a time.
    sums *= 1 / 2 * (plan.chunks > 1 or plan.zips) + 1 / 2 + 1 / 8
    shared = config.warpgroups > 1 or config.cluster_size > 1
    copies = plan.slab_in[0] + (0 if config.resident else plan.slab_weights[0])
    chunk = _OF_STEP + _OF_COPY * copies + _OF_MEETING * shared
    sent = plan.rows * plan.features * plan.blocks // math.prod(plan.slab_out)
    tile = (
        _OF_STEP + _OF_COPY * sent * plan.slab_out[0] + _OF_RESIDENT * config.resident
    )
    return loads + split + sums + 4 * config.warpgroups * (plan.chunks * chunk + tile)


def _visits(plan: Tiling) -> int:
    """How often CTAs fetch the resident weights of a group of blocks, all together."""
    # Each takes a run of items and fetches at each new group.
    return min(plan.items, plan.groups + plan.ctas)


def _visit_bytes(plan: Tiling) -> float:
    """Bytes of L2 that are read for the resident weights of a group of blocks."""
    factor, item = plan.factor, plan.item_in
    if plan.arrival == "arranged":
        nearby = arrangement.run_bytes(factor.d, item)
        return factor.b * factor.c * nearby
    return plan.weight_stages * plan.weight_bytes


def _waits(plan: Tiling) -> int:
    """Round trips until resident weights of a group of blocks are there."""
    if plan.arrival != "arranged":
        return 1
    weights = plan.factor.b * plan.factor.c
    return arrangement.rounds(weights, plan.config.warpgroups)


def predicted_seconds(
    shape: Sequence[int],
    config: Config,
    *,
    axis: Literal[0, -1],
    dtype: jax.typing.DTypeLike,
    batch: int,
    chip: Chip,
    precision: jax.lax.PrecisionLike = None,
) -> float:
    """What applying a factor should take with a configuration.

    Args:
      shape: the pattern (a, b, c, d).
      config: the configuration.
      axis: the feature axis of x.
      dtype: of x, the factor and y.
      batch: vectors in x.
      chip: that it runs on.
      precision: as `factor` takes it.

    Raises:
      NotImplementedError: if the configuration does not fit; the message says why.
    """
    itemsize = jnp.dtype(dtype).itemsize
    plan = tiling(
        shape,
        config,
        batch=batch,
        feature_first=axis == 0,
        item_in=itemsize,
        item_out=itemsize,
        pieces=pieces.count(dtype, precision),
    )
    return seconds(plan, chip)
