"""What a launch of `fused` asks of a chip, and takes."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments
from pallas_kernels.common.chip import LINE, Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.fused.config import Config
from pallas_kernels.fused.plan import Plan, plan

# Warp instructions of an mma.sync, itself included, by SASS of compiled kernels.
_INSTRUCTIONS = {-1: 6.1, 0: 3.4}


def predicted_seconds(
    shapes: Sequence[arguments.Shape],
    config: Config,
    *,
    axis: Literal[0, -1],
    dtype: jax.typing.DTypeLike,
    batch: int,
    chip: Chip,
) -> float:
    """What applying two factors should take with a configuration.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      config: the configuration.
      axis: the feature axis of x.
      dtype: of x, the factors and y.
      batch: vectors in x.
      chip: that it runs on.

    Raises:
      NotImplementedError: if the kernel does not take the case; the message says why.
    """
    found = plan(tuple(shapes), jnp.dtype(dtype), None, axis)
    return chip.seconds(usage(found, config, batch))


def usage(found: Plan, config: Config, batch: int) -> Usage:
    """What the launch asks for; a tile is what a team of warpgroups takes."""
    tiles = -(-batch // config.rows)
    x, y = 2 * batch * found.n_in, 2 * batch * found.n_out
    weights = 2 * sum(found.weights)
    mmas = tiles * config.rows * sum(found.weights) / (16 * 8 * 16)
    # x once; h stored, and loaded by each warp that has some of its outputs.
    h = 2 * tiles * config.rows * found.blocks * found.middle
    if found.axis == -1:
        readers = found.warps_outputs * found.warpgroups
        through = x + h * (1 + readers) + y
    else:
        through = x + h * (1 + found.groups_outputs)
    # Features last y leaves by TMA, too; features first warps store it.
    run = 2 * (found.width if found.axis == -1 else config.rows)
    by_tma = x + (y if found.axis == -1 else 0)
    return Usage(
        hbm_bytes=x + y + weights,
        l2_bytes=x + y + config.ctas * weights,
        runs=((run, by_tma / run),),
        lines=(x + y - by_tma) / (2 * found.rows),
        wavefronts=through / LINE,
        instructions=mmas * _INSTRUCTIONS[found.axis],
        mmas=mmas,
        tiles=-(-tiles // found.teams),
        ctas=config.ctas,
        trips=1 / max(1, config.stages - 1),
        meetings=1.0 if found.axis == -1 else 2.0 * config.rows / found.rows,
        prologue_bytes=weights,
        prologue_trips=1.0 if found.axis == -1 else 2.0,
    )
