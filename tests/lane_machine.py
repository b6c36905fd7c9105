"""`pallas_kernels.common.registers` on NumPy: the 32 lanes of a warp, side by side.

Carries out a kernel's code for lanes, after the fragments of the PTX manual, on bytes
of shared memory; checks alignment and counts what the banks take. The interpreter knows
neither lanes nor addresses.
"""

from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401  Teaches NumPy the name bfloat16.
import numpy as np

LANES = np.arange(32)
G, T = LANES // 4, LANES % 4


class Machine:
    """A warp.

    Attributes:
      shared: the bytes of shared memory.
      thread: the lanes' numbers in the CTA.
      wavefronts: how often the banks were asked, by all loads and stores of the warp.
      fewest: how often they would have been without conflicts.
    """

    def __init__(self, shared: np.ndarray, warp: int):
        self.shared, self.thread = shared, 32 * warp + LANES
        self.wavefronts = self.fewest = 0

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def multiply(self, x: Any, y: Any) -> Any:
        return x * y

    def divide(self, x: Any, by: int) -> Any:
        return x // by

    def remainder(self, x: Any, by: int) -> Any:
        return x % by

    def minimum(self, x: Any, y: Any) -> Any:
        return np.minimum(x, y)

    def bit_and(self, x: Any, y: Any) -> Any:
        return x & y

    def bit_xor(self, x: Any, y: Any) -> Any:
        return x ^ y

    def shift_left(self, x: Any, by: int) -> Any:
        return x << by

    def shift_right(self, x: Any, by: int) -> Any:
        return x >> by

    def mma(
        self,
        sums: Sequence[np.ndarray] | None,
        a: Sequence[np.ndarray],
        b: Sequence[np.ndarray],
        dtype: str,
    ) -> list[np.ndarray]:
        """PTX, mma.m16n8k16: fragments of a row-major left and a right operand."""
        left, right = np.zeros((16, 16)), np.zeros((16, 8))
        for n, register in enumerate(a):
            row, column = G + 8 * (n % 2), 2 * T + 8 * (n // 2)
            for e, half in enumerate(_halves(register, dtype)):
                left[row, column + e] = half
        for n, register in enumerate(b):
            for e, half in enumerate(_halves(register, dtype)):
                right[2 * T + 8 * n + e, G] = half
        product = left @ right
        places = [(G, 2 * T), (G, 2 * T + 1), (G + 8, 2 * T), (G + 8, 2 * T + 1)]
        found = [product[place] for place in places]
        return (
            found if sums is None else [x + y for x, y in zip(sums, found, strict=True)]
        )

    def pair(self, low: np.ndarray, high: np.ndarray, half: int) -> np.ndarray:
        shift = np.uint32(16 * half)
        return (low >> shift & 0xFFFF) | (high >> shift & 0xFFFF) << np.uint32(16)

    def fence(self) -> None:
        """Nothing is moved anyway."""

    def round_pair(self, low: np.ndarray, high: np.ndarray, dtype: str) -> np.ndarray:
        both = np.stack([low, high], -1).astype(np.float32).astype(dtype)
        return np.ascontiguousarray(both).view(np.uint32)[:, 0]

    def load_shared(self, at: np.ndarray, offset: int, words: int) -> list[np.ndarray]:
        self._count(at + offset, 4 * words)
        raw = self.shared[(at + offset)[:, None] + np.arange(4 * words)]
        return list(raw.view(np.uint32).T)

    def store_shared(
        self, at: np.ndarray, offset: int, registers: Sequence[np.ndarray]
    ) -> None:
        self._count(at + offset, 4 * len(registers))
        assert len(set(at)) == 32, "lanes write the same bytes"
        raw = np.stack(registers, -1).astype(np.uint32).view(np.uint8)
        raw = raw.reshape(32, -1)
        self.shared[(at + offset)[:, None] + np.arange(raw.shape[1])] = raw

    def load_wide(
        self, array: np.ndarray, element: np.ndarray, count: int
    ) -> list[np.ndarray]:
        assert not (element % count).any(), "misaligned"
        flat = array.reshape(-1).astype(np.float32)
        return [flat[element + n] for n in range(count)]

    def _count(self, at: np.ndarray, size: int) -> None:
        """128 bytes at a time, by as many lanes as ask for them; 16 to a group."""
        assert not (at % size).any(), "misaligned"
        lanes = 128 // size
        for first in range(0, 32, lanes):
            places = at[first : first + lanes] // size
            asked = [len(set(places[places % lanes == n])) for n in range(lanes)]
            self.wavefronts += max(asked)
            self.fewest += 1


def swizzled(at: np.ndarray, swizzle: int) -> np.ndarray:
    """Where TMA puts byte `at` with a swizzle of so many bytes, or 16 for none."""
    return at ^ (at >> 7 & (swizzle // 16 - 1)) << 4


def held(layout: Any, shape: Sequence[int]) -> np.ndarray:
    """Which entries of an array a warpgroup's registers hold, in Mosaic's layout.

    Args:
      layout: one of Mosaic's tiled layouts, as `plgpu.Layout` makes it.
      shape: of the array.

    Returns:
      Indices into the flat array, (registers, warps, lanes, entries of a register).
    """
    tiled = layout.to_mgpu()
    found = np.arange(np.prod(shape)).reshape(shape)
    for tile in tiled.tiling.tiles:
        lead = found.ndim - len(tile)
        outer = [n // t for n, t in zip(found.shape[lead:], tile, strict=True)]
        split = [n for pair in zip(outer, tile, strict=True) for n in pair]
        found = found.reshape(*found.shape[:lead], *split)
        places = np.arange(lead, found.ndim)
        found = found.transpose(*range(lead), *places[::2], *places[1::2])

    def axes(dims: Sequence[Any]) -> list[int]:
        nonlocal found
        places = []
        for dim in dims:
            if not isinstance(dim, int):  # So many have the same.
                found = np.broadcast_to(found, (dim.times, *found.shape))
                dim = -found.ndim
            places.append(dim)
        return places

    places = [*axes(tiled.warp_dims), *axes(tiled.lane_dims), tiled.vector_dim]
    found = np.moveaxis(found, places, range(-len(places), 0))
    return found.reshape(-1, 4, 32, tiled.vector_length)


def _halves(register: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    both = np.ascontiguousarray(register.astype(np.uint32)).view(dtype).reshape(32, 2)
    return both[:, 0].astype(float), both[:, 1].astype(float)
