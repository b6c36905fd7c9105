"""How the one-factor kernel cuts its work into tiles; plain Python integers.

A factor (a, b, c, d) is a·d independent products. An *item* of work is a tile of one
of them, or of all d neighbours: `rows` vectors of the batch by `features` outputs,
which is summed over chunks of `depth` inputs. Three ways lead from x to the tensor
core, and from it to y:

*flat*     feature-last. Vectors are the rows of the product, x the left operand. With
           d = 1 blocks are runs of features.
*columns*  feature-first, 16 bits: a block is a slice with the batch contiguous.
           Outputs are the rows of the product, x the right operand; with wgmma, which
           reads either operand in either order, it is as in *flat*.
*turned*   feature-first float32: as *columns*, but x is first split into bfloat16
           pieces in shared memory.

Blocks of a feature-last array with d > 1 lie *zipped*: all neighbours' first features,
then their second ones. So do their weights, in w as it is. An item takes all of them,
which are few, and a thread loads their entries side by side, of x and of w alike, and
parts them in its registers into one operand for each block. The sums are zipped again
when they are stored. Nothing is transposed, in HBM or in shared memory. A panel is what
four neighbouring lanes have of a row, which is as much as tells rows apart in shared
memory: eight rows or so of 64 bytes lie in different banks. Of more neighbours a run of
some would be short, and TMA takes as long for 16 bytes as for 128: that is for others
than this kernel.

Weights arrive in one of the ways of `pallas_kernels.factor.arrangement`: those that lie
zipped are fetched as those of d = 1 are; resident ones of a feature-first block are
arranged when a CTA comes to the block, once for all its vectors; all others are
ordered.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

from pallas_kernels.common import tiles
from pallas_kernels.common.slabs import SWIZZLES, panel
from pallas_kernels.factor import arrangement
from pallas_kernels.factor.config import WGMMA_ROWS, Config

Way = Literal["flat", "columns", "turned"]

OUTPUTS = 8  # Of a tile of mma.sync: those of each block that are zipped together.
_LANES = 4  # That share a row of an operand of mma.sync.
_PAD = 8  # Vectors of padding of a row of the turned buffer.


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
    def blocks(self) -> int:
        """Neighbours along d that an item has."""
        return self.factor.d if self.way == "flat" else 1

    @property
    def zips(self) -> bool:
        """Whether these are several, whose features and weights lie zipped."""
        return self.blocks > 1

    @property
    def inputs_per_lane(self) -> int:
        """Zipped inputs that follow one another and that one lane loads: 1, 2 or 4.

        With all blocks' entries, 16 bytes or more, if possible in words of 4 bytes.
        """
        size = self.factor.d * self.item_in
        fitting = (n for n in (1, 2) if n * size >= 16 and n * size % 4 == 0)
        return next(fitting, 4)

    @property
    def panel_depth(self) -> int:
        """Inputs of a block in a panel, if blocks lie zipped."""
        return _LANES * self.inputs_per_lane

    @property
    def zip_swizzle(self) -> bool:
        """Whether a panel's rows are as wide as the widest swizzle.

        Other rows of what lies zipped are apart without one.
        """
        return self.panel_depth * self.blocks * self.item_in == SWIZZLES[0]

    @property
    def turned(self) -> tuple[int, int]:
        """Shape of the turned buffer for a chunk, with padding."""
        return (self.config.depth, self.config.rows + _PAD)

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
        return self.factor.num_blocks // self.blocks

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

        Zipped ones are swizzled only if `zip_swizzle`.
        """
        config = self.config
        if self.zips:
            panels = config.depth // self.panel_depth
            return (panels, config.rows, self.panel_depth * self.blocks)
        if self.way == "flat":
            width = panel(config.depth, self.item_in)
            return (config.depth // width, config.rows, width)
        width = panel(config.rows, self.item_in)
        return (config.rows // width, config.depth, width)

    @property
    def arrival(self) -> arrangement.Arrival:
        """How weights come to lie in shared memory as the product reads them."""
        as_given = self.zips or (
            self.factor.d == 1 and not self.factor.c * self.item_in % 16
        )
        by_cta = not as_given and self.config.resident and self.units is not None
        return arrangement.arrival(self.factor, as_given=as_given, by_cta=by_cta)

    @property
    def units(self) -> tuple[arrangement.Units, ...] | None:
        """In what units weights are arranged, if sizes allow it."""
        return arrangement.units(
            self.factor.b,
            self.features,
            self.factor.c,
            self.weight_width,
        )

    @property
    def weight_width(self) -> int:
        """Inputs by which weights are read at a time, unless they are zipped."""
        return panel(self.config.depth, self.item_in)

    @property
    def slab_weights(self) -> tuple[int, ...]:
        """Shape of a chunk of weights in shared memory, (panels, features, width)."""
        config = self.config
        if self.zips:
            panels = config.depth // self.panel_depth
            return (panels, config.features, self.panel_depth * self.blocks)
        width = self.weight_width
        return (config.depth // width, config.features, width)

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
        if self.zips:
            return (self.features // OUTPUTS, self.rows, OUTPUTS * self.blocks)
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
    def sums_apart(self) -> bool:
        """Whether the tensor core adds up but few products before they join the sums.

        It sums in float32, but cuts off what lies below the last bits of the largest
        addend instead of rounding: always towards zero, so errors grow with the number
        of sums. Of three pieces' products an H200 had 1.7e-6 after 192 inputs and
        7.3e-6 after 1024. Of two pieces, or of 16 bits, all that is far below what the
        operands lose.
        """
        return self.pieces == 3

    @property
    def num_sums(self) -> int:
        """Registers per thread that hold sums."""
        return self.rows * self.features * self.blocks // 128

    @property
    def registers(self) -> int:
        """Registers per thread that sums and the operands of a chunk take, at most."""
        if self.config.wgmma:
            return self.num_sums
        m_warps, n_warps = self.config.m_warps, 4 // self.config.m_warps
        if self.zips:
            # x of all blocks, 16 inputs deep, and twice a tile of weights, as loaded
            # and as operands.
            width = tiles.MMA_K * self.blocks
            operands = width * (self.rows // m_warps + 2 * OUTPUTS) // 64
            return self.num_sums + operands * self.pieces + self._spare_registers
        if self.way == "flat":
            m, n = self.rows, self.features
        else:
            m, n = self.features, self.rows
            if self.way == "columns":
                n = self.slab_in[-1]
        width = self.weight_width * self.pieces
        operands = width * (m // m_warps + n // n_warps) // 64
        apart = (16 if self.way == "flat" else 32) if self.sums_apart else 0
        return self.num_sums + operands + apart

    @property
    def _spare_registers(self) -> int:
        """Those that compiling took beside, for addresses, or numbers to be cut."""
        if self.pieces > 1:
            return 72 if self.sums_apart else 48
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
    def ahead(self) -> int:
        """Chunks that are on their way while one is multiplied."""
        config = self.config
        # What others may still read is fetched anew one chunk later.
        waits = config.warpgroups > 1 and not config.wgmma
        return max(0, config.stages - (2 if waits else 1))

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
            parts.append(2 * self.pieces * math.prod(self.turned))
        parts.append(1024)  # Barriers.
        return tiles.allocated(parts)


def embed(shape: Sequence[int], *, feature_first: bool, item_in: int) -> tiles.Factor:
    """The factor as the kernel applies it: neighbours merged where blocks are small.

    Of all embeddings in blocks that TMA can address, the one with the fewest products
    once inputs are padded to 16 and outputs to 16. Arguments are those of `tiling`.

    Raises:
      NotImplementedError: if there is none that has not many more products than it
        would take without regard to TMA.
    """
    found = _embeddings(tuple(shape), feature_first, item_in)
    if found is None:
        raise NotImplementedError(
            f"factor: of a feature-last array, blocks of shape {tuple(shape)} have no "
            "embedding whose runs of features begin at multiples of 16 bytes, and "
            f"whose d is at most {_MAX_RUN[item_in]}, without many more products"
        )
    return found


# Blocks that an item has together at most; by bytes of an entry.
_MAX_RUN = {2: 12, 4: 7}
_MAX_MERGED = 64
_MORE_PRODUCTS = 2  # That merging may cost so that TMA can address blocks.


@functools.cache
def _embeddings(
    shape: tuple[int, ...], feature_first: bool, item_in: int
) -> tiles.Factor | None:
    a, b, c, d = shape

    def products(one: tiles.Factor) -> tuple[int, int]:
        padded = one.num_blocks * -(-one.b // 16) * -(-one.c // 16)
        return padded, one.merged_a * one.merged_d

    ways = [
        tiles.Factor(a // u, b * u * v, c * u * v, d // v, u, v)
        for u in tiles.divisors(a)
        for v in tiles.divisors(d)
        if u * v <= _MAX_MERGED
    ]
    fitting = [one for one in ways if feature_first or _has_whole_rows(one, item_in)]
    best = min(fitting, key=products, default=None)
    most = _MORE_PRODUCTS * products(min(ways, key=products))[0]
    return None if best is None or products(best)[0] > most else best


def _has_whole_rows(factor: tiles.Factor, item_in: int) -> bool:
    """Whether TMA can copy rows of a block's features, all d neighbours zipped."""
    aligned = not (factor.b * factor.d % 8 or factor.c * factor.d % 8)
    return aligned and factor.d <= _MAX_RUN[item_in]


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
    factor = embed(shape, feature_first=feature_first, item_in=item_in)
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
    config = plan.config
    if config.wgmma:
        if plan.item_in != 2 or plan.zips:
            return "wgmma is for 16 bits, and for d = 1 or features first"
        if plan.feature_first and plan.item_out == 4:
            return "wgmma is for a result of 16 bits, if features come first"
    if config.cluster_size > 1 and not (config.wgmma or plan.zips):
        return "a cluster is for wgmma, and for neighbouring blocks"
    if config.resident and not config.batch_first:
        return "resident weights need batch_first"
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
