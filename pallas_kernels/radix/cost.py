"""What a launch of the radix kernel asks of a chip."""

import math

import jax.numpy as jnp

from pallas_kernels.common.chip import LINE
from pallas_kernels.common.usage import Usage
from pallas_kernels.radix import plan as passes

_INSTRUCTIONS = 3  # For each feature that a pass moves, to convert and to address it.


def usage(
    plan: passes.Plan,
    *,
    types: tuple[jnp.dtype, jnp.dtype],
    batch: int,
    stages: int,
    ctas: int,
    parts: int,
    per_multiprocessor: int,
) -> Usage:
    """What the launch asks for.

    Args:
      plan: of a tile of one part of the features.
      types: of x and of the result.
      batch: vectors in x.
      stages: tiles of x in shared memory.
      ctas: that share the tiles of a part.
      parts: of the features.
      per_multiprocessor: CTAs that a multiprocessor has room for.
    """
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
        per_multiprocessor=per_multiprocessor,
        trips=(1 / (stages - 1) if stages > 1 else 1) + waits,
        meetings=len(plan.steps) + 1,
        prologue_bytes=weights,
        prologue_trips=1,
    )
