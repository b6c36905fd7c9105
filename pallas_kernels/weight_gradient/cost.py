"""What a weight gradient takes, in bytes of device memory that take as long.

The rates are an H200's, as ratios. Copies with runs of 16, 32, 64 and 128 bytes moved
1.4, 2.7, 3.1 and 3.4 TB/s; clusters of 1, 2 and 4 that run at once, with one CTA a
multiprocessor, are 132, 66 and 30.
"""

import math

from pallas_kernels.common.zipped_products import DEPTH, TILE
from pallas_kernels.weight_gradient.plan import Plan

_RESIDENT = {1: 132, 2: 66, 4: 30}  # By the CTAs of a cluster.
_RUNS = {16: 3.4 / 1.4, 32: 3.4 / 2.7, 64: 3.4 / 3.1, 128: 1.0}
_L2 = 1.3  # How much faster than device memory.
_MMA = 33  # Bytes that memory moves meanwhile, with 7 instructions for each mma.sync.
_SMEM = 0.15  # Likewise, for a byte of shared memory.
_STEP = 1.4e6  # Likewise, for what a step takes from its barrier to its end at least.
_BUSY = 0.9  # Of the multiprocessors, keep memory busy.
_ALONE = 2  # Partial sums are written when there is nothing else to do, and then read.


def resident(plan: Plan) -> int:
    """Clusters that run at once."""
    return _RESIDENT[math.prod(plan.config.cluster)]


def floor(plan: Plan) -> float:
    """Bytes of x and dy, each read once."""
    a, b, c, d = plan.shape
    return 2.0 * plan.batch * a * d * (b + c)


def total(plan: Plan) -> float:
    """Bytes that device memory would move in the time that the launch takes."""
    a, b, c, d = plan.shape
    config = plan.config
    _, _, again_x, again_dy = plan.clusters
    moved = 2.0 * plan.batch * a * d * (b * again_dy + c * again_x)
    ctas = math.prod(plan.clusters) * math.prod(config.cluster)
    vectors = plan.steps * plan.depth
    # Of every vector, in each CTA: what TMA writes, and what all warps load.
    by_outputs, by_inputs = config.outputs // TILE, config.inputs // TILE
    loads = config.outputs * by_inputs + config.inputs * by_outputs / plan.held
    touched = config.outputs + config.inputs + loads
    smem = 2.0 * vectors * ctas * config.neighbours * touched
    tiles = by_outputs * by_inputs * config.neighbours * ctas
    mmas = 2.0 * vectors / DEPTH * tiles
    run = 1.0 if plan.has_whole_lines else _RUNS[2 * config.neighbours]
    # TMA's time and threads' count for multiprocessors, and the busiest has most.
    busiest = max(moved * run, mmas * _MMA, smem * _SMEM) / min(1, _share(plan) / _BUSY)
    sums = 4.0 * math.prod(plan.sums_shape)
    waits = _waves(plan) * math.ceil(plan.steps / config.shares) * _STEP
    return max(floor(plan), moved / _L2, busiest, waits) + _ALONE * sums


def _waves(plan: Plan) -> int:
    return math.ceil(math.prod(plan.clusters) * plan.config.shares / resident(plan))


def _share(plan: Plan) -> float:
    """Of the multiprocessors' time, that is used."""
    size = math.prod(plan.config.cluster)
    clusters = math.prod(plan.clusters) * plan.config.shares
    steps = plan.steps / plan.config.shares / math.ceil(plan.steps / plan.config.shares)
    return clusters * size / (_waves(plan) * _RESIDENT[1]) * steps
