"""How `strided` deals out a factor: plain integers, no arrays."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.common.tiles import MAX_COPY, SMEM_BYTES, allocated, divisors

WARPGROUPS = 2
WARPS = 4 * WARPGROUPS  # Of a CTA.
GROUP = 8  # Vectors that a warp multiplies at a time: the columns of mma.sync.
TILE = 16  # Outputs, and inputs, of an operand of mma.sync.
OUT_STAGES = 2
# Runs of a swizzle, or of an odd number of 16 bytes: else rows meet in the banks.
NEIGHBOURS = (64, 56, 40, 32, 24, 16, 8)
CLUSTERS = (1, 2, 4)
MAX_INPUTS = 128
_WEIGHT_REGISTERS = 128  # Of a thread.
_VECTOR_REGISTERS = 48
_LINE = 64  # Features in the 128 bytes of the widest swizzle.
_OTHER_BYTES = 1024  # Barriers.
_BUSY = 0.95  # Of the CTAs, at least.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How a launch of `strided` is dealt out.

    Attributes:
      neighbours: blocks that are next to one another along d, of a CTA; divides d. If
        there are more of them, CTAs read runs of so many features.
      cluster: CTAs that share x; each has its share of the outputs.
      stages: tiles of x in shared memory.
      ctas: at most so many.
    """

    neighbours: int
    cluster: int = 1
    stages: int = 4
    ctas: int = 132


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A launch in integers.

    Attributes:
      shape: the pattern (a, b, c, d).
      batch: vectors in x.
      config: the configuration.
    """

    shape: tuple[int, int, int, int]
    batch: int
    config: Config

    @property
    def inputs(self) -> int:
        """Inputs of a block, as the tensor core takes them."""
        return _round_up(self.shape[2], TILE)

    @property
    def steps(self) -> int:
        """Products of mma.sync along the inputs."""
        return self.inputs // TILE

    @property
    def outputs(self) -> int:
        """Outputs of a block that a CTA computes."""
        return self.shape[1] // self.config.cluster

    @property
    def width(self) -> int:
        """Neighbours of a warp: what a thread loads and stores at a time."""
        return 8 if self.inputs <= 64 else 4

    @property
    def strips(self) -> int:
        """Warps side by side along the neighbours."""
        return max(1, self.config.neighbours // self.width)

    @property
    def tiles_of_warp(self) -> int:
        """Tiles of outputs of a warp."""
        most = _WEIGHT_REGISTERS // (4 * self.width * self.steps)
        tiles = -(-self.outputs // TILE)
        return -(-tiles // -(-tiles // most))

    @property
    def shares(self) -> int:
        """Warps with different outputs of the same neighbours."""
        return -(-self.outputs // (TILE * self.tiles_of_warp))

    @property
    def loads(self) -> int:
        """How often a warp loads its vectors.

        For two tiles of outputs at a time: the sums of more take too many registers.
        """
        return -(-self.tiles_of_warp // 2)

    @property
    def parts(self) -> int:
        """Parts of the inputs, which a warp loads and multiplies one after the other.

        Where there is more than one, a warp has but one tile of outputs.
        """
        fits = 2 * self.width * self.steps <= _VECTOR_REGISTERS
        return 1 if fits or self.steps % 2 else 2

    @property
    def row_groups(self) -> int:
        """Warps with the same blocks and different vectors."""
        return max(1, WARPS // (self.strips * self.shares))

    @property
    def busy_warps(self) -> int:
        """Warps that have work of their own."""
        return self.strips * self.shares * self.row_groups

    @property
    def rows(self) -> int:
        """Vectors in a tile."""
        return GROUP * self.row_groups

    # In shared memory.

    @property
    def is_whole(self) -> bool:
        """Whether rows of x and y move whole, in lines that neighbours fill evenly."""
        neighbours = self.config.neighbours
        return neighbours == self.shape[3] and _LINE % neighbours == 0

    @property
    def per_line(self) -> int:
        """Inputs, or outputs, whose neighbours share a line."""
        return _LINE // self.config.neighbours if self.is_whole else 1

    @property
    def line(self) -> int:
        """Features in a line: what is swizzled, or not at all if that fits none."""
        return self.per_line * self.config.neighbours

    @property
    def lines_in(self) -> int:
        """Lines of a row of x."""
        return self.inputs // self.per_line

    @property
    def lines_out(self) -> int:
        """Lines of a row of y."""
        return TILE * self.tiles_of_warp * self.shares // self.per_line

    @property
    def slot_in(self) -> tuple[int, int, int]:
        """Shape of a tile of x: unused lines after each row part rows by banks.

        Of lines below 128 bytes there are four, so that any two rows take whole 128
        bytes: TMA writes to multiples of them, and a CTA of a cluster fetches some of
        the rows.
        """
        unused = 1 if self.line == _LINE else 4
        return (self.rows, self.lines_in + unused, self.line)

    @property
    def slot_out(self) -> tuple[int, int, int]:
        """Shape of a tile of y: an unused line after each row, as in `slot_in`."""
        return (self.rows, self.lines_out + 1, self.line)

    @property
    def chunks(self) -> int:
        """Tiles of `rows` outputs that the weights of a CTA come in."""
        return -(-TILE * self.tiles_of_warp * self.shares // self.rows)

    @property
    def smem_bytes(self) -> int:
        """Shared memory of a CTA."""
        rows, pitch_in, line = self.slot_in
        sizes = [
            2 * self.config.stages * rows * pitch_in * line,
            2 * OUT_STAGES * rows * self.slot_out[1] * line,
        ]
        return allocated(sizes) + _OTHER_BYTES

    # Over the chip.

    @property
    def abreast(self) -> int:
        """Clusters that walk along the same vectors with other neighbours.

        As many as are next to one another, as they read the same lines of x, unless
        that leaves much of the chip idle.
        """
        parts = self.shape[3] // self.config.neighbours
        most = max(1, self.config.ctas // self.config.cluster)
        busy = {n: most // n * n for n in divisors(parts) if n <= most}
        return max(n for n in busy if busy[n] >= _BUSY * max(busy.values()))

    @property
    def groups(self) -> int:
        """What comes one after another: blocks along a, parts of them along d."""
        a, _, _, d = self.shape
        return a * d // (self.config.neighbours * self.abreast)

    @property
    def tiles(self) -> int:
        """Tiles of the batch."""
        return -(-self.batch // self.rows)

    @property
    def walkers(self) -> int:
        """Teams of clusters abreast, each of which has a run of tiles."""
        most = self.config.ctas // (self.config.cluster * self.abreast)
        return max(1, min(most, self.groups * self.tiles))

    # Which input, and which output, a lane has: so that neither loads nor stores meet
    # in the same banks.

    def input(self, step: int, q: int) -> int:
        """Input q of the four that a lane has in a step, but for the lane's part."""
        first = TILE * step
        match self.input_of_lane:
            case 4:
                return first + q
            case 1:
                return first + 4 * q
            case _:
                return first + 8 * (q // 2) + q % 2

    @property
    def input_of_lane(self) -> int:
        """What the lane's part t, below 4, is multiplied by and added to `input`."""
        if self.line != _LINE:
            return 1
        return {2: 4, 4: 1}.get(self.per_line, 2)

    @property
    def output_turn(self) -> int:
        """By how many bits the lane's part g, of 3, is turned left for its output."""
        return {2: 1, 4: 2}.get(self.per_line, 0)


def plan(shape: Sequence[int], batch: int, config: Config) -> Plan:
    """The plan of a launch.

    Args:
      shape: the pattern (a, b, c, d).
      batch: vectors in x.
      config: the configuration.

    Raises:
      NotImplementedError: if the kernel does not support the sizes, or the
        configuration does not fit them; the message says why.
    """
    a, b, c, d = shape
    found = Plan((a, b, c, d), batch, config)
    neighbours, cluster = config.neighbours, config.cluster
    check_shape(shape)
    _require(
        neighbours in NEIGHBOURS and d % neighbours == 0,
        f"neighbours must be one of {NEIGHBOURS} that divides d = {d}, got "
        f"{neighbours}",
    )
    _require(cluster in CLUSTERS, f"cluster must be one of {CLUSTERS}, got {cluster}")
    _require(
        b % (8 * cluster) == 0,
        f"b = {b} does not consist of {cluster} multiples of 8, one for each CTA of a "
        "cluster",
    )
    _require(cluster <= config.ctas, f"ctas must be {cluster} or more: {config.ctas}")
    warps = found.strips * found.shares
    _require(
        warps <= WARPS,
        f"the weights of {neighbours} neighbouring blocks of {found.outputs} × {c} "
        f"take the registers of {warps} warps, and there are {WARPS}",
    )
    pitch = max(found.slot_in[1], found.slot_out[1])
    _require(pitch <= MAX_COPY, f"rows of {pitch} lines are more than {MAX_COPY}")
    _require(
        config.stages >= found.chunks,
        f"weights come in {found.chunks} tiles, but stages is {config.stages}",
    )
    _require(
        found.smem_bytes <= SMEM_BYTES,
        f"{found.smem_bytes} bytes of shared memory are more than {SMEM_BYTES}",
    )
    return found


def check_shape(shape: Sequence[int]) -> None:
    """Raises NotImplementedError for patterns that no configuration is for."""
    _, b, c, d = shape
    for name, size in (("b", b), ("c", c), ("d", d)):
        _require(size % 8 == 0, f"{name} must be a multiple of 8, got {size}")
    _require(c <= MAX_INPUTS, f"c must be at most {MAX_INPUTS}, got {c}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise NotImplementedError(f"strided: {otherwise}")


def _round_up(n: int, to: int) -> int:
    return -(-n // to) * to
