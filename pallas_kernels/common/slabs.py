"""Shared memory that TMA copies to and from."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

SWIZZLES = (128, 64, 32)  # Bytes.


def panel(extent: int, num_bytes: int) -> int:
    """Entries of one panel of a slab: what TMA swizzles is 128, 64 or 32 bytes wide.

    A slab is cut along its contiguous axis into panels as wide as one swizzle, so that
    any eight rows that an 8 × 8 matrix is loaded from lie in different banks.

    Args:
      extent: entries of the slab's contiguous axis, a multiple of 16 bytes.
      num_bytes: of an entry.

    Returns:
      The widest panel that divides the extent; 16 bytes, not swizzled, if no swizzle
      does.
    """
    return next(
        size // num_bytes for size in (*SWIZZLES, 16) if extent * num_bytes % size == 0
    )


def slab(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, *, tiled: bool = False
) -> Any:
    """Scratch in shared memory, swizzled if its last axis is as wide as a swizzle.

    Args:
      shape: of the scratch.
      dtype: of its entries.
      tiled: for wgmma, which wants the last axis to be a swizzle, and tiles of 8 rows.
        TMA then copies to `compat.untiled`.
    """
    size = shape[-1] * jnp.dtype(dtype).itemsize
    if size not in SWIZZLES:
        return plgpu.SMEM(shape, dtype)
    swizzle = plgpu.SwizzleTransform(size)  # type: ignore[abstract]
    if not tiled:
        return plgpu.SMEM(shape, dtype, transforms=(swizzle,))
    tiles = plgpu.TilingTransform((8, shape[-1]))  # type: ignore[abstract]
    return plgpu.SMEM(shape, dtype, transforms=(tiles, swizzle))
