"""Arrays of which a warpgroup's threads hold parts, as mma.sync has operands and sums.

In a fragment of 8 rows and 8 columns, lane 4g + t has row g and columns 2t, 2t + 1.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat, registers

Role = Literal["register", "warp", "lane", "vector", "same warps", "same lanes"]


@dataclasses.dataclass(frozen=True, slots=True)
class Fragment:
    """Along which axes of an array warps, lanes and registers lie.

    Attributes:
      axes: extent and role of each axis. Warps and lanes are numbered with the last of
        their axes fastest, and registers likewise; the vector is what one register
        holds. Axes of the "same" warps or lanes are none of the array's: so many have
        the same entries.
    """

    axes: tuple[tuple[int, Role], ...]

    @property
    def _own(self) -> tuple[tuple[int, Role], ...]:
        return tuple(axis for axis in self.axes if not axis[1].startswith("same"))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(size for size, _ in self._own)

    @property
    def registers(self) -> tuple[int, ...]:
        """Extents of the axes along which a thread's registers lie."""
        return tuple(size for size, role in self._own if role == "register")

    @property
    def length(self) -> int:
        """Entries of a register."""
        return math.prod(size for size, role in self._own if role == "vector")

    @property
    def layout(self) -> Any:
        """For `plgpu.load` and `registers.by_lanes`."""
        rank = len(self._own)

        def dims(role: Role) -> list[Any]:
            found: list[Any] = []
            at = -rank
            for size, one in self.axes:
                if one == f"same {role}s" and size > 1:
                    found.append(compat.replicated(size))
                elif one == role and size > 1:
                    found.append(at)
                at += not one.startswith("same")
            return found

        [vector] = [n for n, (_, role) in enumerate(self._own) if role == "vector"]
        return compat.tiled_layout(
            [[1 if role == "register" else size for size, role in self._own]],
            warp_dims=dims("warp"),
            lane_dims=dims("lane"),
            vector_dim=vector - rank,
        )

    def load(self, view: Any) -> jax.Array:
        """The array from a ref of its shape."""
        found: jax.Array = plgpu.load(view, layout=self.layout, optimized=False)
        return found


def of_two(extent: int) -> tuple[int, ...]:
    """Axes of 2, and one that is odd.

    ldmatrix takes four matrices along the first axis of registers that 4 divides, or
    else along the first two that 2 divides: the order that mma.sync wants them in.
    """
    twos = (extent & -extent).bit_length() - 1
    return (2,) * twos + ((extent >> twos,) if extent >> twos > 1 else ())


def along(extents: Sequence[int], role: Role = "register") -> tuple[Any, ...]:
    """Axes of one role."""
    return tuple((extent, role) for extent in extents)


def by_lanes(
    arrays: Callable[..., jax.Array],
    lanes: Callable[..., np.ndarray],
    operands: Sequence[Fragment],
    result: Fragment,
    dtype: jax.typing.DTypeLike,
) -> Callable[..., jax.Array]:
    """A function of fragments, from registers to registers.

    Args:
      arrays: does in the interpreter what `lanes` does on a chip.
      lanes: given each operand's registers, (registers, words of 32 bits, or entries
        of float32), returns those of the result likewise.
      operands: fragments of the operands.
      result: fragment of the result.
      dtype: of the result; words are of one of 16 bits.
    """

    @registers.by_lanes(
        arrays,
        arg_types=[operand.layout for operand in operands],
        return_type=plgpu.ShapeDtypeStruct(
            result.shape, jnp.dtype(dtype), layout=result.layout
        ),
    )
    def on_chip(ctx: Any, *found: Any) -> Any:
        del ctx
        words = [
            np.reshape(registers.words(one), (*operand.registers, -1))
            for one, operand in zip(found, operands, strict=True)
        ]
        return registers.array(
            lanes(*words), result.shape, result.layout, jnp.dtype(dtype)
        )

    return on_chip


def add_bias(
    y: jax.Array, sums: Fragment, bias: jax.Array, entries: Fragment
) -> jax.Array:
    """Sums with the bias added, of which rows, or vectors of one, have the same.

    Args:
      y: the sums.
      sums: their fragment.
      bias: float32, of the extents of y's last axes, or of its first ones and 1.
      entries: its fragment.
    """

    def lanes(y: np.ndarray, bias: np.ndarray) -> np.ndarray:
        found = np.empty(y.shape, dtype=object)
        for place, entry in np.ndenumerate(np.broadcast_to(bias, y.shape)):
            found[place] = registers.add_floats(y[place], entry)
        return found

    def arrays(y: jax.Array, bias: jax.Array) -> jax.Array:
        if bias.shape[-1] == 1:
            bias = bias[..., None]
        return y + bias

    return by_lanes(arrays, lanes, [sums, entries], sums, jnp.float32)(y, bias)
