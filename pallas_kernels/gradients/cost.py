"""What the gradients of a factor ask of a chip, and take."""

import math

from pallas_kernels.common.chip import LINE, Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.gradients.plan import PANEL, Plan

_PRODUCT_WAVEFRONTS = 2 * PANEL * PANEL * 2 // LINE  # wgmma reads both of its operands.
_PANEL_WAVEFRONTS = PANEL * PANEL * 2 // LINE
# Warp instructions of a step, and of a panel of dx, by SASS of compiled kernels.
_STEP_INSTRUCTIONS = 4 * 120
_PANEL_INSTRUCTIONS = 4 * 60
# A step's products, rounding and stores follow one another, in round trips to memory.
_STEP_TRIPS = 0.3


def seconds(plan: Plan, chip: Chip) -> float:
    """What the launch, and the addition of its sums, should take."""
    sums = _sums_bytes(plan)
    return chip.seconds(usage(plan)) + chip.moved_seconds(sums + 4 * _weights(plan))


def usage(plan: Plan) -> Usage:
    """What the launch asks for; a tile is a panel of vectors of a unit."""
    a, b, c, d = plan.shape
    of_dy, of_x = plan.panels
    steps = plan.units * plan.steps
    moved = 2 * plan.batch * a * d * (b + 2 * c)
    products = 2 * of_dy * of_x
    wavefronts = products * _PRODUCT_WAVEFRONTS + of_x * _PANEL_WAVEFRONTS
    instructions = _STEP_INSTRUCTIONS + of_x * _PANEL_INSTRUCTIONS
    return Usage(
        hbm_bytes=moved + 2 * _weights(plan) + _sums_bytes(plan),
        l2_bytes=moved + _sums_bytes(plan),
        runs=((LINE, moved / LINE),),
        wavefronts=steps * wavefronts,
        instructions=steps * instructions,
        wgmma_flops=2.0 * steps * products * PANEL**3,
        tiles=steps,
        ctas=plan.units * plan.shares,
        trips=max(1 / plan.config.stages, _STEP_TRIPS),
        prologue_bytes=2 * of_dy * of_x * PANEL * PANEL,
    )


def _weights(plan: Plan) -> int:
    return math.prod(plan.shape)


def _sums_bytes(plan: Plan) -> int:
    of_dy, of_x = plan.panels
    return 4 * plan.shares * plan.units * of_dy * of_x * PANEL * PANEL
