"""What a launch of the radix kernel asks of a chip."""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common.chip import LINE, Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.radix import plan as passes
from pallas_kernels.radix.config import Config, plan_for

Types = tuple[jnp.dtype, jnp.dtype]

_INSTRUCTIONS = 3  # For each feature that a pass moves, to convert and to address it.


def predicted_seconds(
    shapes: Sequence[passes.Shape],
    config: Config,
    *,
    axis: Literal[0, -1],
    dtype: jax.typing.DTypeLike,
    batch: int,
    chip: Chip,
) -> float:
    """What applying a chain, or one factor, should take with a configuration.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      config: the configuration.
      axis: the feature axis of x.
      dtype: of x, the factors and y.
      batch: vectors in x.
      chip: that it runs on.

    Raises:
      NotImplementedError: if the configuration does not fit; the message says why.
    """
    types = (jnp.dtype(dtype),) * 2
    plan = plan_for(tuple(shapes), types, config, axis)
    return seconds(plan, types, config, batch, chip)


def seconds(
    plan: passes.Plan, types: Types, config: Config, batch: int, chip: Chip
) -> float:
    """What a launch should take."""
    return chip.seconds(usage(plan, types, config, batch))


def usage(plan: passes.Plan, types: Types, config: Config, batch: int) -> Usage:
    """What a launch asks for.

    Args:
      plan: of a tile of one part of the features.
      types: of x and of the result.
      config: the configuration.
      batch: vectors in x.
    """
    stages, ctas, parts = config.stages, config.teams(batch), config.parts
    first, last = plan.tiles[0], plan.tiles[-1]
    rows = first.rows
    tiles = -(-batch // rows) * parts
    moved = [batch * parts * tile.num_bytes / rows for tile in (first, last)]
    runs = [
        (min(LINE, (rows if tile.rows_last else tile.digits[-1]) * tile.itemsize), size)
        for tile, size in zip((first, last), moved, strict=True)
    ]
    issued, weights = 0, 0
    for step in plan.steps:
        work = step.work
        units = rows * work.a * work.d
        issued += units * (_INSTRUCTIONS * (work.b + work.c) + work.num_weights)
        weights += work.a * work.d * work.num_weights * types[0].itemsize
    # Weights that a CTA does not keep it reads anew for each tile, and waits for.
    streamed = 0 if plan.keeps_weights else weights
    waits = 0 if plan.keeps_weights else sum(math.prod(s.turns[1:]) for s in plan.steps)
    return Usage(
        hbm_bytes=sum(moved) + weights * parts,
        l2_bytes=sum(moved) + tiles * streamed + ctas * parts * weights,
        runs=tuple((run, size / run) for run, size in runs),
        wavefronts=tiles * plan.wavefronts,
        instructions=tiles * issued / 32,
        tiles=tiles,
        ctas=ctas * parts,
        per_multiprocessor=config.occupancy,
        warps=4 * config.warpgroups,
        trips=(1 / (stages - 1) if stages > 1 else 1) + waits,
        meetings=len(plan.steps) + 1,
        prologue_bytes=weights,
        prologue_trips=1,
    )
