"""Which configuration of the one-factor kernel is predicted to be the fastest.

A model of what each part of an H200 would take by itself, from bytes and products
counted in shapes. It decides as long as nothing is measured.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from pallas_kernels.common import tiles
from pallas_kernels.common.chips import H200, SECTOR
from pallas_kernels.factor import arrangement
from pallas_kernels.factor.plan import (
    WGMMA_ROWS,
    Config,
    Tiling,
    Way,
    embed,
    misfit,
    neighbours,
    way_of,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a tiling asks of each part of a chip, in seconds if nothing else waited.

    Attributes:
      hbm: x and y, once.
      l2: x once per tile of outputs, and weights once per item.
      smem: every pass over shared memory.
      mma: products of padded blocks by the tensor cores.
    """

    hbm: float
    l2: float
    smem: float
    mma: float

    @property
    def bound(self) -> float:
        """Seconds that the busiest part takes."""
        return max(self.hbm, self.l2, self.smem, self.mma)


# mma.sync is taken to reach this share of wgmma's rate.
_MMA_SHARE = 0.6


def load(plan: Tiling) -> Load:
    """Predicts what binds; nothing here has been timed."""
    config, factor = plan.config, plan.factor
    rows, features, blocks = config.rows, config.features, config.blocks
    depth = plan.chunks * config.depth
    products = plan.pieces * (plan.pieces + 1) // 2
    x = rows * depth * blocks * plan.item_in
    y = rows * features * blocks * plan.item_out
    weights = features * depth * blocks * plan.item_in
    # Warps that share rows of the product each load all of the other operand. wgmma
    # reads 64 rows at a time and the other operand for them all.
    vertical, horizontal = config.m_warps, 4 // config.m_warps
    if config.wgmma:
        by_row, by_feature = config.split_features, rows // WGMMA_ROWS
    elif plan.way == "flat":
        by_row = horizontal * config.split_features
        by_feature = vertical * config.split_rows
    else:
        by_row = vertical * config.split_features
        by_feature = horizontal * config.split_rows
    # Operands are loaded as they were fetched, float32 at half the speed, but for x in
    # the turned buffer, which holds pieces.
    conflicts: float = plan.item_in // 2
    if plan.zips:
        conflicts = _zip_conflicts(plan)
    x_operand: float = x // plan.item_in * 2 * plan.pieces
    if plan.way == "flat":
        x_operand = x * conflicts
    if plan.zips and not plan.zips_features:  # x anew for each tile of outputs.
        by_row *= plan.features // plan.output_unit
    smem = x + weights + by_row * x_operand + by_feature * weights * conflicts + 2 * y
    if plan.way == "turned":
        smem += x + 2 * x // plan.item_in * plan.pieces
    hbm = (
        plan.batch
        * factor.num_blocks
        * (factor.c * plan.item_in + factor.b * plan.item_out)
    )
    fetched: float = weights * _sectors(plan) / config.cluster
    if config.resident:
        fetched = _visits(plan) * _visit_bytes(plan) / plan.items
    # Rows of a copy that are shorter than a line of the cache are fetched less well.
    row = plan.slab_in[-1] * plan.item_in
    narrow = next((rate for size, rate in _NARROW if row <= size), 1.0)
    # A last round with fewer items than CTAs takes as long as the others.
    rounds = -(-plan.items // plan.clusters) * plan.ctas
    mma = H200.matmul * (1 if config.wgmma else _MMA_SHARE)
    return Load(
        hbm=hbm / H200.hbm,
        l2=rounds * (x * narrow / config.cluster_features + fetched + y) / H200.l2,
        smem=rounds * smem / H200.shared,
        mma=rounds * products * 2 * rows * features * depth * blocks / mma,
    )


def _sectors(plan: Tiling) -> float:
    """Bytes of L2 over those of weights that TMA copies."""
    if not plan.zips or plan.has_whole_runs:
        return 1.0
    run = plan.config.blocks * plan.item_in
    return -(-run // SECTOR) * SECTOR / run


def _zip_conflicts(plan: Tiling) -> float:
    """Clocks of shared memory to load what lies zipped, over those of its bytes.

    A warp's lanes are at neighbouring places, four of each row of a panel.
    """
    pitch = plan.inputs_per_lane * plan.config.blocks * plan.item_in
    size = math.gcd(pitch, 16)
    at_once = min(32, 128 // size)  # Lanes that are served together.
    clocks = 0
    for first, entry in itertools.product(range(0, 32, at_once), range(0, pitch, size)):
        words = set()
        for lane, byte in itertools.product(range(at_once), range(size)):
            address = (first + lane) * pitch + entry + byte
            if plan.zip_swizzle:
                address ^= address // 128 % 8 * 16
            words.add(address // 4)
        clocks += max(collections.Counter(word % 32 for word in words).values())
    return clocks * 128 / (32 * pitch)


def _visits(plan: Tiling) -> int:
    """How often a CTA fetches the resident weights of a group of blocks."""
    # It takes a run of items and fetches at each new group.
    return min(plan.items, plan.groups // plan.config.kept + plan.ctas)


def _visit_bytes(plan: Tiling) -> int:
    """Bytes of L2 that are read for the resident weights of a group of blocks."""
    factor, item = plan.factor, plan.item_in
    if plan.arrival == "arranged":
        nearby = arrangement.run_bytes(plan.kept, factor.d, item)
        return factor.b * factor.c * nearby
    return round(plan.weight_stages * plan.weight_bytes * _sectors(plan))


def preparation(plan: Tiling) -> float:
    """Seconds that it takes to bring weights into order, by XLA or in the kernel."""
    factor = plan.factor
    if plan.arrival == "fetched":
        return 0.0
    if plan.arrival == "ordered":
        given = factor.num_weights // (factor.merged_a * factor.merged_d)
        moved = plan.item_in * (given + factor.num_weights)
        return H200.reordering_seconds(moved)
    # A CTA that waits for its weights does nothing else.
    weights = factor.b * factor.c * plan.kept
    rounds = arrangement.rounds(weights, plan.config.warpgroups)
    visits = _visits(plan)
    return (
        visits * _visit_bytes(plan) / H200.l2
        + visits / plan.ctas * rounds * H200.load_seconds
    )


_M_WARPS: tuple[Literal[1, 2, 4], ...] = (1, 2, 4)
# What a copy of w has to gain: it takes memory, and the prediction is not that exact.
_COPY = 1.15
_NARROW = ((16, 2.0), (32, 1.4), (64, 1.15))  # Bytes of a row, and times its time.
_REGISTERS = {1: 232, 2: 232, 3: 152, 4: 116}  # Per thread, for operands and sums.
_IN_FLIGHT = 32_768  # Bytes of x per multiprocessor that hide HBM's latency.
_MAX_STAGES = 6
_MAX_SUMS = 128  # Registers per thread for sums.
_WEIGHTS_IN_L2 = 16 * 2**20
# CTAs that run at once, by the size of a cluster, which is of one group of 16 or 18
# multiprocessors. One cluster more would run after all others.
_AT_ONCE = {1: H200.multiprocessors, 2: H200.multiprocessors, 4: 128, 8: 128}
Cluster = tuple[Literal[1, 2, 4], Literal[1, 2, 4]]
_CLUSTERS: tuple[Cluster, ...] = (
    (2, 1),
    (4, 1),
    (1, 2),
    (1, 4),
    (2, 2),
    (4, 2),
    (2, 4),
)
_WGMMA_FROM = 128 * 128  # Entries of a block; below, the products take little time.


@functools.cache
def best_config(
    shape: tuple[int, int, int, int],
    *,
    batch: int,
    feature_first: bool,
    item_in: int,
    item_out: int,
    pieces: int,
) -> Config:
    """The configuration with the smallest predicted time among those that fit.

    Arguments are those of `tiling`.

    Raises:
      NotImplementedError: if none fits; the message says why the last one does not.
    """
    factor = embed(
        shape, feature_first=feature_first, item_in=item_in, item_out=item_out
    )
    way = way_of(feature_first=feature_first, item_in=item_in)
    walk = factor.num_weights * item_in > _WEIGHTS_IN_L2
    best: tuple[tuple[float, ...], Config] | None = None
    reason: str | None = None
    blocks = neighbours(factor, item_in, item_out)
    if way != "flat":
        blocks = tuple({1, *blocks})
    drafts = _candidates(factor, way, blocks)
    if (feature_first or factor.d == 1) and item_in == 2:
        drafts = itertools.chain(drafts, _wgmma_candidates(factor))
    for draft in drafts:
        config = dataclasses.replace(draft, batch_first=walk or draft.resident)
        plan = Tiling(
            factor, config, way, batch, feature_first, item_in, item_out, pieces
        )
        if why := misfit(plan):
            reason = why
            continue
        if plan.registers > _REGISTERS[config.warpgroups]:
            continue
        room = (tiles.SMEM_BYTES - plan.smem_bytes) // plan.stage_bytes
        stages = min(config.stages + room, _MAX_STAGES)
        plan = dataclasses.replace(
            plan, config=dataclasses.replace(config, stages=stages)
        )
        ctas = _AT_ONCE[config.cluster_size] * (2 if _fits_twice(plan) else 1)
        plan = dataclasses.replace(
            plan, config=dataclasses.replace(plan.config, ctas=ctas)
        )
        key = _rank(plan)
        if best is None or key < best[0]:
            best = (key, plan.config)
    if best is None:
        raise NotImplementedError(
            f"factor: no configuration fits the pattern {shape}; the last one tried "
            f"because {reason}"
        )
    return best[1]


def _rank(plan: Tiling) -> tuple[float, ...]:
    """Configurations in order: predicted time, then fewer threads and registers."""
    config, needs = plan.config, load(plan)
    per_sm = 2 if _fits_twice(plan) else 1
    in_flight = per_sm * (config.stages - 1) * math.prod(plan.slab_in) * plan.item_in
    waiting = needs.hbm * max(0.0, _IN_FLIGHT / max(in_flight, 1024) - 1)
    if config.resident and plan.way == "flat" and not plan.zips and plan.groups > 1:
        # Block by block, rows of x are read in short and distant stretches.
        waiting += needs.hbm * 32 / (plan.factor.c * plan.item_in)
    # Two warpgroups at least hide one another's waits.
    alone = 2 / min(2, per_sm * config.warpgroups)
    busy = max(needs.hbm, needs.l2, alone * needs.smem, alone * needs.mma)
    # Parts overlap, but never wholly; and warpgroups wait for one another.
    tiles_of_all = plan.items * config.cluster_size
    rounds = -(-tiles_of_all // (H200.multiprocessors * per_sm))
    meetings = 1 if plan.way != "turned" else 5 - config.slots
    if config.cluster_size > 1:
        meetings += 1
    meeting = rounds * (plan.chunks * meetings + 2) * H200.meet_seconds / 2
    overlap = 0.2 * (needs.l2 + needs.smem)
    total = busy + waiting + overlap + meeting + preparation(plan)
    if plan.arrival == "ordered":
        total *= _COPY
    return (total, config.warpgroups, plan.registers)


def _fits_twice(plan: Tiling) -> bool:
    """Whether two CTAs share a multiprocessor."""
    registers = 128 * plan.config.warpgroups * (plan.registers + 24)
    return H200.has_room_for_two(plan.smem_bytes, registers)


def _candidates(
    factor: tiles.Factor, way: Way, blocks: Sequence[int]
) -> Iterator[Config]:
    """A bounded set of configurations to choose from, with so many blocks in a tile."""
    d, feature_first = factor.d, way != "flat"
    b, c = (-(-n // 16) * 16 for n in (factor.b, factor.c))
    depths = {n for n in (16, 32, 64, 96, 128) if n <= c}
    depths |= {c} if c <= 128 else set()
    features = {
        n for n in (16, 32, 48, 64, 96, 128, 192, 256, b) if n <= min(b, tiles.MAX_COPY)
    }
    splits = [(1, 1), (2, 1), (1, 2), (1, 3), (2, 2), (4, 1), (1, 4)]
    turned: tuple[Literal[1, 2], ...] = (1,) if way != "turned" else (2, 1)
    # Resident, and clusters that share weights and x.
    weights: list[tuple[bool, Cluster]] = [(False, (1, 1)), (True, (1, 1))]
    if max(blocks) > 1:
        weights += [(False, cluster) for cluster in _CLUSTERS]
    for rows, feature, depth, group, split, slots, how in itertools.product(
        (64, 128, 256),
        sorted(features),
        sorted(depths),
        blocks,
        splits,
        turned,
        weights,
    ):
        if rows % split[0] or feature % split[1]:
            continue
        if rows * feature * group > 128 * _MAX_SUMS * math.prod(split):
            continue
        resident, (cluster, cluster_features) = how
        if group == 1 and cluster * cluster_features > 1:
            continue
        if cluster_features * feature >= 2 * b:
            continue
        together = {1}
        if resident and feature_first and group == 1:
            together |= {math.gcd(d, 4), math.gcd(d, 16)}
        for m_warps, kept in itertools.product(_M_WARPS, sorted(together)):
            yield Config(
                rows=rows,
                features=feature,
                depth=depth,
                blocks=group,
                split_rows=split[0],
                split_features=split[1],
                m_warps=m_warps,
                stages=1,
                slots=slots,
                resident=resident,
                cluster=cluster,
                cluster_features=cluster_features,
                kept=kept,
            )


def _wgmma_candidates(factor: tiles.Factor) -> Iterator[Config]:
    """The same for wgmma, which reads shared memory less often and loads nothing."""
    if factor.b * factor.c < _WGMMA_FROM:
        return
    units = -(-factor.b // 16) * 16
    features = {
        n for n in (64, 128, 192, 256, units) if n <= min(units, tiles.MAX_COPY)
    }
    splits = [(1, 1), (2, 1), (3, 1), (4, 1), (1, 2), (1, 3)]
    # Resident, ordered, and clusters that share weights and x.
    weights: list[tuple[bool, bool, Cluster]]
    weights = [(False, False, cluster) for cluster in ((1, 1), *_CLUSTERS)]
    weights += [
        (True, ordered, (1, 1)) for ordered in (False, True)[: min(factor.d, 2)]
    ]
    for rows, feature, depth, split, how in itertools.product(
        (64, 128, 192, 256), sorted(features), (64, 128), splits, weights
    ):
        resident, ordered, (cluster, cluster_features) = how
        if cluster_features * feature >= 2 * units:
            continue
        fits = rows * feature <= 128 * _MAX_SUMS * math.prod(split)
        whole = rows % (WGMMA_ROWS * split[0]) == 0 and feature % (16 * split[1]) == 0
        if fits and whole:
            yield Config(
                rows=rows,
                features=feature,
                depth=depth,
                split_rows=split[0],
                split_features=split[1],
                m_warps=4,
                stages=2,
                out_stages=2,
                resident=resident,
                ordered=ordered,
                wgmma=True,
                cluster=cluster,
                cluster_features=cluster_features,
            )
