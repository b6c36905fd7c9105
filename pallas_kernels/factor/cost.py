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

# Warp instructions for each mma.sync, itself included, as SASS of compiled kernels has
# them; of blocks that lie zipped, loads are parted in registers.
_INSTRUCTIONS = 3.75
_INSTRUCTIONS_ZIPPED = 10.0
_INSTRUCTIONS_PER_SUM = 4 / 32  # Of the epilogue.


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
    wavefronts = tiles * _wavefronts(plan)
    mmas = 0.0 if config.wgmma else tensor / (2 * 16 * 8 * 16)
    instructions = mmas * (_INSTRUCTIONS_ZIPPED if plan.zips else _INSTRUCTIONS)
    instructions += _INSTRUCTIONS_PER_SUM * y / plan.item_out
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
        wavefronts=wavefronts,
        instructions=instructions,
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


def _wavefronts(plan: Tiling) -> float:
    """Wavefronts of shared memory for a tile."""
    config = plan.config
    rows, features, blocks = config.rows, config.features, plan.blocks
    depth = plan.chunks * config.depth
    x = rows * depth * blocks * plan.item_in
    y = rows * features * blocks * plan.item_out
    weights = features * depth * blocks * plan.item_in
    # Warps that share rows of the product each load all of the other operand. wgmma
    # reads 64 rows at a time and the other operand for them all.
    vertical, horizontal = config.m_warps, 4 // config.m_warps
    if config.wgmma:
        by_row, by_feature = config.split_features, rows // WGMMA_ROWS
    elif plan.way == "flat":
        by_row = horizontal * config.split_features
        by_feature = vertical * config.split_rows
    else:
        by_row = vertical * config.split_features
        by_feature = horizontal * config.split_rows
    # Operands are loaded as they were fetched, float32 at half the speed, but for x in
    # the turned buffer, which holds pieces.
    conflicts = plan.item_in // 2
    x_operand = x * conflicts
    passed = by_feature * weights * conflicts + y
    if plan.way == "turned":
        x_operand = x // plan.item_in * 2 * plan.pieces
        passed += x + x_operand
    return (by_row * x_operand + passed) / LINE


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
