"""What a launch of the chain kernel moves, and how long that should take.

Bytes are counted from the plan; whether device memory, the L2 cache, shared memory or
waiting binds the kernel follows from the chip's rates. Nothing here is measured.
"""

import dataclasses
import math

from pallas_kernels import pieces
from pallas_kernels.chain_plan import OPERAND_BYTES, Plan
from pallas_kernels.chips import H200, Chip
from pallas_kernels.tiles import Mma


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes for each vector of the batch, in a full tile.

    Attributes:
      hbm: x, read once, and y, written once.
      l2: these, and the weights, which every tile fetches anew.
      shared: all that is written to shared memory or read from it.
    """

    hbm: float
    l2: float
    shared: float


def count(plan: Plan, *, rows: int, mma: Mma) -> Traffic:
    """Counts the bytes of a chain.

    A warp loads the rows of x and the weights that its own products need: with m_warps
    warps along the batch, weights are read m_warps times and x 4 / m_warps times.

    Args:
      plan: of the chain.
      rows: vectors in a tile.
      mma: the tile of one mma.
    """
    types = plan.types
    last, first = plan.factors[0], plan.factors[-1]
    n_in, n_out = first.a * first.c * first.d, last.a * last.b * last.d
    hbm = types.x_bytes * n_in + types.y_bytes * n_out
    weights = sum(step.units * step.weights for step in plan.steps) * OPERAND_BYTES
    shared = float(hbm)  # Between HBM and the slabs, by TMA.
    shared += weights / rows
    for step in plan.steps:
        source = 0 if step.source is None else plan.buffers[step.source].pieces
        target = 0 if step.target is None else plan.buffers[step.target].pieces
        if step.kind == "load":
            shared += n_in * (types.x_bytes + OPERAND_BYTES * target)
        elif step.kind == "store":
            features = step.units * step.slab_out
            shared += features * (types.y_bytes + OPERAND_BYTES * source)
        else:
            columns = step.units * plan.factors[step.factor].c
            made = step.units * step.num_rows
            shared += OPERAND_BYTES * columns * types.pieces * (4 // mma.m_warps)
            per_piece = step.units * step.weights / types.pieces * OPERAND_BYTES
            repeats = len(pieces.products(types.pieces)) * mma.m_warps
            shared += per_piece * repeats / rows
            shared += made * (OPERAND_BYTES * target or types.y_bytes)
    return Traffic(hbm=hbm, l2=hbm + weights / rows, shared=shared)


# Seconds, assumed: from the start of a copy to its end; and what a warpgroup needs for
# the instructions of one unit.
_FETCH = 0.8e-6
_UNIT = 0.2e-6
_OTHER_REGISTERS = 32  # For addresses and counters.


def registers(plan: Plan, *, rows: int, mma: Mma) -> int:
    """Registers that a thread needs, roughly, for the operands and sums of a block."""
    most = 0
    for step in plan.steps:
        if step.kind == "multiply":
            factor = plan.factors[step.factor]
            columns = factor.c * plan.types.pieces
            sums = rows * step.num_rows
            x = rows * columns * (4 // mma.m_warps) // 2
            weights = step.num_rows * plan.depth * mma.m_warps // 2
            most = max(most, (sums + x + weights) // 128)
        else:
            most = max(most, rows * max(step.slab_in, step.slab_out) // 128)
    return most + _OTHER_REGISTERS


def seconds(
    plan: Plan,
    *,
    batch: int,
    rows: int,
    mma: Mma,
    warpgroups: int,
    stages: int,
    smem_bytes: int,
    chip: Chip = H200,
) -> float:
    """How long a launch should take on a chip; infinite where registers run out.

    The slowest of: HBM, L2, shared memory, waiting for what is fetched, and the latency
    of a warpgroup's instructions. To that comes what is lost where warpgroups meet,
    unless another CTA computes meanwhile.

    Args:
      plan: of the chain.
      batch: vectors in x.
      rows: vectors in a tile.
      mma: the tile of one mma.
      warpgroups: of a CTA.
      stages: units under way, per warpgroup.
      smem_bytes: shared memory of a CTA.
      chip: the device.
    """
    together = 2 if 2 * (smem_bytes + chip.cta_bytes) <= chip.smem_bytes else 1
    needed = registers(plan, rows=rows, mma=mma)
    if needed * 128 * warpgroups > chip.registers or needed > 255:
        return math.inf
    if together * needed * 128 * warpgroups > chip.registers:
        together = 1
    bytes_of = count(plan, rows=rows, mma=mma)
    per_vector = max(
        bytes_of.hbm / chip.hbm,
        bytes_of.l2 / chip.l2,
        bytes_of.shared / chip.shared,
    )
    turns = [-(-step.units // warpgroups) for step in plan.steps]
    # `stages` products are fetched ahead, and as many arrive in the time of one fetch.
    products = sum(
        turn
        for turn, step in zip(turns, plan.steps, strict=True)
        if step.kind == "multiply"
    )
    late = max(0, products - stages) / stages
    per_tile = max(
        rows * per_vector * chip.multiprocessors * together,
        late * _FETCH,
        sum(turns) * _UNIT,
    )
    if together == 1:
        per_tile += (len(plan.steps) - 1) * chip.meet_seconds
    at_once = chip.multiprocessors * together
    return math.ceil(math.ceil(batch / rows) / at_once) * per_tile
