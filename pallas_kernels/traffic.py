"""What a launch of the chain kernel moves, and how long that should take.

Bytes are counted from the plan; whether device memory, the L2 cache, shared memory, the
network between multiprocessors or waiting binds the kernel follows from the chip's
rates. Nothing here is measured.
"""

import dataclasses
import math

from pallas_kernels import arrangement, pieces
from pallas_kernels.chain_plan import OPERAND_BYTES, Plan
from pallas_kernels.chips import H200, SECTOR, Chip
from pallas_kernels.tiles import Mma


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes for each vector of the batch, in a full tile, over all CTAs of a cluster.

    Beside these what is done once, before the first tile.

    Attributes:
      hbm: x, read once, and y, written once.
      l2: these, and the weights that every tile fetches anew.
      shared: all that is written to shared memory or read from it.
      peers: of these, read from another CTA's.
      ordered: moved by XLA, for each factor whose weights it puts in order.
      kept: read from L2 by each CTA, for weights that stay in shared memory.
      arranged: weights, not bytes, that each CTA brings into order itself.
    """

    hbm: float
    l2: float
    shared: float
    peers: float = 0.0
    ordered: tuple[int, ...] = ()
    kept: int = 0
    arranged: int = 0


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
    last, first = plan.whole[0], plan.whole[-1]
    n_in, n_out = first.a * first.c * first.d, last.a * last.b * last.d
    hbm = types.x_bytes * n_in + types.y_bytes * n_out
    fetched = sum(
        step.units * step.weights * OPERAND_BYTES
        for step in plan.steps
        if not step.resident
    )
    shared = fetched / rows
    l2 = peers = 0.0
    for step in plan.steps:
        source = 0 if step.source is None else plan.buffers[step.source].pieces
        target = 0 if step.target is None else plan.buffers[step.target].pieces
        if step.kind == "load":
            features = step.units * step.slab_in
            shared += features * (types.x_bytes + OPERAND_BYTES * target)
        elif step.kind == "store":
            features = step.units * step.slab_out
            shared += features * (types.y_bytes + OPERAND_BYTES * source)
        elif step.kind == "exchange":
            assert step.source is not None
            layout = plan.buffers[step.source]
            features = layout.outer * layout.middle * layout.inner
            moved = OPERAND_BYTES * features * source
            shared += 2 * moved
            peers += moved * (plan.cluster - 1) / plan.cluster
        else:
            columns = step.units * plan.factors[step.factor].c
            made = step.units * step.num_rows
            shared += OPERAND_BYTES * columns * types.pieces * (4 // mma.m_warps)
            per_piece = step.units * step.weights / types.pieces * OPERAND_BYTES
            repeats = len(pieces.products(types.pieces)) * mma.m_warps
            shared += per_piece * repeats / rows
            shared += made * (OPERAND_BYTES * target or types.y_bytes)
        for features, size in (
            (step.slab_in, types.x_bytes),
            (step.slab_out, types.y_bytes),
        ):
            num_bytes: float = step.units * features * size
            if step.run and plan.cluster > 1:  # Runs are spread over whole sectors.
                num_bytes *= math.ceil(step.run * size / SECTOR)
                num_bytes *= SECTOR / (step.run * size)
            l2 += num_bytes
    size = plan.cluster
    kept, arranged = _kept(plan)
    return Traffic(
        hbm=hbm,
        l2=size * (l2 + fetched / rows),
        shared=hbm + size * shared,
        peers=size * peers,
        ordered=tuple(
            _ordered(plan, index)
            for index in range(len(plan.factors))
            if plan.arrival(index) == "ordered"
        ),
        kept=kept,
        arranged=arranged,
    )


def _ordered(plan: Plan, index: int) -> int:
    """Bytes that XLA moves to put the weights of the factor of that index in order."""
    types, factor = plan.types, plan.whole[index]
    given = factor.num_weights // (factor.merged_a * factor.merged_d)
    made = OPERAND_BYTES * types.pieces * factor.num_weights
    return types.x_bytes * given + made


def _kept(plan: Plan) -> tuple[int, int]:
    """Of resident weights, bytes that a CTA reads, and how many it arranges."""
    types, num_bytes, arranged = plan.types, 0, 0
    for step in plan.steps:
        if not step.resident:
            continue
        if plan.arrival(step.factor) != "arranged":
            num_bytes += OPERAND_BYTES * step.units * step.weights
            continue
        weights, run = step.units * step.weights // types.pieces, plan.neighbours(step)
        d = plan.whole[step.factor].d
        num_bytes += weights // run * arrangement.run_bytes(run, d, types.x_bytes)
        arranged += weights
    return num_bytes, arranged


_OTHER_REGISTERS = 32  # For addresses and counters.


def registers(plan: Plan, *, rows: int, mma: Mma, warpgroups: int) -> int:
    """Registers that a thread needs, roughly, for what its warpgroup has at a time."""
    most = 0
    for step in plan.steps:
        if step.kind == "multiply":
            factor = plan.factors[step.factor]
            columns = factor.c * plan.types.pieces
            sums = rows * step.num_rows
            x = rows * columns * (4 // mma.m_warps) // 2
            weights = step.num_rows * plan.depth * mma.m_warps // 2
            most = max(most, (sums + x + weights) // 128)
            if step.resident and plan.arrival(step.factor) == "arranged":
                held = plan.units(step, warpgroups).held
                most = max(most, held * plan.types.x_bytes // 4)
        elif step.kind == "exchange":
            assert plan.shares is not None
            numbers = math.prod(plan.shares.tile) * rows * step.units // warpgroups
            most = max(most, numbers // (2 * 128))
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
    moved: Traffic | None = None,
    chip: Chip = H200,
) -> float:
    """How long a launch should take on a chip; infinite where registers run out.

    The slowest of: HBM, L2, shared memory, what CTAs read of one another's, waiting for
    what is fetched, and the latency of a warpgroup's instructions. To that comes what
    is lost where warpgroups meet, unless another CTA computes meanwhile, and the time
    in which XLA puts weights in order, and those that stay are fetched or arranged.

    Args:
      plan: of the chain.
      batch: vectors in x.
      rows: vectors in a tile.
      mma: the tile of one mma.
      warpgroups: of a CTA.
      stages: units under way, per warpgroup.
      smem_bytes: shared memory of a CTA.
      moved: what `count` found, None to count.
      chip: the device.
    """
    together = resident_ctas(
        plan,
        rows=rows,
        mma=mma,
        warpgroups=warpgroups,
        smem_bytes=smem_bytes,
        chip=chip,
    )
    if not together:
        return math.inf
    at_once = chip.clusters(plan.cluster) * together
    moved = moved or count(plan, rows=rows, mma=mma)
    per_vector = least_seconds(plan, moved, chip=chip)
    turns = sum(-(-step.units // warpgroups) for step in plan.steps)
    # `stages` products are fetched ahead, and as many arrive in the time of one fetch.
    products = sum(
        -(-step.units // warpgroups)
        for step in plan.steps
        if step.kind == "multiply" and not step.resident
    )
    late = max(0, products - stages) / stages
    meetings = (len(plan.steps) - 1) * chip.meet_seconds
    if plan.shares is not None:  # All meet before and amid the exchange.
        meetings += 2 * chip.cluster_meet_seconds - chip.meet_seconds
    rate, late_seconds = rows * per_vector * at_once, late * chip.copy_seconds
    if together == 1:
        per_tile = max(rate, late_seconds, turns * chip.unit_seconds) + meetings
    else:
        hidden = meetings if plan.cluster > 1 else 0.0
        per_tile = max(rate, late_seconds, turns * chip.unit_seconds + hidden)
    tiles = math.ceil(batch / rows)
    kept = moved.kept * min(at_once, tiles) * plan.cluster
    waits = arrangement.rounds(moved.arranged, warpgroups)
    return (
        sum(map(chip.reordering_seconds, moved.ordered))
        + kept / chip.l2
        + waits * chip.load_seconds
        + math.ceil(tiles / at_once) * per_tile
    )


def least_seconds(plan: Plan, moved: Traffic, *, chip: Chip = H200) -> float:
    """How long a vector takes, in a large batch, by what is moved alone."""
    busy = chip.clusters(plan.cluster) * plan.cluster / chip.multiprocessors
    return max(
        moved.hbm / chip.hbm,
        moved.l2 / chip.l2,
        moved.shared / (chip.shared * busy),
        moved.peers / (chip.peers * busy),
    )


def resident_ctas(
    plan: Plan,
    *,
    rows: int,
    mma: Mma,
    warpgroups: int,
    smem_bytes: int,
    chip: Chip = H200,
) -> int:
    """CTAs that a multiprocessor has room for: 0, 1 or 2; arguments as in `seconds`."""
    needed = registers(plan, rows=rows, mma=mma, warpgroups=warpgroups)
    of_all = needed * 128 * warpgroups
    if of_all > chip.registers or needed > 255:
        return 0
    return 2 if chip.has_room_for_two(smem_bytes, of_all) else 1
