"""How the one-factor kernel is laid out on the chip."""

import dataclasses
from typing import Literal

from pallas_kernels.common.tiles import MAX_COPY

_MAX_WARPGROUPS = 4
_MAX_CLUSTER = 8  # More than that is not portable.
WGMMA_ROWS = 64  # Of a product; of 16 bits, so many are also as wide as a swizzle.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of the batch in a tile, a multiple of 64.
      features: outputs of a block in a tile, a multiple of 16.
      depth: inputs of a block that are fetched at a time, a multiple of 16.
      split_rows: warpgroups that share the tile's rows.
      split_features: warpgroups that share the outputs of a block.
      m_warps: warps of a warpgroup along the rows of the product.
      stages: chunks of x and weights that are in flight or in use.
      out_stages: slabs of y, of each warpgroup, that may be on their way to HBM.
      ctas: CTAs to launch at most; each takes items until there are none left.
      batch_first: whether the batch is walked through block by block, with few
        weights in use at a time, rather than block after block for each tile.
      resident: whether all weights of a block stay in shared memory for as long as a
        CTA walks through the batch; needs batch_first.
      wgmma: whether warpgroups multiply what lies in shared memory, rather than warps
        what they have loaded into registers; for flat and columns in 16 bits. Wants
        m_warps = 4, two stages or more, a depth in multiples of 64, and for each
        warpgroup rows in multiples of 64.
      cluster: CTAs, at neighbouring tiles of the batch, that share the weights they
        fetch; 1 with resident weights, and with mma.sync unless blocks lie zipped.
      cluster_features: CTAs of the same cluster, at neighbouring tiles of outputs, that
        share the x they fetch; the same holds.
    """

    rows: int = 64
    features: int = 64
    depth: int = 64
    split_rows: int = 1
    split_features: int = 1
    m_warps: Literal[1, 2, 4] = 2
    stages: int = 3
    out_stages: int = 1
    ctas: int = 132
    batch_first: bool = False
    resident: bool = False
    wgmma: bool = False
    cluster: Literal[1, 2, 4] = 1
    cluster_features: Literal[1, 2, 4] = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is not bool and value < 1:
                raise ValueError(f"Config: {field.name} must be positive, got {value}")
        if self.m_warps not in (1, 2, 4):
            raise ValueError(f"Config: m_warps must be 1, 2 or 4, got {self.m_warps}")
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
