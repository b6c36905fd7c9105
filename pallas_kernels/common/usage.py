"""What a launch asks of a chip: what every kernel's plan says, in one form.

A kernel's `cost.py` makes a `Usage` of a plan by counting; `pallas_kernels.common.chip`
knows what it takes. No rate, no time and no name of a chip stands in a kernel.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one launch asks of a chip.

    Counts are of the whole launch, all CTAs together, unless they are said to be per
    tile or per CTA. A *tile* is what a CTA does between two turns of its outermost
    loop; tiles of a launch are taken to be alike.

    Attributes:
      hbm_bytes: read and written in device memory: every array once, however often the
        L2 cache is asked for it.
      l2_bytes: that multiprocessors read from L2 and write to it, in whole sectors of
        32 bytes; what comes from device memory is among them. Of what a cluster shares
        by multicast, one copy.
      runs: (bytes, how many) of what TMA copies move, in and out: a run is what the
        innermost axis of a copy's box has. Runs of more than 128 bytes count as runs of
        128.
      lines: times that a warp's load or store of global memory, or cp.async, touches a
        line of 128 bytes, by threads rather than TMA: at best one for each line.
      wavefronts: of shared memory, by threads and by wgmma: 128 bytes each where no
        banks conflict, more of them where they do. What TMA writes and reads is not
        among them.
      instructions: that warps issue, each counted once for its warp.
      mmas: products of 16 × 8 × 16 by mma.sync, in 16 bits; a float32 product in three
        pieces counts as six.
      wgmma_flops: floating-point operations by wgmma.
      peer_bytes: that CTAs read from, or write to, shared memory of others in their
        cluster.
      tiles: of the launch.
      ctas: that are launched.
      per_multiprocessor: of these that a multiprocessor has room for; see
        `Chip.ctas_per_multiprocessor`.
      cluster: CTAs of a cluster.
      warps: of a CTA, that issue instructions.
      trips: round trips to memory that a CTA waits for, one after the other, for each
        tile: the fetches of a tile that follow one another, over how many of them are
        in flight. With a ring of 4 stages and two chunks a tile, 2 / 4.
      meetings: barriers that a CTA's warpgroups meet at, one after the other, for each
        tile; those of clusters count four times.
      prologue_bytes: that a CTA reads before its first tile, and all over again later,
        while it computes nothing: weights, in bytes of L2.
      prologue_trips: round trips that it waits for meanwhile, one after the other; the
        first fetch of its first tile is counted by the chip already.
    """

    hbm_bytes: float
    l2_bytes: float
    tiles: int
    ctas: int
    runs: tuple[tuple[int, float], ...] = ()
    lines: float = 0.0
    wavefronts: float = 0.0
    instructions: float = 0.0
    mmas: float = 0.0
    wgmma_flops: float = 0.0
    peer_bytes: float = 0.0
    per_multiprocessor: int = 1
    cluster: int = 1
    warps: int = 16
    trips: float = 0.0
    meetings: float = 0.0
    prologue_bytes: float = 0.0
    prologue_trips: float = 0.0

    def __post_init__(self) -> None:
        for field in ("tiles", "ctas", "per_multiprocessor", "cluster", "warps"):
            value = getattr(self, field)
            if value < 1:
                raise ValueError(f"Usage: {field} must be positive, got {value}")
