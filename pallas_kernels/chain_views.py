"""Where the chain kernel finds what it reads and writes: parts of x, y and buffers.

A CTA of a cluster counts its own blocks and features from zero; `whole_block` and
`whole_feature` tell which these are among all.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import pallas as pl

from pallas_kernels import chain_plan, tiles
from pallas_kernels.chain_config import Config
from pallas_kernels.chain_plan import Plan, Step


@dataclasses.dataclass(frozen=True, slots=True)
class Views:
    """x, y and the buffers of a kernel while it is traced; refs are Pallas refs.

    Attributes:
      plan, config: of the launch.
      axis: the feature axis of x and y.
      x, y: refs in HBM: (batch, features), or (a, c, d, batch) and (a, b, d, batch).
      buffers: refs in shared memory, by their index in the plan.
    """

    plan: Plan
    config: Config
    axis: int
    x: Any
    y: Any
    buffers: Mapping[int, Any]

    @property
    def mine(self) -> Any:
        """Which share of the features this CTA holds."""
        return jax.lax.axis_index(chain_plan.SHARE) if self.plan.cluster > 1 else 0

    def rows_of(self, tile: jax.Array) -> Any:
        rows = self.config.rows
        return pl.ds(pl.multiple_of(tile * rows, rows), rows)

    def part_of_x(
        self, step: Step, unit: jax.Array, tile: jax.Array, panel: int, width: int
    ) -> Any:
        """A panel of what a unit reads of x: (rows, features) or the transpose."""
        if self.axis == -1:
            start = self.start(unit, step.slab_in, panel * width)
            start = self.whole_feature(step, start, width)
            return self.x.at[self.rows_of(tile), pl.ds(start, width)]
        i, k = self.split(step, self.whole_block(step, unit))
        start = self.start(tile, self.config.rows, panel * width)
        return self.x.at[i, :, k, pl.ds(start, width)]

    def part_of_y(
        self, step: Step, unit: jax.Array, tile: jax.Array, panel: int, width: int
    ) -> Any:
        """A panel of what a unit writes of y: (rows, features) or the transpose."""
        size = step.slab_out
        if self.axis == 0:
            i, k = self.split(step, self.whole_block(step, unit))
            start = self.start(tile, self.config.rows, panel * width)
            return self.y.at[i, pl.ds(step.first_row, size), k, pl.ds(start, width)]
        start = self.start(unit, size, panel * width)
        factor = self.plan.factors[step.factor]
        if step.num_rows < factor.b:  # A share of the rows of every block.
            block = jax.lax.div(start, step.num_rows * factor.d)
            start += (block * (factor.b - step.num_rows) + step.first_row) * factor.d
        start = self.whole_feature(step, start, width)
        return self.y.at[self.rows_of(tile), pl.ds(start, width)]

    def whole_feature(self, step: Step, feature: jax.Array, width: int) -> jax.Array:
        """Where a feature of this CTA's is among all, with what divides it made known.

        Args:
          step: that reads x or writes y, as its factor's features are shared out.
          feature: a multiple of `width`.
          width: features that follow one another, too, among all.
        """
        plan = self.plan
        if plan.cluster > 1:
            if plan.held[step.factor] == "outer":
                factor = plan.factors[step.factor]
                size = factor.b if step.slab_out else factor.c
                feature += self.mine * (factor.num_blocks * size)
            else:
                u = jax.lax.div(feature, plan.share)
                feature += (u * (plan.cluster - 1) + self.mine) * plan.share
        return pl.multiple_of(feature, width)

    def whole_block(self, step: Step, unit: jax.Array) -> jax.Array:
        """Where a block (i, k) of this CTA's, i·d + k, is among all."""
        plan = self.plan
        if plan.cluster == 1:
            return unit
        if plan.held[step.factor] == "outer":
            return unit + self.mine * plan.factors[step.factor].num_blocks
        # Blocks that differ in k follow one another as features that differ in v do.
        u = jax.lax.div(unit, plan.share)
        return unit + (u * (plan.cluster - 1) + self.mine) * plan.share

    def start(self, index: jax.Array, size: int, offset: int) -> jax.Array:
        """index · size + offset, with what divides it made known."""
        return pl.multiple_of(index * size + offset, math.gcd(size, offset))

    def block_of(self, step: Step, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which block (i, k) of this CTA's part of the step's factor a unit is."""
        d = self.plan.factors[step.factor].d
        return jax.lax.div(unit, d), jax.lax.rem(unit, d)

    def split(self, step: Step, block: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(i, k) of a block among all, whose index is i·d + k."""
        d = self.plan.whole[step.factor].d
        return jax.lax.div(block, d), jax.lax.rem(block, d)

    def is_narrow(self, step: Step) -> bool:
        """Whether a step moves runs of features that are too few for a warpgroup."""
        if self.axis == 0:
            return False
        return chain_plan.is_narrow(self.config.rows, step.run)

    def narrow(self, step: Step, buffer: int, unit: jax.Array) -> list[Any]:
        """The runs (runs, rows, features) that a unit moves, for each piece."""
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        count = (step.slab_in or step.slab_out) // step.run
        first = pl.multiple_of(unit * count, count)
        run, rows = pl.ds(0, step.run), pl.ds(0, self.config.rows)
        at: tuple[Any, ...] = (pl.ds(first, count), run, 0, rows)
        if layout.inner > 1:
            p, q = jax.lax.div(first, layout.middle), jax.lax.rem(first, layout.middle)
            at = (p, pl.ds(pl.multiple_of(q, count), count), run, rows)
        return [
            ref.at[piece, *at].transpose((0, 2, 1)) for piece in range(layout.pieces)
        ]

    def block(
        self, buffer: int, factor: tiles.Factor, length: int, i: jax.Array, k: jax.Array
    ) -> list[list[Any]]:
        """Block (i, k) of a factor in a buffer.

        Returns:
          For each piece of the numbers, the parts of shape (features, rows) that the
          block is cut into.
        """
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        rows = pl.ds(0, self.config.rows)
        if layout.has_columns(factor):
            q, r = jax.lax.div(k, layout.inner), jax.lax.rem(k, layout.inner)
            return [
                [ref.at[piece, pl.ds(i * length, length), q, r, rows]]
                for piece in range(layout.pieces)
            ]
        # The neighbour's blocks cut this one's features into parts.
        parts = layout.num_parts(factor, length)
        return [
            [
                ref.at[piece, i * parts + part, pl.ds(0, layout.middle), k, rows]
                for part in range(parts)
            ]
            for piece in range(layout.pieces)
        ]

    def panels(
        self, step: Step, buffer: int, unit: jax.Array, slab: Any
    ) -> list[list[Any]]:
        """What a unit moves, in a buffer.

        Returns:
          For each panel of the slab, a part of the same shape for each piece of the
          numbers.
        """
        count, features, width = slab.shape
        if self.axis == 0:
            i, k = self.block_of(step, unit)
            factor = self.plan.factors[step.factor]
            blocks = [part for (part,) in self.block(buffer, factor, features, i, k)]
            return [
                [part.at[:, pl.ds(panel * width, width)] for part in blocks]
                for panel in range(count)
            ]
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        size, rows = count * width, pl.ds(0, self.config.rows)
        runs = []
        for panel in range(count):
            if size % layout.run:
                feature = unit * size + panel * width
                number = jax.lax.div(feature, layout.run)
                start: Any = pl.multiple_of(jax.lax.rem(feature, layout.run), width)
            else:
                before, start = divmod(panel * width, layout.run)
                number = unit * (size // layout.run) + before
            at: tuple[Any, ...] = (number, pl.ds(start, width), 0, rows)
            if layout.inner > 1:
                p = jax.lax.div(number, layout.middle)
                q = jax.lax.rem(number, layout.middle)
                at = (p, q, pl.ds(start, width), rows)
            runs.append([ref.at[piece, *at].T for piece in range(layout.pieces)])
        return runs
