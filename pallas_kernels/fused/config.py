"""How the fused kernel is laid out on the chip."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, chip
from pallas_kernels.common.tiles import SMEM_BYTES
from pallas_kernels.fused.plan import Plan, plan


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      stages: tiles of x in shared memory, on their way or in use; features first 2 at
        least, of which one gives its memory to the weights at first.
      out_stages: tiles of y in shared memory, features last; features first 0, where
        warps store y as they have it.
      ctas: CTAs to launch at most, of one to a multiprocessor; their teams take tiles
        until there are none left.
    """

    stages: int
    out_stages: int
    ctas: int

    def __post_init__(self) -> None:
        for name, least in (("stages", 1), ("out_stages", 0), ("ctas", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"Config: {name} must be at least {least}, got "
                    f"{getattr(self, name)}"
                )


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
    for stages, out_stages in ((3, 2), (2, 2), (2, 1)) if axis == -1 else ((2, 0),):
        config = Config(stages, out_stages, chip.load().multiprocessors)
        if found.smem_bytes(stages, out_stages) <= SMEM_BYTES:
            break
    check(found, config)
    return config


def check(plan: Plan, config: Config) -> None:
    """Raises NotImplementedError unless the configuration fits the plan."""
    if plan.axis == -1:
        if config.out_stages < 1:
            raise NotImplementedError(
                "fused: features last, y leaves by way of shared memory: out_stages "
                "must be at least 1, got 0"
            )
    elif config.stages < 2 or config.out_stages:
        raise NotImplementedError(
            "fused: features first, stages must be at least 2 and out_stages 0, got "
            f"{config.stages} and {config.out_stages}"
        )
    found = plan.smem_bytes(config.stages, config.out_stages)
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
