"""How the chain kernel is laid out on the chip, and which layout should be fastest."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import jax

from pallas_kernels import (
    arguments,
    chain_steps,
    chips,
    pieces,
    tiles,
    traffic,
    tuned,
)
from pallas_kernels.chain_plan import Plan, Types

_MAX_BARRIERS = 32  # In one allocation.
_CLUSTERS = (1, 2, 4, 8, 16)
_WORTH = 1.25  # A cluster has to be predicted to be so much faster.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of the batch in a tile, a multiple of 16·m_warps.
      warpgroups: warpgroups of 128 threads in a CTA.
      m_warps: warps of a warpgroup along the batch, the rest along output features.
      stages: units whose x and weights are in flight or in use, per warpgroup.
      out_stages: slabs of y that may be on their way to HBM, per warpgroup.
      shares: shares of the last factor's rows, applied and stored one after another
        where y is stored from a buffer.
      ctas: CTAs to launch at most; each, or each cluster, takes tiles until there are
        none left.
      cluster: CTAs that share the features of a tile out.
      resident: factors whose weights stay in shared memory for the whole launch: first
        those that the kernel then brings into order itself, instead of XLA, the
        smallest first; then the smallest. Those of the others are fetched for each
        tile.
    """

    rows: int = 32
    warpgroups: int = 4
    m_warps: Literal[1, 2, 4] = 2
    stages: int = 2
    out_stages: int = 2
    shares: int = 1
    ctas: int = 264
    cluster: int = 1
    resident: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1 and field.name != "resident":
                raise ValueError(f"Config: {field.name} must be positive, got {value}")
        if self.resident < 0:
            raise ValueError(
                f"Config: resident must not be negative, got {self.resident}"
            )
        if self.cluster not in _CLUSTERS:
            raise ValueError(
                f"Config: cluster must be one of {_CLUSTERS}, got {self.cluster}"
            )
        if self.m_warps not in (1, 2, 4):
            raise ValueError(f"Config: m_warps must be 1, 2 or 4, got {self.m_warps}")
        if self.rows % self.mma.m or self.rows > tiles.MAX_COPY:
            raise ValueError(
                f"Config: rows must be a multiple of 16·m_warps = {self.mma.m} and at "
                f"most {tiles.MAX_COPY}, got {self.rows}"
            )
        if self.warpgroups > 8:
            raise ValueError(
                f"Config: warpgroups must be at most 8, got {self.warpgroups}"
            )
        if self.warpgroups * self.stages > _MAX_BARRIERS:
            raise ValueError(
                f"Config: warpgroups · stages must be at most {_MAX_BARRIERS}, got "
                f"{self.warpgroups} · {self.stages}"
            )

    @property
    def mma(self) -> tiles.Mma:
        """The tile of one mma."""
        return tiles.Mma(self.m_warps)


_ROWS = (16, 32, 64, 128)
_M_WARPS: tuple[Literal[1, 2, 4], ...] = (1, 2, 4)
_SHARES = (1, 2, 4)
_WARPGROUPS = (1, 2, 3, 4, 6, 8)
_STAGES = (1, 2, 3, 4, 6, 8)
_OUT_STAGES = (1, 2)


