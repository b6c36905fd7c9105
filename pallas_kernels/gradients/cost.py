"""What the gradients of a factor ask of a chip, and take."""

import math
from collections.abc import Sequence
from typing import Literal

from pallas_kernels.common.chip import LINE, Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.gradients.plan import PANEL, Config, Plan, plan

_PRODUCT_WAVEFRONTS = 2 * PANEL * PANEL * 2 // LINE  # wgmma reads both of its operands.
_PANEL_WAVEFRONTS = PANEL * PANEL * 2 // LINE
# Warp instructions of a step, and of a panel of dx, by SASS of compiled kernels.
_STEP_INSTRUCTIONS = 4 * 120
_PANEL_INSTRUCTIONS = 4 * 60
# A step's products, rounding and stores follow one another, in round trips to memory.
_STEP_TRIPS = 0.3


def predicted_seconds(
    shape: Sequence[int],
    config: Config,
    *,
    axis: Literal[0, -1],
    batch: int,
    chip: Chip,
) -> float:
    """What the launch, and the addition of its sums, should take.

    Args:
      shape: the pattern (a, b, c, d).
      config: the configuration.
      axis: the feature axis of x.
      batch: vectors in x.
      chip: that it runs on.

    Raises:
      NotImplementedError: if the configuration does not fit; the message says why.
    """
    found = plan(shape, batch, feature_first=axis == 0, config=config)
    added = _sums_bytes(found) + 4 * _weights(found)
    return chip.seconds(usage(found)) + chip.moved_seconds(added)


def usage(found: Plan) -> Usage:
    """What the launch asks for; a tile is a panel of vectors of a unit."""
    a, b, c, d = found.shape
    of_dy, of_x = found.panels
    steps = found.units * found.steps
    moved = 2 * found.batch * a * d * (b + 2 * c)
    products = 2 * of_dy * of_x
    wavefronts = products * _PRODUCT_WAVEFRONTS + of_x * _PANEL_WAVEFRONTS
    instructions = _STEP_INSTRUCTIONS + of_x * _PANEL_INSTRUCTIONS
    return Usage(
        hbm_bytes=moved + 2 * _weights(found) + _sums_bytes(found),
        l2_bytes=moved + _sums_bytes(found),
        runs=((LINE, moved / LINE),),
        wavefronts=steps * wavefronts,
        instructions=steps * instructions,
        wgmma_flops=2.0 * steps * products * PANEL**3,
        tiles=steps,
        ctas=found.units * found.shares,
        trips=max(1 / found.config.stages, _STEP_TRIPS),
        prologue_bytes=2 * of_dy * of_x * PANEL * PANEL,
    )


def _weights(found: Plan) -> int:
    return math.prod(found.shape)


def _sums_bytes(found: Plan) -> int:
    of_dy, of_x = found.panels
    return 4 * found.shares * found.units * of_dy * of_x * PANEL * PANEL
