"""How the fused kernel is laid out on the chip."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, chip, tuned
from pallas_kernels.common.tiles import SMEM_BYTES
from pallas_kernels.fused.plan import Plan, plan


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of a tile: 16 features last, 32 or 64 features first.
      stages: tiles of x in shared memory, on their way or in use.
      out_stages: tiles of y in shared memory, features last; features first 0, where
        warps store y as they have it.
      ctas: CTAs to launch at most, of one to a multiprocessor; their teams take tiles
        until there are none left.
    """

    rows: int
    stages: int
    out_stages: int
    ctas: int

    def __post_init__(self) -> None:
        for name, least in (
            ("rows", 16),
            ("stages", 1),
            ("out_stages", 0),
            ("ctas", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"Config: {name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )


@tuned.before_rule("fused", Config)
def default_config(
    shapes: Sequence[arguments.Shape],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """The configuration that `fused` takes if it is given none.

    Args:
      shapes: patterns (a, b, c, d) of the factors, in the order of the matrix product.
      dtype: of x and of the factors.
      batch: vectors of x.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: as in `fused`.

    Raises:
      NotImplementedError: if the kernel does not take the case; the message says why.
    """
    del precision  # Products of 16-bit numbers are exact in float32.
    found = plan(tuple(shapes), jnp.dtype(dtype), out_dtype, axis)
    check_batch(found, batch)
    ctas = chip.load().multiprocessors

    def longest(rows: int) -> int:
        """Vectors of the team that has most."""
        return rows * -(-batch // (rows * ctas * found.teams))

    if axis == -1:
        candidates = [(16, 3, 2), (16, 2, 2), (16, 2, 1)]
    else:
        # TMA is faster with runs of 128 bytes than of 64.
        candidates = [(64, 1, 0)] if longest(64) <= longest(32) else []
        candidates += [(32, 2, 0), (32, 1, 0)]
    for sizes in candidates:
        config = Config(*sizes, ctas)
        if found.smem_bytes(*sizes) <= SMEM_BYTES:
            break
    check(found, config)
    return config


def check(plan: Plan, config: Config) -> None:
    """Raises NotImplementedError unless the configuration fits the plan."""
    sizes = (16,) if plan.axis == -1 else (32, 64)
    if config.rows not in sizes:
        raise NotImplementedError(
            f"fused: with axis={plan.axis}, rows must be one of {sizes}, got "
            f"{config.rows}"
        )
    if (plan.axis == -1) != (config.out_stages > 0):
        raise NotImplementedError(
            "fused: y leaves by way of shared memory features last only: out_stages "
            f"must be at least 1 there, and otherwise 0; got {config.out_stages} with "
            f"axis={plan.axis}"
        )
    found = plan.smem_bytes(config.rows, config.stages, config.out_stages)
    if found > SMEM_BYTES:
        raise NotImplementedError(
            f"fused: {config} takes {found} bytes of shared memory, a CTA has "
            f"{SMEM_BYTES}"
        )


def check_batch(plan: Plan, batch: int) -> None:
    """Raises NotImplementedError unless the batch can be cut into tiles."""
    if plan.axis == -1 or not batch:
        return
    if batch % 8:
        raise NotImplementedError(
            "fused: features first, TMA moves rows of whole 16 bytes: the batch must "
            f"be a multiple of 8, got {batch}"
        )
