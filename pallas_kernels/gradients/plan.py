"""How the kernel of `gradients` cuts its work into tiles; plain Python integers."""

import dataclasses
import math
from collections.abc import Sequence

from pallas_kernels.common import tiles

PANEL = 64  # Features or vectors of 16 bits in 128 bytes: the widest swizzle.
_ITEMSIZE = 2
_MOST = 2  # Panels along either side of a unit: sums of four take 128 registers.


@dataclasses.dataclass(frozen=True)
class Config:
    """How the work is dealt out.

    Attributes:
      stages: panels of x and dy, of 64 vectors, that are fetched ahead.
      out_stages: of dx, that may be on their way to HBM.
      ctas: that share the batch, as far as there are whole shares.
    """

    stages: int = 6
    out_stages: int = 2
    ctas: int = 132

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"Config: {field.name} must be positive, got {value}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A unit of blocks for each CTA, and its share of the batch.

    Attributes:
      shape: the pattern (a, b, c, d).
      batch: vectors.
      blocks: of a unit, side by side along d, or along a if d = 1.
      config: the configuration.
    """

    shape: tuple[int, int, int, int]
    batch: int
    blocks: int
    config: Config

    @property
    def units(self) -> int:
        """How many there are."""
        a, _, _, d = self.shape
        return a * d // self.blocks

    @property
    def panels(self) -> tuple[int, int]:
        """Of a unit, of dy and of x."""
        _, b, c, _ = self.shape
        return self.blocks * b // PANEL, self.blocks * c // PANEL

    @property
    def steps(self) -> int:
        """Panels of vectors in the batch."""
        return -(-self.batch // PANEL)

    @property
    def shares(self) -> int:
        """CTAs that share the batch of a unit."""
        return max(1, min(self.config.ctas // self.units, self.steps))

    @property
    def smem_bytes(self) -> int:
        """Shared memory of a CTA."""
        panel = PANEL * PANEL * _ITEMSIZE
        of_dy, of_x = self.panels
        ring = self.config.stages * (of_dy + of_x)
        return panel * (ring + self.config.out_stages * of_x + of_dy * of_x)


def plan(
    shape: Sequence[int], batch: int, *, feature_first: bool, config: Config
) -> Plan:
    """The plan for a factor.

    Args:
      shape: the pattern (a, b, c, d).
      batch: vectors in x.
      feature_first: whether x is (features, batch).
      config: the configuration.

    Raises:
      NotImplementedError: if the kernel does not take the factor; says why.
    """
    a, b, c, d = shape
    if not feature_first and d > 1:
        raise NotImplementedError(
            f"gradients: features last, TMA moves blocks of d = 1 alone, got {shape}"
        )
    # The fewest blocks that fill panels.
    count = math.lcm(*(PANEL // math.gcd(PANEL, size) for size in (b, c)))
    if (a if d == 1 else d) % count or count * max(b, c) > _MOST * PANEL:
        raise NotImplementedError(
            f"gradients: b and c, or those of a few blocks together, must be {PANEL} "
            f"or {_MOST * PANEL}, got {shape}"
        )
    made = Plan((a, b, c, d), batch, count, config)
    if made.smem_bytes > tiles.SMEM_BYTES:
        raise NotImplementedError(
            f"gradients: {config} takes {made.smem_bytes} bytes of shared memory for "
            f"{shape}, of {tiles.SMEM_BYTES}"
        )
    return made
