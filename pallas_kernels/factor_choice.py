"""Which configuration of the one-factor kernel is predicted to be the fastest.

A model of what each part of an H200 would take by itself, from bytes and products
counted in shapes. It decides as long as nothing is measured.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal

from pallas_kernels import arrangement, tiles
from pallas_kernels.chips import H200
from pallas_kernels.factor_tiles import (
    WGMMA_ROWS,
    Config,
    Tiling,
    Way,
    embed,
    misfit,
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
    conflicts = plan.item_in // 2
    x_operand = x // plan.item_in * 2 * plan.pieces
    if plan.way == "flat":
        x_operand = x * conflicts
    smem = x + weights + by_row * x_operand + by_feature * weights * conflicts + 2 * y
    if plan.way == "turned":
        smem += x + 2 * x // plan.item_in * plan.pieces
    if plan.transposes:
        smem += 4 * y // plan.item_out * plan.pieces_out
    hbm = (
        plan.batch
        * factor.num_blocks
        * (factor.c * plan.item_in + factor.b * plan.item_out)
    )
    fetched: float = weights / config.cluster
    if config.resident:
        fetched = _visits(plan) * _visit_bytes(plan) / plan.items
    # Rows of a copy that are shorter than a line of the cache are fetched less well.
    narrow = {64: 1.15, 32: 1.4, 16: 2.0}.get(plan.slab_in[-1] * plan.item_in, 1.0)
    # A last round with fewer items than CTAs takes as long as the others.
    rounds = -(-plan.items // plan.clusters) * plan.ctas
    mma = H200.matmul * (1 if config.wgmma else _MMA_SHARE)
    return Load(
        hbm=hbm / H200.hbm,
        l2=rounds * (x * narrow + fetched + y) / H200.l2,
        smem=rounds * smem / H200.shared,
        mma=rounds * products * 2 * rows * features * depth * blocks / mma,
    )


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
    return plan.weight_stages * plan.weight_bytes


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
_COPY = 1.05  # What a copy of w has to gain, as it takes memory and a launch.
_REGISTERS = {1: 232, 2: 232, 3: 152, 4: 116}  # Per thread, for operands and sums.
_IN_FLIGHT = 32_768  # Bytes of x per multiprocessor that hide HBM's latency.
_MAX_STAGES = 6
_MAX_SUMS = 128  # Registers per thread for sums.
_WEIGHTS_IN_L2 = 16 * 2**20
# CTAs that run at once, by the size of a cluster, which is of one group of 16 or 18
# multiprocessors. One cluster more would run after all others.
_AT_ONCE = {1: H200.multiprocessors, 2: H200.multiprocessors, 4: 128}
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
    factor = embed(shape, feature_first=feature_first)
    way = way_of(factor, feature_first=feature_first, item_in=item_in)
    walk = factor.num_weights * item_in > _WEIGHTS_IN_L2
    best: tuple[tuple[float, ...], Config] | None = None
    reason: str | None = None
    drafts = _candidates(factor, way, feature_first=feature_first)
    if way != "turned" and item_in == 2:
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
        ctas = _AT_ONCE[config.cluster] * (2 if _fits_twice(plan) else 1)
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
    """Configurations in order: predicted time, then what takes fewer threads."""
    config, needs = plan.config, load(plan)
    per_sm = 2 if _fits_twice(plan) else 1
    in_flight = per_sm * (config.stages - 1) * math.prod(plan.slab_in) * plan.item_in
    waiting = needs.hbm * max(0.0, _IN_FLIGHT / max(in_flight, 1024) - 1)
    if config.resident and plan.way == "flat" and plan.groups > 1:
        # Block by block, rows of x are read in short and distant stretches.
        waiting += needs.hbm * 32 / (plan.factor.c * plan.item_in)
    # Two warpgroups at least hide one another's waits.
    alone = 2 / min(2, per_sm * config.warpgroups)
    busy = max(needs.hbm, needs.l2, alone * needs.smem, alone * needs.mma)
    # Parts overlap, but never wholly; and warpgroups wait for one another.
    tiles_of_all = plan.items * config.cluster
    rounds = -(-tiles_of_all // (H200.multiprocessors * per_sm))
    meetings = 1 if plan.way != "turned" else 5 - config.slots
    if config.cluster > 1:
        meetings += 1
    meeting = rounds * (plan.chunks * meetings + 2) * H200.meet_seconds / 2
    overlap = 0.2 * (needs.l2 + needs.smem)
    total = busy + waiting + overlap + meeting + preparation(plan)
    if plan.arrival == "ordered":
        total *= _COPY
    return (total, config.warpgroups)


def _fits_twice(plan: Tiling) -> bool:
    """Whether two CTAs share a multiprocessor."""
    registers = 128 * plan.config.warpgroups * (plan.registers + 24)
    return H200.has_room_for_two(plan.smem_bytes, registers)


def _candidates(
    factor: tiles.Factor, way: Way, *, feature_first: bool
) -> Iterator[Config]:
    """A bounded set of configurations to choose from."""
    d = factor.d
    blocks: tuple[int, ...] = (1,)
    unit_b = unit_c = 16
    if d > 1 and not feature_first:
        blocks = tuple(g for g in (8, 16) if d % g == 0) or (d,)
        unit_b = unit_c = 16 * (8 // math.gcd(8, d))
    b, c = (-(-n // u) * u for n, u in ((factor.b, unit_b), (factor.c, unit_c)))
    depths = {n for n in (32, 64, 96, 128) if n % unit_c == 0 and n <= c}
    features = {
        n
        for n in (16, 32, 48, 64, 96, 128, 192, 256, b)
        if n % unit_b == 0 and n <= min(b, tiles.MAX_COPY)
    }
    depths |= {unit_c, c if c <= 128 else unit_c}
    splits = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 3, 1), (2, 2, 1), (4, 1, 1)]
    if blocks != (1,):
        splits += [(1, 1, 2), (1, 1, 4), (1, 2, 2), (1, 1, 3)]
    turned: tuple[Literal[1, 2], ...] = (1,) if way != "turned" else (2, 1)
    for rows, feature, depth, group, split, slots, resident in itertools.product(
        (64, 128, 256),
        sorted(features),
        sorted(depths),
        blocks,
        splits,
        turned,
        (False, True),
    ):
        if rows % split[0] or feature % split[1] or group % split[2]:
            continue
        if rows * feature * group > 128 * _MAX_SUMS * math.prod(split):
            continue
        together = {1}
        if resident and blocks == (1,):
            together |= {math.gcd(d, 4), math.gcd(d, 16)}
        for m_warps, kept in itertools.product(_M_WARPS, sorted(together)):
            yield Config(
                rows=rows,
                features=feature,
                depth=depth,
                blocks=group,
                split_rows=split[0],
                split_features=split[1],
                split_blocks=split[2],
                m_warps=m_warps,
                stages=1,
                slots=slots,
                resident=resident,
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
    # Resident, ordered, shared by a cluster.
    weights: list[tuple[bool, bool, Literal[1, 2, 4]]]
    weights = [(False, False, cluster) for cluster in (1, 2, 4)]
    weights += [(True, ordered, 1) for ordered in (False, True)[: min(factor.d, 2)]]
    for rows, feature, depth, split, (resident, ordered, cluster) in itertools.product(
        (64, 128, 192, 256), sorted(features), (64, 128), splits, weights
    ):
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
            )