@tuned.before_rule("chain", Config)
def default_config(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """The configuration that should be fastest: as measured, or as predicted.

    What was measured is in tables (`pallas_kernels.tuned`); without them
    `pallas_kernels.traffic` tells.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      dtype: of x and the factors.
      batch: vectors in x.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: as in `chain`.
      device: whose measurements count; see `pallas_kernels.tuned.lookup`.

    Raises:
      NotImplementedError: if no configuration fits the chain; the message says why
        the one that needs least does not.
    """
    types = types_of(dtype, out_dtype, precision)
    check_runs(shapes, types, batch, axis)
    best, least = math.inf, None
    reason: NotImplementedError | None = None
    batch = max(batch, 1)
    for tile in _tiles(len(shapes)):
        try:
            plan = plan_for(shapes, types, tile, axis)
            check_smem(
                plan, dataclasses.replace(tile, warpgroups=1, stages=1, out_stages=1)
            )
        except NotImplementedError as error:
            reason = reason or error
            continue
        for resident in range(len(shapes) + 1):
            kept = dataclasses.replace(tile, resident=resident)
            found = _best_crew(plan.keeping(resident), kept, batch, best)
            if found is not None:
                best, least = found
    if least is None:
        raise reason or NotImplementedError(
            f"chain: the patterns {list(shapes)} need more registers than there are"
        )
    return least


def _tiles(num_factors: int) -> Iterator[Config]:
    """Configurations that differ in more than what a CTA's warpgroups share."""
    for cluster, rows, m_warps in itertools.product(_CLUSTERS, _ROWS, _M_WARPS):
        if rows % tiles.Mma(m_warps).m or (cluster > 1 and num_factors == 1):
            continue
        for shares in _SHARES:
            yield Config(rows=rows, m_warps=m_warps, shares=shares, cluster=cluster)


def _best_crew(
    plan: Plan, config: Config, batch: int, best: float
) -> tuple[float, Config] | None:
    """The fastest of the configurations that differ in a CTA's crew and its stages.

    Returns:
      Its seconds, more than predicted for clusters, and itself; None if there is none
      below `best`.
    """
    moved = traffic.count(plan, rows=config.rows, mma=config.mma)
    worth = _WORTH if plan.cluster > 1 else 1.0
    if worth * batch * traffic.least_seconds(plan, moved) >= best:
        return None
    least = None
    for warpgroups, stages, out_stages in itertools.product(
        _WARPGROUPS, _STAGES, _OUT_STAGES
    ):
        if warpgroups * stages > _MAX_BARRIERS:
            continue
        crew = dataclasses.replace(
            config, warpgroups=warpgroups, stages=stages, out_stages=out_stages
        )
        seconds = worth * _seconds(plan, crew, batch, moved)
        if seconds < best:
            best, least = seconds, crew
    return None if least is None else (best, _filling(plan, least))


def _filling(plan: Plan, config: Config) -> Config:
    """The configuration with as many clusters as run at once: no more wait for room."""
    if config.cluster == 1:
        return config
    together = traffic.resident_ctas(
        plan,
        rows=config.rows,
        mma=config.mma,
        warpgroups=config.warpgroups,
        smem_bytes=smem_bytes(plan, config),
    )
    ctas = chips.H200.clusters(config.cluster) * config.cluster * together
    return dataclasses.replace(config, ctas=ctas)


def predicted_seconds(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> float:
    """How long a launch should take on an H200, by `pallas_kernels.traffic`.

    Args:
      shapes, dtype, batch, axis, out_dtype, precision: as `default_config` has them.
      config: None for `default_config`.

    Returns:
      Seconds; infinite if the configuration does not fit the chip.

    Raises:
      NotImplementedError: as `default_config` does.
    """
    config = config or default_config(
        shapes, dtype, batch, axis=axis, out_dtype=out_dtype, precision=precision
    )
    types = types_of(dtype, out_dtype, precision)
    return _seconds(plan_for(shapes, types, config, axis), config, batch)


def _seconds(
    plan: Plan, config: Config, batch: int, moved: traffic.Traffic | None = None
) -> float:
    needed = smem_bytes(plan, config)
    if needed > tiles.SMEM_BYTES or not _is_even(plan, config):
        return math.inf
    return traffic.seconds(
        plan,
        batch=batch,
        rows=config.rows,
        mma=config.mma,
        warpgroups=config.warpgroups,
        stages=config.stages,
        smem_bytes=needed,
        moved=moved,
    )


def types_of(
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None,
    precision: jax.lax.PrecisionLike,
) -> Types:
    """The types that a tile passes through; raises NotImplementedError."""
    x, y = arguments.check_dtypes("chain", dtype, out_dtype)
    return Types(x.name, y.name, pieces.count(x, precision))


def check_runs(
    shapes: Sequence[Sequence[int]], types: Types, batch: int, axis: Literal[0, -1]
) -> None:
    """Raises NotImplementedError unless TMA can move rows of x and of the result."""
    (a, b, _, d), (a_in, _, c_in, d_in) = shapes[0], shapes[-1]
    for what, features, num_bytes in (
        ("x", a_in * c_in * d_in, types.x_bytes),
        ("the result", a * b * d, types.y_bytes),
    ):
        shape = (batch, features) if axis == -1 else (features, batch)
        arguments.check_runs("chain", what, shape, num_bytes, axis)


def plan_for(
    shapes: Sequence[Sequence[int]],
    types: Types,
    config: Config,
    axis: Literal[0, -1],
) -> Plan:
    """Steps and buffers of a chain; raises NotImplementedError if there are none."""
    return chain_steps.plan(
        shapes,
        types,
        rows=config.rows,
        mma=config.mma,
        batch_first=axis == -1,
        shares=config.shares,
        cluster=config.cluster,
        resident=config.resident,
    )


def smem_bytes(plan: Plan, config: Config) -> int:
    """Bytes of shared memory of one CTA."""
    return plan.smem_bytes(
        config.rows,
        warpgroups=config.warpgroups,
        stages=config.stages,
        out_stages=config.out_stages,
    )


def _is_even(plan: Plan, config: Config) -> bool:
    """Whether all warpgroups exchange as many features."""
    return plan.exchange is None or plan.exchange.units % config.warpgroups == 0


def check(plan: Plan, config: Config) -> None:
    """Raises NotImplementedError if the plan does not go with the configuration."""
    check_smem(plan, config)
    if not _is_even(plan, config):
        assert plan.exchange is not None
        raise NotImplementedError(
            f"chain: {plan.exchange.units} tiles cannot be exchanged by "
            f"{config.warpgroups} warpgroups evenly"
        )


def check_smem(plan: Plan, config: Config) -> None:
    """Raises NotImplementedError if a CTA needs more shared memory than there is."""
    if (needed := smem_bytes(plan, config)) > tiles.SMEM_BYTES:
        factors = [(f.a, f.b, f.c, f.d) for f in plan.factors]
        raise NotImplementedError(
            f"chain: {factors} need {needed:,} bytes of shared memory with {config}, "
            f"more than {tiles.SMEM_BYTES:,}"
        )
