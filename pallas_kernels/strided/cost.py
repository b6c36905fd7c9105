"""What a launch of `strided` asks of a chip, and takes."""

from collections.abc import Sequence

from pallas_kernels.common.chip import LINE, Chip
from pallas_kernels.common.usage import Usage
from pallas_kernels.strided.plan import GROUP, TILE, WARPS, Config, Plan, plan

# Warp instructions, by SASS of compiled kernels: of a tile; of a step, 16 inputs of 8
# neighbours, loaded and parted; of 16 outputs of theirs, packed and stored.
_TILE_INSTRUCTIONS = 50
_STEP_INSTRUCTIONS = 20
_OUTPUT_INSTRUCTIONS = 22


def predicted_seconds(
    shape: Sequence[int], config: Config, *, batch: int, chip: Chip
) -> float:
    """What applying a factor should take with a configuration.

    Args:
      shape: the pattern (a, b, c, d).
      config: the configuration.
      batch: vectors in x.
      chip: that it runs on.

    Raises:
      NotImplementedError: if the configuration does not fit; the message says why.
    """
    return chip.seconds(usage(plan(shape, batch, config)))


def usage(found: Plan) -> Usage:
    """What the launch asks for."""
    a, b, c, d = found.shape
    config = found.config
    # Of all CTAs: of a cluster each takes the tile, for outputs of its own.
    ctas = found.walkers * found.abreast * config.cluster
    tiles = found.tiles * found.groups * found.abreast * config.cluster
    x, y = (2 * found.batch * a * size * d for size in (c, b))
    weights = 2 * a * b * c * d
    mmas = found.width * found.tiles_of_warp * found.steps
    instructions = (
        mmas
        + _TILE_INSTRUCTIONS
        + _STEP_INSTRUCTIONS * found.steps * found.loads
        + _OUTPUT_INSTRUCTIONS * found.tiles_of_warp
    )
    # A warp loads what its neighbours have of GROUP vectors, and stores its outputs: 16
    # bytes at a time, or 8 in half of the banks.
    loaded = 2 * GROUP * 8 * TILE * found.steps * found.loads
    stored = 2 * GROUP * 8 * TILE * found.tiles_of_warp
    warps = tiles * WARPS  # Those that are left over do what another one does.
    run = min(2 * found.line, LINE)
    # Groups of blocks whose weights a CTA takes, one after the other.
    visits = -(-found.groups // found.walkers)
    of_cta = weights / (a * d) * config.neighbours / config.cluster
    return Usage(
        hbm_bytes=x + y + weights,
        l2_bytes=x + y + ctas * of_cta,
        # Of a cluster each CTA fetches a part of x, and all receive it.
        runs=((run, (x * config.cluster + y) / run),),
        wavefronts=warps * (loaded + stored) / LINE,
        instructions=float(warps * instructions),
        mmas=float(warps * mmas),
        tiles=tiles,
        ctas=ctas,
        cluster=config.cluster,
        trips=1 / config.stages,
        meetings=2.0 * (4 if config.cluster > 1 else 1),
        prologue_bytes=visits * of_cta,
        prologue_trips=float(visits),
    )
