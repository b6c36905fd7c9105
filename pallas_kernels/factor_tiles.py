"""How the one-factor kernel cuts its work into tiles; plain Python integers.

A factor (a, b, c, d) is a·d independent products. An *item* of work is a tile of one
of them, or of several neighbours along d: `rows` vectors of the batch by `features`
outputs, which is summed over chunks of `depth` inputs. Three ways lead from x to the
tensor core, and from it to y:

*flat*     feature-last, d = 1: blocks are runs of features. Vectors are the rows of
           the product, x the left operand.
*columns*  feature-first, 16 bits: a block is a slice with the batch contiguous.
           Outputs are the rows of the product, x the right operand.
*turned*   everything else is first brought into that form in shared memory: of a
           feature-last x with d > 1 a run of neighbouring features is transposed, and
           float32 is split into bfloat16 pieces on the way.

In the turned buffer feature f of a chunk lies at [f // run, f mod run, vector], a run
being a multiple of 8 features. Runs are padded to an odd number of rows, and rows to
an odd number of 16-byte units: then any eight features that an 8 × 8 matrix is loaded
from, neighbours or of one block, lie in different banks. Where d is no multiple of 8,
a run holds several inputs of a block, `interleave`; the weights are put in that order.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

from pallas_kernels import tiles

Way = Literal["flat", "columns", "turned"]

_MAX_WARPGROUPS = 4
_MAX_COPY = 256  # Of one TMA copy along one axis.
_PAD = 8  # Vectors of padding of a row of the turned buffer.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of the batch in a tile, a multiple of 64.
      features: outputs of a block in a tile, a multiple of 16.
      depth: inputs of a block that are fetched at a time, a multiple of 16.
      blocks: neighbours along d in a tile; 1 unless x is feature-last and d > 1.
      split_rows: warpgroups that share the tile's rows.
      split_features: warpgroups that share the outputs of a block.
      split_blocks: warpgroups that share the blocks.
      m_warps: warps of a warpgroup along the rows of the product.
      stages: chunks of x and weights that are in flight or in use.
      slots: turned buffers for x; with two, a chunk is turned while others multiply
        the one before.
      out_stages: slabs of y, of each warpgroup, that may be on their way to HBM.
      ctas: CTAs to launch at most; each takes items until there are none left.
      batch_first: whether the batch is walked through block by block, with few
        weights in use at a time, rather than block after block for each tile.
      resident: whether all weights of a block stay in shared memory for as long as a
        CTA walks through the batch; needs batch_first, and features not below b.
    """

    rows: int = 64
    features: int = 64
    depth: int = 64
    blocks: int = 1
    split_rows: int = 1
    split_features: int = 1
    split_blocks: int = 1
    m_warps: Literal[1, 2, 4] = 2
    stages: int = 3
    slots: Literal[1, 2] = 2
    out_stages: int = 1
    ctas: int = 132
    batch_first: bool = False
    resident: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is not bool and value < 1:
                raise ValueError(f"Config: {field.name} must be positive, got {value}")
        if self.m_warps not in (1, 2, 4):
            raise ValueError(f"Config: m_warps must be 1, 2 or 4, got {self.m_warps}")
        if self.slots > 2:
            raise ValueError(f"Config: slots must be 1 or 2, got {self.slots}")
        for name, unit in (("rows", 64), ("features", 16), ("depth", 16)):
            value = getattr(self, name)
            if value % unit or value > _MAX_COPY:
                raise ValueError(
                    f"Config: {name} must be a multiple of {unit} and at most "
                    f"{_MAX_COPY}, got {value}"
                )
        if self.warpgroups > _MAX_WARPGROUPS:
            raise ValueError(
                f"Config: split_rows · split_features · split_blocks must be at most "
                f"{_MAX_WARPGROUPS}, got {self.warpgroups}"
            )
        for whole in ("rows", "features", "blocks"):
            value, parts = getattr(self, whole), getattr(self, f"split_{whole}")
            if value % parts:
                raise ValueError(
                    f"Config: {whole} must be a multiple of split_{whole} = {parts}, "
                    f"got {value}"
                )

    @property
    def warpgroups(self) -> int:
        """Warpgroups of 128 threads in a CTA."""
        return self.split_rows * self.split_features * self.split_blocks


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """Everything about a factor that the kernel needs to know beforehand.

    Attributes:
      factor: the factor as the kernel applies it, embedded where that is better.
      config: the configuration.
      way: from x to the tensor core and back.
      batch: vectors in x.
      feature_first: whether x and y are (features, batch).
      item_in, item_out: bytes of an entry of x and of y.
      pieces: in how many pieces of 16 bits an entry of x and of the weights is held.
    """

    factor: tiles.Factor
    config: Config
    way: Way
    batch: int
    feature_first: bool
    item_in: int
    item_out: int
    pieces: int

    @property
    def transposes(self) -> bool:
        """Whether the turned buffer holds a transpose of what was fetched."""
        return self.way == "turned" and not self.feature_first

    @property
    def whole_runs(self) -> bool:
        """Whether all d neighbours are taken, so that x and y are read in runs."""
        return self.transposes and self.config.blocks == self.factor.d

    @property
    def interleave(self) -> int:
        """Inputs, and outputs, of a block that share a run of the turned buffer."""
        return 8 // math.gcd(8, self.factor.d) if self.whole_runs else 1

    @property
    def run(self) -> int:
        """Neighbouring features in a run of the turned buffer."""
        return self.interleave * self.config.blocks

    def turned(self, features: int) -> tuple[int, int, int]:
        """Shape of a turned buffer of so many features of each block, with padding."""
        return (features // self.interleave, self.run | 1, self.config.rows + _PAD)

    @property
    def pieces_out(self) -> int:
        """Planes of 16 bits in which sums are turned back; f32 takes three exactly."""
        return 3 if self.item_out == 4 else 1

    @property
    def chunks(self) -> int:
        """Chunks of inputs of a block."""
        return -(-self.factor.c // self.config.depth)

    @property
    def feature_tiles(self) -> int:
        """Tiles of outputs of a block."""
        return -(-self.factor.b // self.config.features)

    @property
    def batch_tiles(self) -> int:
        """Tiles of vectors."""
        return -(-self.batch // self.config.rows)

    @property
    def groups(self) -> int:
        """Groups of blocks that are taken together."""
        return self.factor.num_blocks // self.config.blocks

    @property
    def items(self) -> int:
        """Items of work."""
        return self.groups * self.batch_tiles * self.feature_tiles

    @property
    def ctas(self) -> int:
        """CTAs that are launched."""
        return min(self.config.ctas, self.items)

    @property
    def rows(self) -> int:
        """Vectors in a warpgroup's part of a tile."""
        return self.config.rows // self.config.split_rows

    @property
    def features(self) -> int:
        """Outputs of a block in a warpgroup's part of a tile."""
        return self.config.features // self.config.split_features

    @property
    def blocks(self) -> int:
        """Blocks in a warpgroup's part of a tile."""
        return self.config.blocks // self.config.split_blocks

    @property
    def slab_in(self) -> tuple[int, ...]:
        """Shape of a chunk of x in shared memory: panels with a swizzled last axis."""
        config = self.config
        if self.way == "flat":
            width = panel(config.depth, self.item_in)
            return (config.depth // width, config.rows, width)
        if self.feature_first:
            width = panel(config.rows, self.item_in)
            return (config.rows // width, config.depth, width)
        if self.whole_runs:
            features = config.depth * config.blocks
            width = panel(features, self.item_in)
            return (features // width, config.rows, width)
        return (config.depth, config.rows, config.blocks)

    @property
    def slab_weights(self) -> tuple[int, ...]:
        """The same of the weights, (pieces, panels, blocks, features, width)."""
        config = self.config
        width = panel(config.depth // self.interleave, 2)
        panels = config.depth // width
        return (self.pieces, panels, config.blocks, config.features, width)

    @property
    def weight_stages(self) -> int:
        """How many of them there are."""
        return self.chunks if self.config.resident else self.config.stages

    @property
    def slab_out(self) -> tuple[int, ...]:
        """The same of what a warpgroup sends to y at a time."""
        if self.way == "flat":
            width = panel(self.features, self.item_out)
            return (self.features // width, self.rows, width)
        if self.feature_first:
            width = panel(self.rows, self.item_out)
            return (self.rows // width, self.features, width)
        if self.whole_runs:
            features = self.config.features * self.config.blocks
            return (1, self.config.rows, panel(features, self.item_out))
        return (4, self.config.rows, self.config.blocks)

    @property
    def num_sums(self) -> int:
        """Registers per thread that hold sums."""
        return self.rows * self.features * self.blocks // 128

    @property
    def registers(self) -> int:
        """Registers per thread that sums and the operands of a chunk take, at most."""
        width = self.slab_weights[-1]
        m_warps, n_warps = self.config.m_warps, 4 // self.config.m_warps
        if self.way == "flat":
            m, n = self.rows, self.features
        else:
            m, n = self.features, self.rows
            if self.way == "columns":
                n = self.slab_in[-1]
        operands = width * self.pieces * (m // m_warps + n // n_warps) // 64
        return self.num_sums + operands

    @property
    def stage_bytes(self) -> int:
        """Bytes of shared memory of a chunk of x and weights, in whole kilobytes."""
        x = math.prod(self.slab_in) * self.item_in
        weights = 0 if self.config.resident else math.prod(self.slab_weights) * 2
        return sum(-(-part // 1024) * 1024 for part in (x, weights))

    @property
    def smem_bytes(self) -> int:
        """Bytes of shared memory of one CTA, each allocation in whole kilobytes."""
        config = self.config
        parts = [
            config.stages * self.stage_bytes,
            self.chunks * math.prod(self.slab_weights) * 2 * config.resident,
            config.warpgroups
            * config.out_stages
            * math.prod(self.slab_out)
            * self.item_out,
        ]
        if self.way == "turned":
            planes = config.slots * self.pieces
            parts.append(2 * planes * math.prod(self.turned(config.depth)))
            if self.transposes:
                parts.append(
                    2 * self.pieces_out * math.prod(self.turned(config.features))
                )
        parts.append(1024)  # Barriers.
        return sum(-(-part // 1024) * 1024 for part in parts)


def panel(extent: int, itemsize: int) -> int:
    """Entries of a panel's last axis: a swizzle of 128, 64 or 32 bytes, or none."""
    for size in (128, 64, 32, 16):
        if extent * itemsize % size == 0:
            return size // itemsize
    raise AssertionError(f"{extent} entries of {itemsize} bytes")


def embed(shape: Sequence[int], *, feature_first: bool) -> tiles.Factor:
    """The factor as the kernel applies it: neighbours merged where blocks are small.

    Of all embeddings in blocks that TMA can address, the one with the fewest products
    once inputs are padded to 16 and outputs to 16; then the one that needs no turned
    buffer.

    Raises:
      NotImplementedError: if there is none.
    """
    a, b, c, d = shape
    best = None
    for u in tiles.divisors(a):
        for v in tiles.divisors(d):
            if u * v > 64:
                continue
            found = tiles.Factor(a // u, b * u * v, c * u * v, d // v, u, v)
            if not (feature_first or _addressable(found)):
                continue
            padded = found.num_blocks * -(-found.b // 16) * -(-found.c // 16)
            key = (padded, found.d > 1 and not feature_first, u * v)
            if best is None or key < best[0]:
                best = (key, found)
    if best is None:
        raise NotImplementedError(
            f"factor: of a feature-last array, blocks of shape {tuple(shape)} have no "
            "embedding whose runs of features begin at multiples of 16 bytes, and "
            f"whose d is 1, a multiple of 8 or one of {_WHOLE_RUNS}"
        )
    return best[1]


_WHOLE_RUNS = (2, 4)  # Besides multiples of 8: larger ones do not fit.


def _addressable(factor: tiles.Factor) -> bool:
    """Whether blocks of a feature-last array are boxes that TMA can copy."""
    if factor.d % 8 == 0:
        return True
    aligned = not (factor.b * factor.d % 8 or factor.c * factor.d % 8)
    return aligned and (factor.d == 1 or factor.d in _WHOLE_RUNS)


def _way(factor: tiles.Factor, *, feature_first: bool, item_in: int) -> Way:
    if feature_first:
        return "turned" if item_in == 4 else "columns"
    return "turned" if factor.d > 1 else "flat"


def tiling(
    shape: Sequence[int],
    config: Config,
    *,
    batch: int,
    feature_first: bool,
    item_in: int,
    item_out: int,
    pieces: int,
) -> Tiling:
    """Cuts a factor into tiles.

    Args:
      shape: its pattern (a, b, c, d).
      config: the configuration.
      batch: vectors in x.
      feature_first: whether x and y are (features, batch).
      item_in, item_out: bytes of an entry of x and of y.
      pieces: in how many pieces of 16 bits an entry is multiplied.

    Raises:
      NotImplementedError: if the configuration does not fit the factor or the chip;
        the message says why.
    """
    factor = embed(shape, feature_first=feature_first)
    way = _way(factor, feature_first=feature_first, item_in=item_in)
    plan = Tiling(factor, config, way, batch, feature_first, item_in, item_out, pieces)
    if reason := _misfit(plan):
        raise NotImplementedError(
            f"factor: {reason}, for the pattern {tuple(shape)}, applied as "
            f"{(factor.a, factor.b, factor.c, factor.d)}, with {config}"
        )
    return plan


def _misfit(plan: Tiling) -> str | None:
    """Why a configuration does not fit, or None if it does."""
    config, d = plan.config, plan.factor.d
    if plan.transposes:
        if config.blocks != d and (d % config.blocks or config.blocks not in (8, 16)):
            return f"blocks must be {d}, or 8 or 16 if that divides it"
        if config.depth % (16 * plan.interleave):
            return f"depth must be a multiple of {16 * plan.interleave}"
    elif config.blocks > 1:
        return "blocks must be 1"
    if config.resident and not (config.batch_first and plan.feature_tiles == 1):
        return "resident weights need batch_first, and features of at least b"
    # Of the product, for one warp each.
    m_unit, n_unit = 16 * config.m_warps, 8 * (4 // config.m_warps)
    rows, features = plan.rows, plan.features
    if plan.way == "flat":
        if rows % m_unit or features % n_unit:
            return (
                f"rows and features of a warpgroup must be multiples of {m_unit} and "
                f"{n_unit}, not {rows} and {features}"
            )
    elif features % (m_unit * plan.interleave):
        return (
            f"features of a warpgroup must be a multiple of "
            f"{m_unit * plan.interleave}, not {features}"
        )
    elif plan.way == "columns" and rows % plan.slab_in[-1]:
        return f"rows of a warpgroup must be a multiple of {plan.slab_in[-1]}"
    elif rows % 32:
        return f"rows of a warpgroup must be a multiple of 32, not {rows}"
    if (needed := plan.smem_bytes) > tiles.SMEM_BYTES:
        return f"{needed:,} bytes of shared memory are more than {tiles.SMEM_BYTES:,}"
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class Load:
    """What a tiling asks of each part of a chip, in seconds if nothing else waited.

    Attributes:
      hbm: x and y, once.
      l2: x once per tile of outputs, and weights once per item.
      smem: every pass over shared memory.
      mma: products of padded blocks by mma.sync.
    """

    hbm: float
    l2: float
    smem: float
    mma: float

    @property
    def bound(self) -> float:
        """Seconds that the busiest part takes."""
        return max(self.hbm, self.l2, self.smem, self.mma)


# Of an H200, per second: the copy bandwidth is measured, the rest is from the clock,
# 1.7 GHz on 132 multiprocessors. mma.sync is taken to reach 0.6 of wgmma's rate.
_HBM = 4.3e12
_L2 = 5.5e12
_SMEM = 128 * 1.7e9 * 132
_MMA = 0.6 * 790e12


def load(plan: Tiling) -> Load:
    """Predicts what binds; nothing here has been timed."""
    config, factor = plan.config, plan.factor
    rows, features, blocks = config.rows, config.features, config.blocks
    depth = plan.chunks * config.depth
    products = plan.pieces * (plan.pieces + 1) // 2
    x = rows * depth * blocks * plan.item_in
    y = rows * features * blocks * plan.item_out
    weights = plan.pieces * features * depth * blocks * 2
    # Warps that share rows of the product each load all of the other operand.
    vertical, horizontal = config.m_warps, 4 // config.m_warps
    if plan.way == "flat":
        by_row = horizontal * config.split_features
        by_feature = vertical * config.split_rows
    else:
        by_row = vertical * config.split_features
        by_feature = horizontal * config.split_rows
    x_operand = x // plan.item_in * (4 if plan.item_in == 4 else 2)
    smem = x + weights + by_row * x_operand + by_feature * weights + 2 * y
    if plan.way == "turned":
        smem += x + 2 * x // plan.item_in * plan.pieces
    if plan.transposes:
        smem += 4 * y // plan.item_out * plan.pieces_out
    hbm = (
        plan.batch
        * factor.num_blocks
        * (factor.c * plan.item_in + factor.b * plan.item_out)
    )
    # Rows of a copy that are shorter than a line of the cache are fetched less well.
    fetched: float = weights
    if config.resident:
        # A CTA takes a run of items and fetches at each new block.
        fetched = weights * min(1, (plan.groups + plan.ctas) / plan.items)
    narrow = {64: 1.15, 32: 1.4, 16: 2.0}.get(plan.slab_in[-1] * plan.item_in, 1.0)
    # A last round with fewer items than CTAs takes as long as the others.
    rounds = -(-plan.items // plan.ctas) * plan.ctas
    return Load(
        hbm=hbm / _HBM,
        l2=rounds * (x * narrow + fetched + y) / _L2,
        smem=rounds * smem / _SMEM,
        mma=rounds * products * 2 * rows * features * depth * blocks / _MMA,
    )


_SMS = 132
_SMEM_OF_TWO = 233_472  # Of a multiprocessor, 1024 bytes per CTA for the system.
_REGISTERS = {1: 232, 2: 232, 3: 152, 4: 116}  # Per thread, for operands and sums.
_IN_FLIGHT = 32_768  # Bytes of x per multiprocessor that hide HBM's latency.
_MEETING = 1.5e-7  # Seconds to meet at a barrier, and to fill the pipeline again.
_MAX_STAGES = 6
_MAX_SUMS = 128  # Registers per thread for sums.
_WEIGHTS_IN_L2 = 16 * 2**20


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
    way = _way(factor, feature_first=feature_first, item_in=item_in)
    walk = pieces * factor.num_weights * 2 > _WEIGHTS_IN_L2
    best: tuple[tuple[float, ...], Config] | None = None
    reason: str | None = None
    for draft in _candidates(factor, way, feature_first=feature_first):
        config = dataclasses.replace(
            draft, stages=1, batch_first=walk or draft.resident
        )
        plan = Tiling(
            factor, config, way, batch, feature_first, item_in, item_out, pieces
        )
        if misfit := _misfit(plan):
            reason = misfit
            continue
        if plan.registers > _REGISTERS[config.warpgroups]:
            continue
        room = (tiles.SMEM_BYTES - plan.smem_bytes) // plan.stage_bytes
        stages = min(1 + room, _MAX_STAGES)
        plan = dataclasses.replace(
            plan, config=dataclasses.replace(config, stages=stages)
        )
        ctas = 2 * _SMS if _fits_twice(plan) else _SMS
        key = _rank(plan)
        if best is None or key < best[0]:
            best = (key, dataclasses.replace(plan.config, ctas=ctas))
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
    rounds = -(-plan.items // (_SMS * per_sm))
    meetings = 1 if plan.way != "turned" else 5 - config.slots
    meeting = rounds * (plan.chunks * meetings + 2) * _MEETING
    return (busy + waiting + 0.2 * (needs.l2 + needs.smem) + meeting, config.warpgroups)


def _fits_twice(plan: Tiling) -> bool:
    """Whether two CTAs share a multiprocessor: one computes as the other waits."""
    threads = 2 * 128 * plan.config.warpgroups
    return (
        2 * (plan.smem_bytes + 1024) <= _SMEM_OF_TWO
        and threads * (plan.registers + 24) <= 65_536
    )


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
        if n % unit_b == 0 and n <= min(b, _MAX_COPY)
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
        if resident and feature < factor.b:
            continue
        for m_warps in (1, 2, 4):
            yield Config(
                rows=rows,
                features=feature,
                depth=depth,
                blocks=group,
                split_rows=split[0],
                split_features=split[1],
                split_blocks=split[2],
                m_warps=m_warps,
                slots=slots,
                resident=resident,
            )
