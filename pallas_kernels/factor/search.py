"""Which configuration of the one-factor kernel is predicted to be the fastest."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence

from pallas_kernels.common import chip as chips
from pallas_kernels.common import tiles
from pallas_kernels.factor import cost
from pallas_kernels.factor.config import Config
from pallas_kernels.factor.plan import Tiling, embed, misfit, way_of

_REGISTERS = {1: 232, 2: 232, 3: 152, 4: 116}  # Per thread, for operands and sums.
_MAX_SUMS = 128  # Of these, for sums.
_MAX_STAGES = 6
_WEIGHTS_IN_L2 = 16 * 2**20
_WGMMA_FROM = 128 * 128  # Entries of a block; below, the products take little time.
_ROWS = (64, 128, 256)
_MANY = 128 * 132  # Vectors of which all multiprocessors have a tile.
_AS_FAST = 1.02  # Predictions are not exact enough to tell such times apart.
_CLUSTERS = ((1, 1), (2, 1), (4, 1), (4, 2))


@functools.lru_cache(maxsize=4096)
def best_config(
    shape: tuple[int, int, int, int],
    *,
    batch: int,
    feature_first: bool,
    item_in: int,
    item_out: int,
    pieces: int,
) -> Config:
    """The configuration that leaves multiprocessors idle for longest, of the fastest.

    These are all that fit and that are predicted to take hardly longer than the one
    with the smallest time.

    Arguments are those of `tiling`.

    Raises:
      NotImplementedError: if none fits; the message says why the last one does not.
    """
    chip = chips.load()
    factor = embed(shape, feature_first=feature_first, item_in=item_in)
    way = way_of(feature_first=feature_first, item_in=item_in)
    walks = factor.num_weights * item_in > _WEIGHTS_IN_L2
    fitting: list[tuple[bool, float, Tiling]] = []
    reason: str | None = None
    by_wgmma = item_in == 2 and (factor.d == 1 or (feature_first and item_out == 2))
    if by_wgmma and factor.b * factor.c >= _WGMMA_FROM:
        drafts = _for_wgmma(factor)
    else:
        drafts = _for_mma(factor, batch, feature_first, item_in, item_out)
    for draft in drafts:
        plan = Tiling(
            factor,
            dataclasses.replace(draft, batch_first=walks or draft.resident),
            *(way, batch, feature_first, item_in, item_out, pieces),
        )
        if plan.registers > _REGISTERS[draft.warpgroups]:
            continue
        if why := misfit(plan):
            reason = why
            continue
        for filled in _filled(plan, chip):
            # To fetch nothing meanwhile is the last resort.
            idles = not filled.ahead and filled.config.ctas <= chip.multiprocessors
            fitting.append((idles, cost.seconds(filled, chip), filled))
    if not fitting:
        raise NotImplementedError(
            f"factor: no configuration fits the pattern {shape}; the last one tried "
            f"because {reason}"
        )
    idles, least, _ = min(fitting, key=lambda one: one[:2])

    def asked(plan: Tiling) -> tuple[float, ...]:
        usage = cost.usage(plan, chip)
        parts = chip.busy(usage)
        issued = usage.instructions / chip.instructions_per_clock / chip.clock
        work = issued / chip.multiprocessors + parts["shared"] + parts["tma"]
        cluster, warpgroups = plan.config.cluster_size, plan.config.warpgroups
        return cluster, work, parts["waits"], warpgroups, plan.registers

    found = (
        plan
        for waits, seconds, plan in fitting
        if waits == idles and seconds <= _AS_FAST * least
    )
    return min(found, key=asked).config


def _filled(plan: Tiling, chip: chips.Chip) -> Iterator[Tiling]:
    """The tiling with as many stages as one CTA has room for, or each of two."""
    config = plan.config
    registers = 128 * config.warpgroups * (plan.registers + 24)
    for together in (1, 2):
        share = min(chip.smem_bytes // together - chip.system_bytes, tiles.SMEM_BYTES)
        more = (share - plan.smem_bytes) // plan.stage_bytes
        if more < 0 or together * registers > chip.registers:
            return
        stages = min(config.stages + more, _MAX_STAGES)
        ctas = chip.resident(config.cluster_size, together) * config.cluster_size
        yield dataclasses.replace(
            plan, config=dataclasses.replace(config, stages=stages, ctas=ctas)
        )


def _for_mma(
    factor: tiles.Factor,
    batch: int,
    feature_first: bool,
    item_in: int,
    item_out: int,
) -> Iterator[Config]:
    """Configurations for mma.sync: few that differ in what binds."""
    blocks = 1 if feature_first else factor.d
    lines = 128 // item_in, 128 // item_out  # Entries of a run of a whole line.
    if feature_first or blocks > 1:
        lines = (16, 16)
    depths = _parts(factor.c, (16, lines[0]), 128 if blocks == 1 else 32)
    # Sums of all blocks have to find room.
    most = min(192, max(16, 2 * 128 * _MAX_SUMS // (_ROWS[0] * blocks) // 16 * 16))
    features = _parts(factor.b, (16, lines[1]), most)
    weights = [(False, one) for one in (_CLUSTERS if blocks > 1 else _CLUSTERS[:1])]
    # Block by block, no more than a line of each row would be read at a time.
    if feature_first or blocks > 1 or factor.c * item_in > chips.LINE:
        weights.insert(0, (True, (1, 1)))
    tall = _ROWS if blocks > 1 or batch < _MANY else _ROWS[1:]
    for rows, feature, depth, split in itertools.product(
        tall, features, depths, ((1, 1), (2, 1), (1, 2))
    ):
        if rows % (16 * split[0]) or feature % (16 * split[1]):
            continue
        if rows * feature * blocks > 128 * _MAX_SUMS * math.prod(split):
            continue
        tile = _tile(rows // split[0], feature // split[1], factor.b, feature_first)
        if tile is None:
            continue
        for resident, (cluster, cluster_features) in weights:
            if cluster_features > 1 and cluster_features * feature >= 2 * factor.b:
                continue
            yield Config(
                rows=rows,
                features=feature,
                depth=depth,
                split_rows=split[0],
                split_features=split[1],
                m_warps=tile.m_warps,  # type: ignore[arg-type]
                stages=1,
                resident=resident,
                cluster=cluster,  # type: ignore[arg-type]
                cluster_features=cluster_features,  # type: ignore[arg-type]
            )


def _tile(rows: int, features: int, b: int, feature_first: bool) -> tiles.Mma | None:
    """The tile of mma.sync whose operands are read least often.

    If possible one that divides b, as XLA has to pad the bias otherwise.
    """
    for outputs in (math.gcd(features, b), features):
        sizes = (outputs, rows) if feature_first else (rows, outputs)
        if tile := tiles.widest_mma(*sizes):
            return tile
    return None


def _for_wgmma(factor: tiles.Factor) -> Iterator[Config]:
    """Configurations for wgmma, which reads shared memory less often."""
    features = _parts(factor.b, (16, 64), tiles.MAX_COPY)
    weights = [(True, (1, 1)), *((False, cluster) for cluster in _CLUSTERS)]
    for (rows, split), feature, depth, how in itertools.product(
        ((128, 2), (192, 3), (256, 2)), features, (64, 128), weights
    ):
        resident, (cluster, cluster_features) = how
        if cluster_features * feature >= 2 * factor.b or depth >= 2 * factor.c:
            continue
        if rows * feature > 128 * _MAX_SUMS * split:
            continue
        yield Config(
            rows=rows,
            features=feature,
            depth=depth,
            split_rows=split,
            m_warps=4,
            stages=2,
            out_stages=2,
            resident=resident,
            wgmma=True,
            cluster=cluster,  # type: ignore[arg-type]
            cluster_features=cluster_features,  # type: ignore[arg-type]
        )


def _parts(length: int, units: Sequence[int], most: int) -> list[int]:
    """Sizes of parts of a length: in few parts, each a multiple of one of the units."""
    found = set()
    for unit in units:
        fewest = -(-length // (most // unit * unit))
        for count in (fewest, 2 * fewest):
            part = -(-length // count)
            found.add(-(-part // unit) * unit)
    return sorted(part for part in found if part <= most)
