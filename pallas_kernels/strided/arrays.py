"""What `pallas_kernels.strided.lanes` does, for JAX's interpreter: with arrays.

Reads and writes what a warpgroup does, so that races are found, but knows no lanes.
Axes: (warps, vectors, outputs, neighbours) of the sums; of operands (warps, vectors or
outputs, inputs, neighbours).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.strided.plan import GROUP, TILE, Plan


@dataclasses.dataclass(frozen=True, slots=True)
class Arrays:
    """A warpgroup's part.

    Attributes:
      plan: the plan.
      warpgroup: its number in the CTA.
    """

    plan: Plan
    warpgroup: jax.Array

    def positions(self) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
        """`lanes.position` of each warp."""
        plan, found = self.plan, []
        for warp in range(4):
            index = jnp.minimum(4 * self.warpgroup + warp, plan.busy_warps - 1)
            rest = jax.lax.div(index, plan.strips)
            strip = jax.lax.rem(index, plan.strips)
            share, rows = jax.lax.rem(rest, plan.shares), jax.lax.div(rest, plan.shares)
            found.append((strip, share, rows))
        return found

    def load_weights(self, thread: Any, ring: Any) -> list[jax.Array]:
        del thread
        plan = self.plan
        chunks = [self._entries(ring[n]) for n in range(plan.chunks)]
        whole, found = jnp.concatenate(chunks), []
        for tile in range(plan.tiles_of_warp):
            parts = [
                jax.lax.dynamic_slice(
                    whole,
                    (
                        TILE * (share * plan.tiles_of_warp + tile),
                        jnp.int32(0),
                        strip * plan.width,
                    ),
                    (TILE, plan.inputs, plan.width),
                )
                for strip, share, _ in self.positions()
            ]
            found.append(jnp.stack(parts))
        return found

    def load_vectors(self, thread: Any, slot: Any, part: int) -> jax.Array:
        del thread
        plan = self.plan
        whole, each = self._entries(slot[...]), plan.inputs // plan.parts
        parts = [
            jax.lax.dynamic_slice(
                whole,
                (GROUP * rows, jnp.int32(part * each), strip * plan.width),
                (GROUP, each, plan.width),
            )
            for strip, _, rows in self.positions()
        ]
        return jnp.stack(parts)

    def multiply(
        self, weights: jax.Array, x: jax.Array, *sums: jax.Array, part: int
    ) -> jax.Array:
        each = x.shape[2]
        weights = weights[:, None, :, part * each : (part + 1) * each]
        return sum(sums, (x[:, :, None] * weights).sum(3))

    def store(self, thread: Any, sums: jax.Array, slot: Any, tile: int) -> None:
        del thread
        plan = self.plan
        lines = TILE // plan.per_line
        for warp, (strip, share, rows) in enumerate(self.positions()):
            values = sums[warp].astype(slot.dtype)
            values = values.reshape(GROUP, lines, plan.per_line, plan.width)
            first = (share * plan.tiles_of_warp + tile) * lines
            for n in range(plan.per_line):
                column = n * plan.config.neighbours + strip * plan.width
                slot[
                    pl.ds(GROUP * rows, GROUP),
                    pl.ds(first, lines),
                    pl.ds(column, plan.width),
                ] = values[:, :, n]

    def load_bias(
        self,
        thread: Any,
        bias: Any,
        block: jax.Array,
        output: jax.Array,
        neighbour: jax.Array,
        tile: int,
    ) -> jax.Array:
        del thread
        plan = self.plan
        whole = bias[block].astype(jnp.float32)
        whole = jnp.pad(whole, ((0, plan.lines_out * plan.per_line), (0, 0)))
        parts = [
            jax.lax.dynamic_slice(
                whole,
                (
                    output + TILE * (share * plan.tiles_of_warp + tile),
                    neighbour + strip * plan.width,
                ),
                (TILE, plan.width),
            )
            for strip, share, _ in self.positions()
        ]
        return jnp.stack(parts)[:, None]

    def _entries(self, slot: jax.Array) -> jax.Array:
        """(rows, inputs, neighbours) of a tile, in float32."""
        plan = self.plan
        lines = slot[:, : plan.lines_in].astype(jnp.float32)
        return lines.reshape(plan.rows, plan.inputs, plan.config.neighbours)
