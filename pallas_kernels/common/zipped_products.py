"""Products over the batch of neighbouring blocks, from vectors' bytes as they lie.

Features last, a feature's entries of neighbouring blocks lie side by side: zipped. A
thread loads eight neighbours of a feature, 16 bytes, of several vectors, and packs for
each block the entries of two vectors into a register of an operand of mma.sync, which
sums over the batch. Lane 4g + t has feature g of eight and vectors t, t + 4, t + 8 and
t + 12 of sixteen, so columns 2t + e + 8h of the operands are vectors t + 4e + 8h: of
both, so that the sum does not care.

In shared memory an array is (features / merged, vectors, merged, neighbours): a line of
128 bytes holds `merged` features of all of d = 8, 16 or 32, or two features lie in rows
of their own. Lines or rows that follow one another are of vectors that do, and the
swizzle is as wide as they are, so eight lanes of a load never meet in a bank; with
merged features, lanes that are neighbours along g take features half a line apart.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.pallas.mosaic_gpu import lowering as _lowering
from jax.experimental.mosaic.gpu import utils as _utils
from jax.experimental.mosaic.gpu.fragmented_array import FragmentedArray
from jax.experimental.mosaic.gpu.mma import MMALayouts, mma
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Primitive
from jax.interpreters import mlir

from pallas_kernels.common import compat

DEPTH = 16  # Vectors that an mma.sync sums over.
TILE = 16  # Features of either side, of a product of a warp.
EIGHT = 8  # Neighbours of a warp: what 16 bytes hold.
LINE = 64  # Entries of 128 bytes.


@dataclasses.dataclass(frozen=True)
class Warps:
    """How the four warps of a warpgroup are dealt out.

    Attributes:
      vectors: along the batch, each with sums of its own.
      outputs: along the features of dy.
      inputs: along the features of x.
      neighbours: along the neighbours, in groups of eight.
    """

    vectors: int
    outputs: int
    inputs: int
    neighbours: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return (self.vectors, self.outputs, self.inputs, self.neighbours)


def _layout(
    tiles: Sequence[Sequence[int]],
    warp_dims: Sequence[Any],
    lane_dims: Sequence[int],
) -> Any:
    """A tiled layout of vectors along the last axis, without axes of length 1."""
    rank, last = len(tiles[0]), [1] * len(tiles[0])
    sizes = [
        outer // inner
        for whole, part in zip(tiles, [*tiles[1:], last], strict=True)
        for outer, inner in zip(whole, part, strict=True)
    ]
    # Counted from the end: axes of all tiles but the first, then those of the last.
    assert len(sizes) == rank * len(tiles)
    lanes = [axis for axis in lane_dims if sizes[axis] > 1]
    warps = [
        axis
        for axis in warp_dims
        if (sizes[axis] if isinstance(axis, int) else axis.times) > 1
    ]
    return compat.tiled_layout(tiles, warp_dims=warps, lane_dims=lanes, vector_dim=-1)


def operand_layout(shape: Sequence[int], warps: Warps, *, is_dy: bool) -> Any:
    """The layout in which `add_products` takes dy or x.

    Args:
      shape: (features / merged, vectors, 64), a line holding `merged` features, or
        (features / 2, vectors, 2, neighbours).
      warps: of the warpgroup.
      is_dy: whether the features are those of dy, else those of x.
    """
    mine, others = warps.outputs, warps.inputs
    if not is_dy:
        mine, others = others, mine
    shared = compat.replicated(others)

    def order(vectors: int, features: int, neighbours: int) -> tuple[Any, ...]:
        pair = (features, shared) if is_dy else (shared, features)
        return (vectors, *pair, neighbours)

    if len(shape) == 3:
        merged = TILE * mine // shape[0]
        k = LINE // merged
        tiles = [
            tuple(shape),
            (TILE // merged, DEPTH, LINE),  # (features, vectors, 1)
            (8 // merged, 4, LINE // 2),  # (half, h and e, upper features of a line)
            (1, 1, k),  # (lines, t, lower features)
            (1, 1, EIGHT),  # (1, 1, neighbours)
        ]
        return _layout(tiles, order(-14, -15, -4), (-9, -7, -10, -8))
    tiles = [
        tuple(shape),
        (TILE // 2, DEPTH, 2, EIGHT * warps.neighbours),  # (features, vectors, 1, q)
        (4, 4, 1, EIGHT * warps.neighbours),  # (half, h and e, pair, 1)
        (1, 1, 1, EIGHT),  # (features, t, 1, neighbours)
    ]
    return _layout(tiles, order(-15, -16, -5), (-8, -10, -7))


def sums_layout(warps: Warps, merged: int) -> Any:
    """The layout of what `zip_sums` returns."""
    half = merged // 2
    wide = tuple(
        each * warp
        for each, warp in zip((1, TILE, TILE, EIGHT), warps.sizes, strict=True)
    )
    tiles = [
        wide,
        (1, TILE, TILE, EIGHT),  # (warps)
        (1, 8, 8, EIGHT),  # (1, half, half, 1)
        (1, merged, merged, EIGHT),  # (1, lines, lines, 1)
        (1, half, half, EIGHT),  # (1, upper, upper, 1)
        (1, 1, 1, 4),  # (1, lower, lower, 2)
    ]
    return _layout(tiles, (-24, -23, -22, -21), (-15, -7, -11, -14, -6))


def _in_lanes(z: jax.Array, tiles: int) -> jax.Array:
    """(features / merged, …, merged, rest) as (tiles, 16 in mma's order, …, rest)."""
    lines, merged = z.shape[0] // tiles, z.shape[-2]
    middle, rest = z.shape[1:-2], z.shape[-1]
    z = z.reshape(tiles, 2, lines // 2, *middle, 2, merged // 2, rest)
    upper, lower = 3 + len(middle), 4 + len(middle)
    order = (0, 1, 2, lower, upper, *range(3, upper), lower + 1)
    return z.transpose(order).reshape(tiles, TILE, *middle, rest)


_add_p = Primitive("add_zipped_products")
_add_p.multiple_results = True


@_add_p.def_abstract_eval
def _add_abstract(dy: Any, x: Any, *sums: Any, warps: Warps) -> list[Any]:
    del dy, x, warps
    return list(sums)


def _add(
    dy: jax.Array, x: jax.Array, *sums: jax.Array, warps: Warps
) -> list[jax.Array]:
    def parted(z: jax.Array, tiles: int) -> jax.Array:
        lines, vectors = z.shape[:2]
        merged = TILE * tiles // lines
        z = _in_lanes(z.reshape(lines, vectors, merged, -1), tiles)
        z = z.reshape(*(tiles, TILE, warps.vectors, DEPTH, -1, warps.neighbours, EIGHT))
        # (q, neighbour, vectors, tiles, neighbours, feature, vector)
        return z.transpose(4, 6, 2, 0, 5, 1, 3).astype(jnp.float32)

    left = parted(dy, warps.outputs)[:, :, :, :, None, :, :, None]
    right = parted(x, warps.inputs)[:, :, :, None, :, :, None]
    # No dot: it would wait for XLA's few threads, which warpgroups may be blocking.
    made = (left * right).sum(-1).reshape(len(sums), *sums[0].shape)
    return [s + m for s, m in zip(sums, made, strict=True)]


mlir.register_lowering(_add_p, mlir.lower_fun(_add, multiple_results=True))


@_lowering.register_lowering_rule(_add_p, plgpu.LoweringSemantics.Lane)
def _add_lane(ctx: Any, dy: Any, x: Any, *sums: Any, warps: Warps) -> list[Any]:
    del ctx, warps
    layouts = MMALayouts(jnp.bfloat16, m_warps=4)
    groups = len(sums) // EIGHT

    def parts(z: Any, layout: Any, shape: tuple[int, int], *, left: bool) -> list[Any]:
        """An operand for each neighbour."""
        held = z.registers.reshape(groups, 2, 2, 2)  # (q, half of features, h, e)

        def operand(q: int, v: int) -> Any:
            packed = np.empty((2, 2), dtype=object)
            for f, h in np.ndindex(2, 2):
                pair = [
                    _utils.vector_slice(held[q, f, h, e], slice(v, v + 1))
                    for e in range(2)
                ]
                packed[f, h] = _utils.vector_concat(pair)
            if left:  # There the half of the vectors comes first.
                packed = packed.T
            return FragmentedArray(
                _registers=packed.reshape(layout.registers_shape(shape)),
                _layout=layout,
                _is_signed=None,
            )

        return [operand(q, v) for q in range(groups) for v in range(EIGHT)]

    lhs = parts(dy, layouts.lhs, (4 * TILE, DEPTH), left=True)
    rhs = parts(x, layouts.rhs, (DEPTH, TILE), left=False)
    made = [mma(s, a, b) for s, a, b in zip(sums, lhs, rhs, strict=True)]
    _utils.warp_barrier()  # Keeps ptxas from loading more before: it would spill.
    return made


_zip_p = Primitive("zip_sums_of_products")


@_zip_p.def_abstract_eval
def _zip_abstract(*sums: Any, warps: Warps, merged: int) -> Any:
    del merged
    n, j, l, k = warps.sizes
    return sums[0].update(shape=(n, j * TILE, l * TILE, k * EIGHT))


def _zip(*sums: jax.Array, warps: Warps, merged: int) -> jax.Array:
    n, j, l, k = warps.sizes
    # Of a feature: (half, lines, lower, upper).
    feature = (2, 8 // merged, merged // 2, 2)
    x = jnp.stack(sums).reshape(EIGHT, n, j, l, k, *feature, *feature)
    x = x.transpose(1, 2, 5, 6, 8, 7, 3, 9, 10, 12, 11, 4, 0)
    return x.reshape(n, j * TILE, l * TILE, k * EIGHT)


mlir.register_lowering(_zip_p, mlir.lower_fun(_zip, multiple_results=False))


@_lowering.register_lowering_rule(_zip_p, plgpu.LoweringSemantics.Lane)
def _zip_lane(ctx: Any, *sums: Any, warps: Warps, merged: int) -> Any:
    layout = sums_layout(warps, merged).to_mgpu()
    [aval] = ctx.avals_out
    held = [s.registers.reshape(2, 2) for s in sums]  # (half of x's, of dy's)
    made = np.empty((2, 2, 2, 2), dtype=object)
    for j, l, e, four in np.ndindex(2, 2, 2, 2):
        entries = [
            _utils.vector_slice(held[4 * four + v][l, j], slice(e, e + 1))
            for v in range(4)
        ]
        made[j, l, e, four] = _utils.vector_concat(entries)
    return FragmentedArray(
        _registers=made.reshape(layout.registers_shape(aval.shape)),
        _layout=layout,
        _is_signed=None,
    )


def zero_sums() -> jax.Array:
    """Sums of 16 × 16 products for each of the four warps: (64, 16) of float32."""
    layout = plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=4)
    return plgpu.layout_cast(jnp.zeros((4 * TILE, TILE), jnp.float32), layout)


def add_products(
    dy: jax.Array, x: jax.Array, sums: Sequence[jax.Array], warps: Warps
) -> list[jax.Array]:
    """Adds products summed over the vectors, of each neighbour's 16 × 16 features.

    Args:
      dy: in `operand_layout`, of 16 features and 16 vectors for each warp along them.
      x: likewise.
      sums: each (64, 16), a warp's features one below another, in an order of their
        own; of neighbours v + 8q, where a warp has eight, and groups q of them. A
        warp's neighbours lie at 8·(warp + neighbours·q).
      warps: of the warpgroup.
    """
    made: list[jax.Array] = _add_p.bind(dy, x, *sums, warps=warps)
    return made


def zip_sums(sums: Sequence[jax.Array], warps: Warps, merged: int) -> jax.Array:
    """Eight neighbours' sums as an array (vectors, outputs, inputs, neighbours).

    Args:
      sums: of eight neighbours, as `add_products` has them.
      warps: of the warpgroup.
      merged: features of a line; 2 where they have rows of their own.
    """
    x: jax.Array = _zip_p.bind(*sums, warps=warps, merged=merged)
    return x
