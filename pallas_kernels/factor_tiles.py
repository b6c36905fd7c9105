"""How the one-factor kernel cuts its work into tiles; plain Python integers.

A factor (a, b, c, d) is a·d independent products. An *item* of work is a tile of one
of them, or of several neighbours along d: `rows` vectors of the batch by `features`
outputs, which is summed over chunks of `depth` inputs. Three ways lead from x to the
tensor core, and from it to y:

*flat*     feature-last, d = 1: blocks are runs of features. Vectors are the rows of
           the product, x the left operand.
*columns*  feature-first, 16 bits: a block is a slice with the batch contiguous.
           Outputs are the rows of the product, x the right operand; with wgmma, which
           reads either operand in either order, it is as in *flat*.
*turned*   everything else is first brought into that form in shared memory: of a
           feature-last x with d > 1 a run of neighbouring features is transposed, and
           float32 is split into bfloat16 pieces on the way.

In the turned buffer feature f of a chunk lies at [f // run, f mod run, vector], a run
being a multiple of 8 features. Runs are padded to an odd number of rows, and rows to
an odd number of 16-byte units: then any eight features that an 8 × 8 matrix is loaded
from, neighbours or of one block, lie in different banks. Where d is no multiple of 8,
a run holds several inputs of a block, `interleave`; the weights are put in that order.

Weights arrive in one of the three ways of `pallas_kernels.arrangement`. Of d > 1,
resident ones are arranged when a CTA comes to a block, once for all its vectors, and
all others are ordered.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from pallas_kernels import arrangement, tiles
from pallas_kernels.slabs import panel
from pallas_kernels.tiles import MAX_COPY

Way = Literal["flat", "columns", "turned"]

_MAX_WARPGROUPS = 4
WGMMA_ROWS = 64  # Of a product; of 16 bits, so many are also as wide as a swizzle.
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
        CTA walks through the batch; needs batch_first.
      ordered: whether XLA puts resident weights of d > 1 in order before the launch,
        as it does those that are not resident, rather than each CTA for itself.
      wgmma: whether warpgroups multiply what lies in shared memory, rather than warps
        what they have loaded into registers; for flat and columns in 16 bits. Wants
        m_warps = 4, two stages or more, a depth in multiples of 64, and for each
        warpgroup rows in multiples of 64.
      cluster: CTAs, at neighbouring tiles of the batch, that share the weights they
        fetch; 1 without wgmma or with resident weights.
      kept: neighbours along d whose weights stay together, as they are together in w;
        1 unless x is feature-first, d > 1, and weights are resident.
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
    ordered: bool = False
    wgmma: bool = False
    cluster: Literal[1, 2, 4] = 1
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
        if self.cluster not in (1, 2, 4):
            raise ValueError(f"Config: cluster must be 1, 2 or 4, got {self.cluster}")
        if self.cluster > 1 and (self.resident or not self.wgmma):
            raise ValueError(
                f"Config: cluster must be 1 without wgmma, and with resident weights, "
                f"got {self.cluster}"
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
    def transposes(self) -> bool:
        """Whether the turned buffer holds a transpose of what was fetched."""
        return self.way == "turned" and not self.feature_first

    @property
    def vectors_lead(self) -> bool:
        """Whether vectors, not outputs, are the rows of the product."""
        return self.way == "flat" or self.config.wgmma

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
        return self.groups * self.batch_steps * self.feature_tiles

    @property
    def ctas(self) -> int:
        """CTAs that are launched."""
        return self.clusters * self.config.cluster

    @property
    def clusters(self) -> int:
        """Clusters that they form."""
        return min(max(1, self.config.ctas // self.config.cluster), self.items)

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
    def arrival(self) -> arrangement.Arrival:
        """How weights come to lie in shared memory as the product reads them."""
        by_cta = self.config.resident and not self.config.ordered
        return arrangement.arrival(
            self.factor,
            as_rows=not self.factor.c * self.item_in % 16,
            by_cta=by_cta and self.units is not None,
        )

    @property
    def units(self) -> tuple[arrangement.Units, ...] | None:
        """In what units weights are arranged, if sizes allow it."""
        factor, s = self.factor, self.interleave
        return arrangement.units(
            factor.b // s,
            self.features // s,
            factor.c // s,
            self.weight_width,
            math.gcd(s * self.kept, s * factor.d),
            self.item_in,
        )

    @property
    def weight_width(self) -> int:
        """Inputs by which weights are read at a time."""
        return panel(self.config.depth // self.interleave, self.item_in)

    @property
    def slab_weights(self) -> tuple[int, ...]:
        """The same of the weights, (panels, blocks, features, width)."""
        config, width = self.config, self.weight_width
        return (config.depth // width, self.kept, config.features, width)

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
    def output_unit(self) -> int:
        """Outputs in one tile of a warpgroup's mma.sync."""
        m_warps = self.config.m_warps
        return 8 * (4 // m_warps) if self.way == "flat" else 16 * m_warps

    @property
    def num_sums(self) -> int:
        """Registers per thread that hold sums."""
        return self.rows * self.features * self.blocks // 128

    @property
    def registers(self) -> int:
        """Registers per thread that sums and the operands of a chunk take, at most."""
        if self.config.wgmma:
            return self.num_sums
        width = self.weight_width
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
            parts.append(2 * planes * math.prod(self.turned(config.depth)))
            if self.transposes:
                parts.append(
                    2 * self.pieces_out * math.prod(self.turned(config.features))
                )
        parts.append(1024)  # Barriers.
        return tiles.allocated(parts)


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


def way_of(factor: tiles.Factor, *, feature_first: bool, item_in: int) -> Way:
    """From x to the tensor core, see the module's docstring."""
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
    way = way_of(factor, feature_first=feature_first, item_in=item_in)
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
        if plan.way == "turned" or plan.item_in != 2:
            return "wgmma is for 16 bits, and d = 1 or a feature-first x"
        if plan.feature_first and plan.item_out == 4:
            return "wgmma is for a result of 16 bits, if features come first"
    if plan.transposes:
        if config.blocks != d and (d % config.blocks or config.blocks not in (8, 16)):
            return f"blocks must be {d}, or 8 or 16 if that divides it"
        if config.depth % (16 * plan.interleave):
            return f"depth must be a multiple of {16 * plan.interleave}"
    elif config.blocks > 1:
        return "blocks must be 1"
    if config.resident and not config.batch_first:
        return "resident weights need batch_first"
    if config.kept > 1 and (
        not config.resident
        or d % config.kept
        or plan.transposes
        or plan.arrival != "arranged"
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
