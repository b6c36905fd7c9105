"""How the work of two factors is dealt out to the warps of a CTA, in integers."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments

WARPS = 4  # Of a warpgroup.
LINE = 64  # Entries of 16 bits in 128 bytes, the widest swizzle of TMA.
DTYPES = ("bfloat16", "float16")
_WEIGHTS = 128  # Entries of 16 bits that a thread keeps, in half as many registers.
_BARRIERS = 1024  # Bytes that they take at most, rounded up.
_LARGEST = 64  # b and c of a factor; more would leave no registers for sums.


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Factors (1, b₀, a₁, b₁) and (a₁, b₁, c₁, 1): h = factors[1] x, y = factors[0] h.

    Attributes:
      blocks: a₁ = c₀, blocks of factors[1] and inputs of those of factors[0].
      middle: b₁ = d₀, outputs of a block of factors[1] and blocks of factors[0].
      inputs: c₁ of factors[1].
      outputs: b₀ of factors[0].
      axis: the feature axis of x.
      warpgroups: of a team, which takes tiles of its own. A CTA has as many teams as
        make four warpgroups, or one of three: a multiprocessor has registers for one
        such CTA, whatever the compiler gives its threads.
    """

    blocks: int
    middle: int
    inputs: int
    outputs: int
    axis: Literal[0, -1]
    warpgroups: int

    @property
    def teams(self) -> int:
        """Of a CTA."""
        return 4 // self.warpgroups

    @property
    def rows(self) -> int:
        """Vectors multiplied at once, as fragments of mma.sync hold them."""
        return 16 if self.axis == -1 else 32

    @property
    def n_in(self) -> int:
        """Features of x."""
        return self.blocks * self.inputs

    @property
    def n_out(self) -> int:
        """Features of y."""
        return self.outputs * self.middle

    @property
    def blocks_of_warp(self) -> int:
        """Blocks of factors[1] that a warp has."""
        return self.blocks // (WARPS * self.warpgroups)

    @property
    def width(self) -> int:
        """Features last: entries of a line of x in shared memory, 32 to 128 bytes.

        A warp's features are whole lines.
        """
        return math.gcd(self.blocks_of_warp * self.inputs, LINE)

    @property
    def padded(self) -> int:
        """Runs of 8 entries, 16 bytes, from one block of h to the next.

        An odd number: eight neighbouring blocks are read from different banks.
        """
        return self.middle * self.rows // 8 // (2 if self.axis == -1 else 1) + 1

    # Features last, a warp has 8 neighbouring blocks of factors[0], or several such
    # eights, so that it stores 16 bytes of y at a time.

    @property
    def warps_middle(self) -> int:
        """Features last: warps of a warpgroup that differ in blocks of factors[0]."""
        return math.gcd(WARPS, self.middle // 8)

    @property
    def warps_outputs(self) -> int:
        """Features last: warps of a warpgroup that differ in outputs of these."""
        return WARPS // self.warps_middle

    @property
    def middle_of_warp(self) -> int:
        """Blocks of factors[0] that a warp has; features last, eights of them."""
        if self.axis == -1:
            return self.middle // 8 // self.warps_middle
        return self.middle // (WARPS * self.groups_middle)

    @property
    def outputs_of_warp(self) -> int:
        """Outputs of these that it has: eights features last, otherwise sixteens."""
        if self.axis == -1:
            return self.outputs // (8 * self.warpgroups * self.warps_outputs)
        return self.outputs // (16 * self.groups_outputs)

    @property
    def groups_outputs(self) -> int:
        """Features first: warpgroups that differ in outputs of factors[0]."""
        return math.gcd(self.warpgroups, self.outputs // 16)

    @property
    def groups_middle(self) -> int:
        """Features first: warpgroups that differ in blocks of factors[0]."""
        return self.warpgroups // self.groups_outputs

    @property
    def weights(self) -> tuple[int, int]:
        """Entries of factors[0] and of factors[1]."""
        return (
            self.outputs * self.blocks * self.middle,
            self.blocks * self.middle * self.inputs,
        )

    def smem_bytes(self, rows: int, stages: int, out_stages: int) -> int:
        """Shared memory of a CTA, with tiles of so many vectors."""
        slab, h = rows * self.n_in, self.blocks * self.padded * 8
        left, right = self.weights
        if self.axis == -1:
            y = out_stages * rows * self.n_out
            entries = max(self.teams * (2 * 2 * h + y), left + right)
        else:
            entries = max(self.teams * h, left, right)
        return 2 * (self.teams * stages * slab + entries) + _BARRIERS


def plan(
    shapes: tuple[arguments.Shape, ...],
    dtype: jnp.dtype,
    out_dtype: jax.typing.DTypeLike | None,
    axis: Literal[0, -1],
) -> Plan:
    """How the work is dealt out.

    Args:
      shapes: patterns (a, b, c, d) of the factors, in the order of the matrix product.
      dtype: of x and of the factors.
      out_dtype: of the result; None for that of x.
      axis: the feature axis of x.

    Raises:
      NotImplementedError: if the kernel does not take the case; the message says why.
    """
    y_dtype = dtype if out_dtype is None else jnp.dtype(out_dtype)
    if dtype.name not in DTYPES or y_dtype != dtype:
        raise NotImplementedError(
            "fused: x and the result must both be bfloat16 or both float16, got "
            f"{dtype.name} and {y_dtype.name}"
        )
    monarch = len(shapes) == 2
    if monarch:
        (a0, outputs, c0, d0), (blocks, middle, inputs, d1) = shapes
        monarch = (a0, d1) == (1, 1) and (c0, d0) == (blocks, middle)
    if not monarch:
        raise NotImplementedError(
            "fused: the kernel takes two factors (1, b0, c0, d0) and (a1, b1, c1, 1) "
            f"with a1 = c0 and b1 = d0, got {list(shapes)}"
        )
    # mma.sync is 16 wide along its sums, and so it is, features first, along outputs.
    multiples = {"b0": 8, "c0 = a1": 8, "d0 = b1": 8, "c1": 16}
    if axis == 0:
        multiples = dict.fromkeys(multiples, 16)
    sizes = (outputs, blocks, middle, inputs)
    for (name, multiple), size in zip(multiples.items(), sizes, strict=True):
        least = 16 if name == "c0 = a1" else multiple
        if size % multiple or not least <= size <= _LARGEST:
            raise NotImplementedError(
                f"fused: with axis={axis}, {name} must be a multiple of {multiple} "
                f"from {least} to {_LARGEST}, got {size}"
            )
    for warpgroups in (4, 3, 2, 1):
        found = Plan(blocks, middle, inputs, outputs, axis, warpgroups)
        if _divides(found):
            break
    else:
        raise NotImplementedError(
            f"fused: no number of warpgroups divides the factors {list(shapes)} evenly "
            f"with axis={axis}"
        )
    weights = sum(found.weights)
    if weights > _WEIGHTS * 128 * warpgroups:
        raise NotImplementedError(
            f"fused: weights stay in registers, {_WEIGHTS} a thread, but the factors "
            f"{list(shapes)} with axis={axis} have {weights} for {warpgroups} "
            "warpgroups, the most that divide them evenly"
        )
    return found


def _divides(plan: Plan) -> bool:
    """Whether every warp gets as much of each factor as the others."""
    g = plan.warpgroups
    if plan.blocks % (WARPS * g):
        return False
    if plan.axis == -1:
        return plan.outputs % (8 * g * plan.warps_outputs) == 0
    share = WARPS * plan.groups_middle
    return plan.middle % share == 0 and plan.middle // share % 4 == 0
