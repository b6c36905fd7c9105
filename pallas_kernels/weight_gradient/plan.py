"""How a weight gradient is dealt out: what a CTA, a warpgroup and a warp have."""

import dataclasses
import functools
import math

from pallas_kernels.common.tiles import MAX_COPY, SMEM_BYTES, Shape
from pallas_kernels.common.zipped_products import DEPTH, EIGHT, LINE, TILE, Warps

ROOM = SMEM_BYTES - 1024  # Barriers apart.
_WARPGROUPS = {1: 3, 2: 2}  # At most, by how many times 64 sums a thread has.


@dataclasses.dataclass(frozen=True)
class Config:
    """How a weight gradient is dealt out over the chip.

    Attributes:
      neighbours: blocks along d that a CTA has.
      outputs: features of dy of each block that a CTA has, a multiple of 16.
      inputs: features of x of each block that a CTA has, a multiple of 16.
      shares: of the batch, each with sums of its own, that are added up afterwards.
      cluster: CTAs side by side along the outputs and along the inputs, which send one
        another what they have of x and of dy.
      stages: steps along the batch that are in shared memory at a time.
    """

    neighbours: int
    outputs: int
    inputs: int
    shares: int
    cluster: tuple[int, int] = (1, 1)
    stages: int = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration, with what follows from it.

    Attributes:
      shape: the pattern (a, b, c, d).
      batch: vectors.
      config: what was asked for.
      warps: of a warpgroup.
      held: tiles of 16 outputs that a warp has.
      groups: of eight neighbours that a warp has.
    """

    shape: Shape
    batch: int
    config: Config
    warps: Warps
    held: int
    groups: int

    @property
    def merged(self) -> int:
        """Features of a line of 128 bytes; 2 if they lie in rows of their own."""
        return LINE // self.shape[3] if self.has_whole_lines else 2

    @property
    def has_whole_lines(self) -> bool:
        return self.config.neighbours == self.shape[3] < LINE

    @property
    def depth(self) -> int:
        """Vectors of a step."""
        return DEPTH * self.warps.vectors

    @property
    def steps(self) -> int:
        """Along the batch, the last one filled up with zeros."""
        return -(-self.batch // self.depth)

    @property
    def row(self) -> int:
        """Entries that lie side by side in shared memory, in a swizzle."""
        return LINE if self.has_whole_lines else self.config.neighbours

    @property
    def warpgroups(self) -> tuple[int, int]:
        """Along the outputs and along the inputs."""
        return (
            self.config.outputs // (TILE * self.warps.outputs * self.held),
            self.config.inputs // (TILE * self.warps.inputs),
        )

    @property
    def clusters(self) -> tuple[int, int, int, int]:
        """That differ in a, neighbours, outputs and inputs."""
        a, b, c, d = self.shape
        config = self.config
        return (
            a,
            d // config.neighbours,
            -(-b // (config.outputs * config.cluster[0])),
            -(-c // (config.inputs * config.cluster[1])),
        )

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """Of all shares' sums, filled up to whole CTAs."""
        a, _, _, d = self.shape
        config, (_, _, outputs, inputs) = self.config, self.clusters
        return (
            config.shares * self.warps.vectors,
            a,
            outputs * config.cluster[0] * config.outputs,
            inputs * config.cluster[1] * config.inputs,
            d,
        )

    @property
    def stage_bytes(self) -> int:
        config = self.config
        return 2 * self.depth * (config.outputs + config.inputs) * config.neighbours

    @property
    def smem_bytes(self) -> int:
        return self.config.stages * self.stage_bytes


def make_plan(shape: Shape, batch: int, config: Config) -> Plan:
    """The plan of a configuration.

    Raises:
      NotImplementedError: if the kernel cannot do it; the message says why.
    """
    found = (config.neighbours, config.outputs, config.inputs)
    if shape[3] % config.neighbours or config.neighbours not in (8, 16, 32, 64):
        raise _unsupported(shape, f"wants 8, 16, 32 or 64 neighbours of d, got {found}")
    if config.outputs % TILE or config.inputs % TILE:
        raise _unsupported(shape, f"wants tiles of whole 16 features, got {found}")
    if config.shares < 1 or config.stages < 1:
        raise ValueError(
            f"weight_gradient: shares and stages must be positive: {config}"
        )
    warps, held, groups = _deal(
        config.outputs // TILE, config.inputs // TILE, config.neighbours // EIGHT
    )
    plan = Plan(shape, batch, config, warps, held, groups)
    count, most = math.prod(plan.warpgroups), _WARPGROUPS.get(held * groups, 0)
    if count > most:
        raise _unsupported(
            shape,
            f"has {64 * held * groups} sums a thread in {count} warpgroups of a CTA "
            f"with {found}, where registers suffice for {most}",
        )
    if plan.smem_bytes > ROOM:
        raise _unsupported(
            shape,
            f"takes {plan.smem_bytes} bytes of shared memory with {config}, where a "
            f"CTA has {ROOM}",
        )
    for features, others in (
        (config.outputs, config.cluster[1]),
        (config.inputs, config.cluster[0]),
    ):
        lines = features // plan.merged
        if lines > MAX_COPY or lines % others:
            raise _unsupported(
                shape,
                f"copies {lines} lines of features, which must be at most "
                f"{MAX_COPY} and come apart for {others} CTAs of a cluster",
            )
    return plan


@functools.cache
def _deal(outputs: int, inputs: int, groups: int) -> tuple[Warps, int, int]:
    """Deals tiles and groups of eight out over warps, with 64 or 128 sums a thread."""
    neighbours = min(groups, 4)
    each = groups // neighbours
    # What a warp has more of one side it need not load again of the other.
    held = 2 if each == 1 and outputs % 2 == 0 and outputs * inputs * groups > 8 else 1
    others, by_outputs, by_inputs = 4 // neighbours, 1, 1
    if others > 1 and outputs // held % 2 == 0:
        others, by_outputs = others // 2, 2
    if others > 1 and inputs % 2 == 0:
        others, by_inputs = others // 2, 2
    if others > 1 and outputs // held % (2 * by_outputs) == 0:
        others, by_outputs = others // 2, 2 * by_outputs
    if others > 1 and inputs % (2 * by_inputs) == 0:
        others, by_inputs = others // 2, 2 * by_inputs
    return Warps(others, by_outputs, by_inputs, neighbours), held, each


def _unsupported(shape: Shape, why: str) -> NotImplementedError:
    return NotImplementedError(f"weight_gradient: a factor of shape {shape} {why}")
