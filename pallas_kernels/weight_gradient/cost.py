"""What a weight gradient asks of a chip, and takes."""

import math
from collections.abc import Sequence

from pallas_kernels.common.chip import Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.weight_gradient.plan import Config, Plan, make_plan

# Warp instructions of a step beside loads, packing and mma.sync, by SASS.
_STEP_INSTRUCTIONS = 80
# From its barrier to its end a step takes about 550 clocks, in round trips to memory.
_STEP_TRIPS = 0.2
# Of a copy's rate. XLA's product of three factors with d > 1 took, on an H200, what a
# copy of x and dy takes at 0.19 to 0.2 of its rate.
_XLA_SHARE = 0.2


def predicted_seconds(
    shape: Sequence[int], config: Config, *, batch: int, chip: Chip
) -> float:
    """What a weight gradient should take with a configuration.

    Args:
      shape: the pattern (a, b, c, d).
      config: the configuration.
      batch: vectors in x.
      chip: that it runs on.

    Raises:
      NotImplementedError: if the configuration does not fit; the message says why.
    """
    a, b, c, d = shape
    return seconds(make_plan((a, b, c, d), batch, config), chip)


def seconds(plan: Plan, chip: Chip) -> float:
    """What the launch and the addition of its sums should take."""
    sums = 4 * math.prod(plan.sums_shape)
    # Sums are written when nothing else is left to do: once more than `usage` says.
    added = chip.moved_seconds(sums + 4 * math.prod(plan.shape))
    return chip.seconds(usage(plan)) + sums / chip.hbm + added


def xla_seconds(plan: Plan, chip: Chip) -> float:
    """What XLA's product should take."""
    return chip.moved_seconds(_read_once(plan), _XLA_SHARE)


def usage(plan: Plan) -> Usage:
    """What the launch asks for; a tile is a step of a CTA."""
    config = plan.config
    a, b, c, d = plan.shape
    _, _, again_x, again_dy = plan.clusters
    per_share = math.prod(plan.clusters) * math.prod(config.cluster)
    steps = per_share * plan.steps
    # Of a step: rows that a warp loads, in 16 bytes a lane, and products.
    warps = 4 * math.prod(plan.warpgroups)
    loads = 8 * plan.groups * (plan.held + 1)
    mmas = 16 * plan.groups * plan.held
    instructions = 5 * loads + mmas + _STEP_INSTRUCTIONS  # Each load is packed by four.
    sums = 4 * math.prod(plan.sums_shape)
    fetched = 2 * plan.batch * a * d * (b * again_dy + c * again_x)
    run = 2 * plan.row
    return Usage(
        hbm_bytes=_read_once(plan) + sums,
        l2_bytes=fetched + sums,
        runs=((run, fetched / run),),
        wavefronts=4 * loads * warps * steps,
        instructions=instructions * warps * steps,
        mmas=mmas * warps * steps,
        tiles=steps,
        ctas=per_share * config.shares,
        cluster=math.prod(config.cluster),
        # A stage is fetched anew when the next step begins.
        trips=max(1 / max(1, config.stages - 1), _STEP_TRIPS),
    )


def _read_once(plan: Plan) -> int:
    a, b, c, d = plan.shape
    return 2 * plan.batch * a * d * (b + c)
