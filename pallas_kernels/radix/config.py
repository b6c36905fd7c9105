"""How the radix kernel is laid out on the chip."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from pallas_kernels.common import chip, tiles
from pallas_kernels.radix import plan as passes

_WARPGROUPS = (1, 2, 4)
_CHIP = chip.load()


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of the batch in a tile, at most 256.
      warpgroups: warpgroups of 128 threads in a CTA: 1, 2 or 4.
      stages: tiles of x in shared memory, on their way or in use.
      occupancy: CTAs that are to fit a multiprocessor and share its memory.
      ctas: CTAs to launch at most, if there are no more parts; each takes tiles until
        there are none left.
      parts_a, parts_d: into how many parts a single factor is cut along a and d; 1 for
        several factors.
    """

    rows: int = 16
    warpgroups: int = 4
    stages: int = 1
    occupancy: int = 1
    ctas: int = _CHIP.multiprocessors
    parts_a: int = 1
    parts_d: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"Config: {field.name} must be positive, got {value}")
        if self.rows > tiles.MAX_COPY:
            raise ValueError(
                f"Config: rows must be at most {tiles.MAX_COPY}, got {self.rows}"
            )
        if self.warpgroups not in _WARPGROUPS:
            raise ValueError(
                f"Config: warpgroups must be 1, 2 or 4, got {self.warpgroups}"
            )

    @property
    def parts(self) -> int:
        """Parts of a factor, in all."""
        return self.parts_a * self.parts_d

    def tiles(self, batch: int) -> int:
        """Tiles of a part."""
        return -(-batch // self.rows)

    def teams(self, batch: int) -> int:
        """CTAs that share the tiles of a part."""
        return max(1, min(self.ctas // self.parts, self.tiles(batch)))


def plan_for(
    shapes: tuple[passes.Shape, ...],
    types: tuple[jnp.dtype, jnp.dtype],
    config: Config,
    axis: Literal[0, -1],
) -> passes.Plan:
    """How a CTA applies the chain, or its part of a factor.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      types: of x and of the result.
      config: the configuration.
      axis: the feature axis of x.

    Raises:
      NotImplementedError: if that does not fit; the message says why.
    """
    if config.parts > 1:
        shapes = (part(shapes, config),)
    if config.parts_d > 1:
        _check_cut_along_d(shapes[0][3], types, config, axis)
    found = passes.plan(
        shapes,
        rows=config.rows,
        warpgroups=config.warpgroups,
        stages=config.stages,
        itemsizes=(types[0].itemsize, types[1].itemsize),
        rows_last=axis == 0,
        smem_bytes=min(
            tiles.SMEM_BYTES, _CHIP.smem_bytes // config.occupancy - _CHIP.system_bytes
        ),
    )
    # Shared memory has room for no more digits, which TMA moves at once.
    assert config.parts == 1 or all(len(tile.digits) < 5 for tile in found.tiles)
    return found


def _check_cut_along_d(
    d: int, types: tuple[jnp.dtype, jnp.dtype], config: Config, axis: Literal[0, -1]
) -> None:
    """Raises unless so many neighbours along d can be moved and have weights loaded."""
    if d == 1:
        raise NotImplementedError(
            f"radix: a thread loads weights of neighbours along d, of which parts_d = "
            f"{config.parts_d} leaves but one"
        )
    run = d * min(types[0].itemsize, types[1].itemsize)
    if axis == -1 and run % 16:
        raise NotImplementedError(
            f"radix: TMA moves runs of whole 16 bytes, but parts_d = {config.parts_d} "
            f"leaves {run} along d"
        )


def part(shapes: Sequence[passes.Shape], config: Config) -> passes.Shape:
    """The pattern of a part."""
    a, b, c, d = shapes[0]
    if len(shapes) > 1 or a % config.parts_a or d % config.parts_d:
        raise NotImplementedError(
            f"radix: parts_a and parts_d must divide a and d of a single factor, and "
            f"be 1 for several, but are {config.parts_a} and {config.parts_d} for "
            f"{[*shapes]}"
        )
    return (a // config.parts_a, b, c, d // config.parts_d)
