"""What the warps of `strided` do with a tile, from shared memory to shared memory.

By lanes on a chip; in the interpreter with arrays. What is in registers is an array of
each thread's, `registers.kept`; in the interpreter it is what `Arrays` says.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import registers
from pallas_kernels.common.slabs import SWIZZLES
from pallas_kernels.strided import lanes
from pallas_kernels.strided.arrays import Arrays
from pallas_kernels.strided.plan import Plan

_SPLAT = plgpu.Layout.WG_SPLAT


@dataclasses.dataclass(frozen=True, slots=True)
class Warps:
    """A warpgroup's.

    `thread` is `registers.thread`, and `tile` a tile of a warp's outputs.

    Attributes:
      plan: the plan.
      dtype: of x and the weights.
    """

    plan: Plan
    dtype: Any

    @property
    def arrays(self) -> Arrays:
        return Arrays(self.plan, jax.lax.axis_index("wg"))

    @property
    def num_sums(self) -> int:
        """Registers of a thread for the sums of a tile of outputs."""
        return 4 * self.plan.width

    def load_weights(self, thread: Any, ring: Any) -> list[Any]:
        """Weights of each tile of a warp's outputs, in registers."""
        plan = self.plan
        count = 4 * plan.width * plan.steps

        @registers.by_lanes(
            self.arrays.load_weights,
            arg_types=(registers.THREAD, self.slots),
            return_type=[registers.kept_type(count, jnp.int32)] * plan.tiles_of_warp,
        )
        def load(ctx: Any, thread: Any, ring: Any) -> list[Any]:
            del ctx
            (number,) = registers.kept(thread)
            start = registers.address(ring)
            found = lanes.load_weights(registers, plan, number, start)
            return [registers.keep(_flat(operands)) for operands in found]

        weights: list[Any] = load(thread, ring)
        return weights

    def load_vectors(
        self, thread: Any, slot: Any, part: int, *, later: bool = False
    ) -> Any:
        """A part of a tile's vectors as operands, in registers.

        Those that are loaded later wait until all stores and loads before are done.
        """
        plan = self.plan
        count = 2 * plan.width * plan.steps // plan.parts

        @registers.by_lanes(
            functools.partial(self.arrays.load_vectors, part=part),
            arg_types=(registers.THREAD, self.slots),
            return_type=registers.kept_type(count, jnp.int32),
        )
        def load(ctx: Any, thread: Any, slot: Any) -> Any:
            del ctx
            (number,) = registers.kept(thread)
            if later:
                registers.fence()
            start = registers.address(slot)
            found = lanes.load_vectors(registers, plan, number, start, part)
            return registers.keep(_flat(found))

        return load(thread, slot)

    def multiply(self, weights: Any, x: Any, sums: Any, part: int) -> Any:
        """The float32 sums of a tile of outputs, with those of parts before."""
        plan, dtype = self.plan, self.dtype
        of_weights = 4 * plan.width * plan.steps
        of_x = 2 * plan.width * plan.steps // plan.parts
        counts = (
            [of_weights, of_x] if sums is None else [of_weights, of_x, self.num_sums]
        )

        @registers.by_lanes(
            functools.partial(self.arrays.multiply, part=part),
            arg_types=[registers.kept_layout(n) for n in counts],
            return_type=registers.kept_type(self.num_sums, jnp.float32),
        )
        def product(ctx: Any, weights: Any, x: Any, *before: Any) -> Any:
            del ctx
            found = lanes.multiply(
                registers,
                plan,
                _operands(weights, plan.width, plan.steps),
                _operands(x, plan.width, plan.steps // plan.parts),
                registers.kept(*before) if before else None,
                part,
                dtype,
            )
            return registers.keep(found)

        return product(weights, x, *(() if sums is None else (sums,)))

    def store(self, thread: Any, sums: Any, slot: Any, tile: int, dtype: Any) -> None:
        """Puts the sums of a tile of outputs where they are sent from."""
        plan = self.plan

        @registers.by_lanes(
            functools.partial(self.arrays.store, tile=tile),
            arg_types=(
                registers.THREAD,
                registers.kept_layout(self.num_sums),
                self.slots,
            ),
        )
        def put(ctx: Any, thread: Any, sums: Any, slot: Any) -> tuple[()]:
            del ctx
            (number,) = registers.kept(thread)
            values, start = registers.kept(sums), registers.address(slot)
            lanes.store(registers, plan, number, values, start, tile, dtype)
            return ()

        put(thread, sums, slot)

    def load_bias(
        self, thread: Any, bias: Any, block: Any, output: Any, neighbour: Any, tile: int
    ) -> Any:
        """The bias of each of the sums of a tile of outputs."""
        plan = self.plan

        @registers.by_lanes(
            functools.partial(self.arrays.load_bias, tile=tile),
            arg_types=(registers.THREAD, plgpu.RefType(), _SPLAT, _SPLAT, _SPLAT),
            return_type=registers.kept_type(self.num_sums, jnp.float32),
        )
        def load(ctx: Any, thread: Any, bias: Any, *place: Any) -> Any:
            del ctx
            (number,) = registers.kept(thread)
            i, j, k = map(registers.scalar, place)
            found = lanes.load_bias(registers, plan, number, bias, i, j, k, tile)
            return registers.keep(found)

        return load(thread, bias, block, output, neighbour)

    @property
    def slots(self) -> Any:
        """The type of slots, for `registers.by_lanes`."""
        width = 2 * self.plan.line
        if width not in SWIZZLES:
            return plgpu.RefType()
        swizzle = plgpu.SwizzleTransform(width)  # type: ignore[abstract]
        return plgpu.RefType((swizzle,))


def _flat(operands: lanes.Operands) -> list[Any]:
    return [one for of_k in operands for of_step in of_k for one in of_step]


def _operands(array: Any, neighbours: int, steps: int) -> lanes.Operands:
    """The inverse of `_flat`."""
    flat = registers.kept(array)
    each = len(flat) // (neighbours * steps)
    parts = [flat[n : n + each] for n in range(0, len(flat), each)]
    return [parts[k * steps : (k + 1) * steps] for k in range(neighbours)]
