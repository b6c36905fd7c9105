"""How the one-factor kernel cuts its work into tiles; plain Python integers.

A factor (a, b, c, d) is a·d independent products. An *item* of work is a tile of one
of them, or of several neighbours along d: `rows` vectors of the batch by `features`
outputs, which is summed over chunks of `depth` inputs. Three ways lead from x to the
tensor core, and from it to y:

*flat*     feature-last. Vectors are the rows of the product, x the left operand. With
           d = 1 blocks are runs of features.
*columns*  feature-first, 16 bits: a block is a slice with the batch contiguous.
           Outputs are the rows of the product, x the right operand; with wgmma, which
           reads either operand in either order, it is as in *flat*.
*turned*   feature-first float32: as *columns*, but x is first split into bfloat16
           pieces in shared memory.

Blocks of a feature-last array with d > 1 lie *zipped*: all neighbours' first features,
then their second ones. So do their weights, in w as it is. An item takes some
neighbours, or all, and a thread loads their entries side by side, of x and of w alike,
and parts them in its registers into one operand for each block. The sums are zipped
again when they are stored. Nothing is transposed, in HBM or in shared memory. A panel
is what four neighbouring lanes have of a row, which is as much as tells rows apart in
shared memory: eight rows or so of 64 bytes lie in different banks. A feature-first x
keeps its blocks apart, so that an item may have one; if it has several, their weights
are taken zipped, and need no order.

Weights arrive in one of the ways of `pallas_kernels.factor.arrangement`: those that lie
zipped are fetched as those of d = 1 are; resident ones of one feature-first block are
arranged when a CTA comes to a block, once for all its vectors; all others are ordered.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from pallas_kernels.common import tiles
from pallas_kernels.common.slabs import SWIZZLES, panel
from pallas_kernels.common.tiles import MAX_COPY
from pallas_kernels.factor import arrangement

Way = Literal["flat", "columns", "turned"]

_MAX_WARPGROUPS = 4
_MAX_CLUSTER = 8  # More than that is not portable.
WGMMA_ROWS = 64  # Of a product; of 16 bits, so many are also as wide as a swizzle.
OUTPUTS = 8  # Of a tile of mma.sync: those of each block that are zipped together.
_LANES = 4  # That share a row of an operand of mma.sync.
_PAD = 8  # Vectors of padding of a row of the turned buffer.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of the batch in a tile, a multiple of 64.
      features: outputs of a block in a tile, a multiple of 16.
      depth: inputs of a block that are fetched at a time, a multiple of 16.
      blocks: neighbours along d in a tile, more than one if x is feature-last and
        d > 1; see `neighbours`. For a feature-first x they save XLA the ordering of w.
      split_rows: warpgroups that share the tile's rows.
      split_features: warpgroups that share the outputs of a block.
      m_warps: warps of a warpgroup along the rows of the product.
      stages: chunks of x and weights that are in flight or in use.
      slots: turned buffers for x; with two, a chunk is turned while others multiply
        the one before.
      out_stages: slabs of y, of each warpgroup, that may be on their way to HBM.
      ctas: CTAs to launch at most; each takes items until there are none left.
      batch_first: whether the batch is walked through block by block, with few
        weights in use at a time, rather than block after block for each tile.
      resident: whether all weights of a block stay in shared memory for as long as a
        CTA walks through the batch; needs batch_first.
      ordered: whether XLA puts resident weights of a feature-first array with d > 1 in
        order before the launch, as it does those that are not resident, rather than
        each CTA for itself.
      wgmma: whether warpgroups multiply what lies in shared memory, rather than warps
        what they have loaded into registers; for flat and columns in 16 bits. Wants
        m_warps = 4, two stages or more, a depth in multiples of 64, and for each
        warpgroup rows in multiples of 64.
      cluster: CTAs, at neighbouring tiles of the batch, that share the weights they
        fetch; 1 with resident weights, and with mma.sync unless blocks lie zipped.
      cluster_features: CTAs of the same cluster, at neighbouring tiles of outputs, that
        share the x they fetch; the same holds.
      kept: neighbours along d whose weights stay together, as they are together in w;
        1 unless x is feature-first, d > 1, and weights are resident.
    """

    rows: int = 64
    features: int = 64
    depth: int = 64
    blocks: int = 1
    split_rows: int = 1
    split_features: int = 1
    m_warps: Literal[1, 2, 4] = 2
    stages: int = 3
    slots: Literal[1, 2] = 2
    out_stages: int = 1
    ctas: int = 132
    batch_first: bool = False
    resident: bool = False
    ordered: bool = False
    wgmma: bool = False
    cluster: Literal[1, 2, 4] = 1
    cluster_features: Literal[1, 2, 4] = 1
    kept: int = 1

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
            if value % unit or value > MAX_COPY:
                raise ValueError(
                    f"Config: {name} must be a multiple of {unit} and at most "
                    f"{MAX_COPY}, got {value}"
                )
        if self.warpgroups > _MAX_WARPGROUPS:
            raise ValueError(
                f"Config: split_rows · split_features must be at most "
                f"{_MAX_WARPGROUPS}, got {self.warpgroups}"
            )
        for whole in ("rows", "features"):
            value, parts = getattr(self, whole), getattr(self, f"split_{whole}")
            if value % parts:
                raise ValueError(
                    f"Config: {whole} must be a multiple of split_{whole} = {parts}, "
                    f"got {value}"
                )
        for name in ("cluster", "cluster_features"):
            value = getattr(self, name)
            if value not in (1, 2, 4):
                raise ValueError(f"Config: {name} must be 1, 2 or 4, got {value}")
        if self.cluster_size > _MAX_CLUSTER:
            raise ValueError(
                f"Config: cluster · cluster_features must be at most {_MAX_CLUSTER}, "
                f"got {self.cluster_size}"
            )
        if self.cluster_size > 1 and self.resident:
            raise ValueError(
                "Config: cluster and cluster_features must be 1 with resident weights, "
                f"got {self.cluster} and {self.cluster_features}"
            )
        if self.wgmma:
            self._check_wgmma()

    def _check_wgmma(self) -> None:
        rows = self.rows // self.split_rows
        for holds, rule in (
            (self.m_warps == 4, f"m_warps must be 4, got {self.m_warps}"),
            (self.stages > 1, f"stages must be 2 or more, got {self.stages}"),
            (
                self.depth % WGMMA_ROWS == 0,
                f"depth must be a multiple of {WGMMA_ROWS}, got {self.depth}",
            ),
            (
                rows % WGMMA_ROWS == 0,
                f"rows / split_rows must be a multiple of {WGMMA_ROWS}, got {rows}",
            ),
        ):
            if not holds:
                raise ValueError(f"Config: with wgmma, {rule}")

    @property
    def cluster_size(self) -> int:
        """CTAs of a cluster."""
        return self.cluster * self.cluster_features

    @property
    def warpgroups(self) -> int:
        """Warpgroups of 128 threads in a CTA."""
        return self.split_rows * self.split_features


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """Everything about a factor that the kernel needs to know beforehand.

    Attributes:
      factor: the factor as the kernel applies it, embedded where that is better.
      config: the configuration.
      way: from x to the tensor core and back.
      batch: vectors in x.
      feature_first: whether x and y are (features, batch).
      item_in, item_out: bytes of an entry of x and the weights, and of y.
      pieces: in how many pieces of 16 bits an entry of x and w is multiplied.
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
    def vectors_lead(self) -> bool:
        """Whether vectors, not outputs, are the rows of the product."""
        return self.way == "flat" or self.config.wgmma

    @property
    def zips(self) -> bool:
        """Whether an item has neighbouring blocks, whose weights lie zipped."""
        return self.config.blocks > 1

    @property
    def zips_features(self) -> bool:
        """Whether their features do, too."""
        return self.zips and self.way == "flat"

    @property
    def has_whole_runs(self) -> bool:
        """Whether an item has all d neighbours, so that inputs follow one another."""
        return self.config.blocks == self.factor.d

    @property
    def inputs_per_lane(self) -> int:
        """Zipped inputs that follow one another and that one lane loads: 1, 2 or 4.

        With all blocks' entries, 16 bytes or more, if possible in words of 4 bytes. Two
        leave inputs in their order, as a feature-first x has them.
        """
        if not self.zips_features:
            return 2
        if not self.has_whole_runs:
            return 1
        size = self.factor.d * self.item_in
        fitting = (n for n in (1, 2) if n * size >= 16 and n * size % 4 == 0)
        return next(fitting, 4)

    @property
    def panel_depth(self) -> int:
        """Inputs of a block in a panel, if blocks lie zipped."""
        return _LANES * self.inputs_per_lane

    @property
    def zip_swizzle(self) -> bool:
        """Whether a panel's rows, of whole runs, are as wide as the widest swizzle.

        Other rows of what lies zipped are apart without one.
        """
        row = self.panel_depth * self.config.blocks * self.item_in
        return self.has_whole_runs and row == SWIZZLES[0]

    def zipped(self, features: int) -> tuple[int, ...]:
        """Shape in which so many features of each block lie zipped in a panel."""
        blocks = self.config.blocks
        if self.has_whole_runs:
            return (features * blocks,)
        return (features, blocks)

    @property
    def turned(self) -> tuple[int, int]:
        """Shape of the turned buffer for a chunk, block after block, with padding."""
        return (self.config.blocks * self.config.depth, self.config.rows + _PAD)

    @property
    def chunks(self) -> int:
        """Chunks of inputs of a block."""
        return -(-self.factor.c // self.config.depth)

    @property
    def feature_tiles(self) -> int:
        """Tiles of outputs of a block."""
        return -(-self.factor.b // self.config.features)

    @property
    def feature_steps(self) -> int:
        """Runs of tiles of outputs, as many as a cluster has CTAs side by side."""
        return -(-self.feature_tiles // self.config.cluster_features)

    @property
    def padded_features(self) -> int:
        """Outputs of a block in all tiles, those included that there are not."""
        tiles_of_all = self.feature_steps * self.config.cluster_features
        return tiles_of_all * self.config.features

    @property
    def batch_tiles(self) -> int:
        """Tiles of vectors."""
        return -(-self.batch // self.config.rows)

    @property
    def batch_steps(self) -> int:
        """Runs of tiles of vectors, as many as a cluster has CTAs."""
        return -(-self.batch_tiles // self.config.cluster)

    @property
    def groups(self) -> int:
        """Groups of blocks that are taken together."""
        return self.factor.num_blocks // self.config.blocks

    @property
    def items(self) -> int:
        """Items of work, each of as many tiles as a cluster has CTAs."""
        return self.groups * self.batch_steps * self.feature_steps

    @property
    def ctas(self) -> int:
        """CTAs that are launched."""
        return self.clusters * self.config.cluster_size

    @property
    def clusters(self) -> int:
        """Clusters that they form."""
        return min(max(1, self.config.ctas // self.config.cluster_size), self.items)

    @property
    def rows(self) -> int:
        """Vectors in a warpgroup's part of a tile."""
        return self.config.rows // self.config.split_rows

    @property
    def features(self) -> int:
        """Outputs of a block in a warpgroup's part of a tile."""
        return self.config.features // self.config.split_features

    @property
    def slab_in(self) -> tuple[int, ...]:
        """Shape of a chunk of x in shared memory: panels with a swizzled last axis.

        Zipped ones are swizzled only if `zip_swizzle`. Of a feature-first x they are
        those of one block after the other.
        """
        config = self.config
        if self.zips_features:
            panels = config.depth // self.panel_depth
            return (panels, config.rows, *self.zipped(self.panel_depth))
        if self.way == "flat":
            width = panel(config.depth, self.item_in)
            return (config.depth // width, config.rows, width)
        width = panel(config.rows, self.item_in)
        return (config.blocks * config.rows // width, config.depth, width)

    @property
    def arrival(self) -> arrangement.Arrival:
        """How weights come to lie in shared memory as the product reads them."""
        by_cta = self.config.resident and not self.config.ordered
        return arrangement.arrival(
            self.factor,
            as_given=self.zips
            or (self.factor.d == 1 and not self.factor.c * self.item_in % 16),
            by_cta=by_cta and self.units is not None,
        )

    @property
    def units(self) -> tuple[arrangement.Units, ...] | None:
        """In what units weights are arranged, if sizes allow it."""
        return arrangement.units(
            self.factor.b,
            self.features,
            self.factor.c,
            self.weight_width,
            math.gcd(self.kept, self.factor.d),
            self.item_in,
        )

    @property
    def weight_width(self) -> int:
        """Inputs by which weights are read at a time, unless they are zipped."""
        return panel(self.config.depth, self.item_in)

    @property
    def slab_weights(self) -> tuple[int, ...]:
        """The same of the weights, (panels, blocks, features, width).

        Zipped ones are (panels, features, …), like x that is.
        """
        config = self.config
        if self.zips:
            panels = config.depth // self.panel_depth
            return (panels, config.features, *self.zipped(self.panel_depth))
        width = self.weight_width
        return (config.depth // width, config.kept, config.features, width)

    @property
    def kept(self) -> int:
        """Blocks whose weights are in shared memory together."""
        return self.config.blocks * self.config.kept

    @property
    def weight_bytes(self) -> int:
        """Bytes of shared memory of a chunk of weights."""
        return math.prod(self.slab_weights) * self.item_in

    @property
    def weight_stages(self) -> int:
        """How many of them there are."""
        if self.config.resident:
            return self.feature_tiles * self.chunks
        return self.config.stages

    @property
    def slab_out(self) -> tuple[int, ...]:
        """The same of what a warpgroup sends to y at a time."""
        if self.config.wgmma:
            if self.feature_first:
                return (1, math.gcd(self.features, WGMMA_ROWS), WGMMA_ROWS)
            return (1, WGMMA_ROWS, panel(self.features, self.item_out))
        if self.zips_features:
            return (self.features // OUTPUTS, self.rows, *self.zipped(OUTPUTS))
        if self.way == "flat":
            width = panel(self.features, self.item_out)
            return (self.features // width, self.rows, width)
        width = panel(self.rows, self.item_out)
        return (self.rows // width, self.features, width)

    @property
    def output_unit(self) -> int:
        """Outputs in one tile of a warpgroup's mma.sync."""
        m_warps = self.config.m_warps
        return 8 * (4 // m_warps) if self.way == "flat" else 16 * m_warps

    @property
    def num_sums(self) -> int:
        """Registers per thread that hold sums."""
        return self.rows * self.features * self.config.blocks // 128

    @property
    def registers(self) -> int:
        """Registers per thread that sums and the operands of a chunk take, at most."""
        if self.config.wgmma:
            return self.num_sums
        m_warps, n_warps = self.config.m_warps, 4 // self.config.m_warps
        if self.zips_features:
            # x of all blocks, 16 inputs deep, and twice a tile of weights, as loaded
            # and as operands.
            width = tiles.MMA_K * self.config.blocks
            operands = width * (self.rows // m_warps + 2 * OUTPUTS) // 64
            return self.num_sums + operands * self.pieces + self._spare_registers
        if self.zips:  # x of one block, and a tile of all weights.
            operands = tiles.MMA_K * (
                self.rows // n_warps + 2 * 16 * self.config.blocks
            )
            operands = operands // 64 * self.pieces
            return self.num_sums + operands + self._spare_registers
        if self.way == "flat":
            m, n = self.rows, self.features
        else:
            m, n = self.features, self.rows
            if self.way == "columns":
                n = self.slab_in[-1]
        width = self.weight_width * self.pieces
        return self.num_sums + width * (m // m_warps + n // n_warps) // 64

    @property
    def _spare_registers(self) -> int:
        """Those that compiling took beside, for addresses, or numbers to be cut."""
        if self.pieces > 1:
            return 48
        config = self.config
        longer = config.depth > tiles.MMA_K
        shared = (config.cluster > 1) + (config.cluster_features > 1)
        return 24 + 9 * (longer + shared)

    @property
    def stage_bytes(self) -> int:
        """Bytes of shared memory of a chunk of x and weights, in whole kilobytes."""
        x = math.prod(self.slab_in) * self.item_in
        weights = 0 if self.config.resident else self.weight_bytes
        return tiles.allocated((x, weights))

    @property
    def smem_bytes(self) -> int:
        """Bytes of shared memory of one CTA, each allocation in whole kilobytes."""
        config = self.config
        parts = [
            config.stages * self.stage_bytes,
            self.weight_stages * self.weight_bytes * config.resident,
            config.warpgroups
            * config.out_stages
            * math.prod(self.slab_out)
            * self.item_out,
        ]
        if self.way == "turned":
            planes = config.slots * self.pieces
            parts.append(2 * planes * math.prod(self.turned))
        parts.append(1024)  # Barriers.
        return tiles.allocated(parts)


def embed(
    shape: Sequence[int], *, feature_first: bool, item_in: int, item_out: int
) -> tiles.Factor:
    """The factor as the kernel applies it: neighbours merged where blocks are small.

    Of all embeddings in blocks that TMA can address, the one with the fewest products
    once inputs are padded to 16 and outputs to 16. Arguments are those of `tiling`.

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
            if not (feature_first or neighbours(found, item_in, item_out)):
                continue
            padded = found.num_blocks * -(-found.b // 16) * -(-found.c // 16)
            key = (padded, u * v)
            if best is None or key < best[0]:
                best = (key, found)
    if best is None:
        raise NotImplementedError(
            f"factor: of a feature-last array, blocks of shape {tuple(shape)} have no "
            "embedding whose runs of features begin at multiples of 16 bytes, and "
            f"whose d is a multiple of {16 // min(item_in, item_out)} or at most "
            f"{_MAX_RUN[item_in]}"
        )
    return best[1]


# Blocks that an item has together at most if it has to have all; by bytes of an entry.
_MAX_RUN = {2: 12, 4: 7}


def neighbours(factor: tiles.Factor, item_in: int, item_out: int) -> tuple[int, ...]:
    """How many blocks that lie zipped an item can have; empty if none.

    All, if rows of an array begin at multiples of 16 bytes; or some whose entries are
    16 or 32 bytes, as TMA copies no less.
    """
    d, least = factor.d, 16 // min(item_in, item_out)
    found = {n for n in (least, 2 * least) if d % n == 0}
    aligned = not (factor.b * d % 8 or factor.c * d % 8)
    if aligned and d <= _MAX_RUN[item_in]:
        found.add(d)
    return tuple(sorted(found))


def way_of(*, feature_first: bool, item_in: int) -> Way:
    """From x to the tensor core, see the module's docstring."""
    if feature_first:
        return "turned" if item_in == 4 else "columns"
    return "flat"


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
    factor = embed(
        shape, feature_first=feature_first, item_in=item_in, item_out=item_out
    )
    way = way_of(feature_first=feature_first, item_in=item_in)
    plan = Tiling(factor, config, way, batch, feature_first, item_in, item_out, pieces)
    if reason := misfit(plan):
        raise NotImplementedError(
            f"factor: {reason}, for the pattern {tuple(shape)}, applied as "
            f"{(factor.a, factor.b, factor.c, factor.d)}, with {config}"
        )
    return plan


def misfit(plan: Tiling) -> str | None:
    """Why a configuration does not fit, or None if it does."""
    config, d = plan.config, plan.factor.d
    if config.wgmma:
        if plan.item_in != 2 or plan.zips or (plan.way == "flat" and d > 1):
            return "wgmma is for 16 bits, a single block, and d = 1 or features first"
        if plan.feature_first and plan.item_out == 4:
            return "wgmma is for a result of 16 bits, if features come first"
    if config.blocks > 1 or (plan.way == "flat" and d > 1):
        choices = neighbours(plan.factor, plan.item_in, plan.item_out)
        if config.blocks not in choices:
            return f"blocks must be one of {choices}, not {config.blocks}"
        if not plan.zips_features and plan.arrival == "ordered":
            return "blocks must be 1 where neighbours are merged"
    if config.cluster_size > 1 and not (config.wgmma or plan.zips):
        return "a cluster is for wgmma, and for neighbouring blocks"
    if config.resident and not config.batch_first:
        return "resident weights need batch_first"
    if config.kept > 1 and (
        not config.resident or d % config.kept or plan.arrival != "arranged"
    ):
        return "kept must be 1, or divide d, with resident weights and feature-first x"
    # Of the product, for one warp each.
    m_unit, n_unit = 16 * config.m_warps, 8 * (4 // config.m_warps)
    rows, features = plan.rows, plan.features
    if plan.vectors_lead:
        if rows % m_unit or features % n_unit:
            return (
                f"rows and features of a warpgroup must be multiples of {m_unit} and "
                f"{n_unit}, not {rows} and {features}"
            )
    elif features % m_unit:
        return f"features of a warpgroup must be a multiple of {m_unit}, not {features}"
    elif plan.way == "columns" and rows % plan.slab_in[-1]:
        return f"rows of a warpgroup must be a multiple of {plan.slab_in[-1]}"
    elif rows % 32:
        return f"rows of a warpgroup must be a multiple of 32, not {rows}"
    if (needed := plan.smem_bytes) > tiles.SMEM_BYTES:
        return f"{needed:,} bytes of shared memory are more than {tiles.SMEM_BYTES:,}"
    return None
