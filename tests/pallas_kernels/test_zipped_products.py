"""Which register holds what, which the interpreter does not see.

The rules for a GPU are run with a warpgroup's registers as NumPy arrays (threads,
entries), filled as the layouts say, and with mma.sync by PTX's tables of fragments.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.lib.mlir import ir
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import zipped_products
from pallas_kernels.common.zipped_products import EIGHT, LINE, TILE, Warps

LANE, WARP = np.arange(128) % 32, np.arange(128) // 32
G, T = LANE // 4, LANE % 4


def registers(array, layout):
    """Of an array in a tiled layout, in order; each (128 threads, entries)."""
    tiled = array
    for tile in layout.tiling.tiles:
        lead = tiled.ndim - len(tile)
        parts = zip(tiled.shape[lead:], tile, strict=True)
        split = [n for whole, part in parts for n in (whole // part, part)]
        tiled = tiled.reshape(*tiled.shape[:lead], *split)
        outer, inner = range(lead, tiled.ndim, 2), range(lead + 1, tiled.ndim, 2)
        tiled = tiled.transpose(*range(lead), *outer, *inner)
    # What several warps hold alike is an axis of its own, of copies.
    axes = []
    for axis in (*layout.warp_dims, *layout.lane_dims):
        if isinstance(axis, int):
            axes.append(axis - 1)  # From the end, before a last axis of length 1.
        else:
            tiled = np.broadcast_to(tiled, (axis.times, *tiled.shape))
            axes.append(None)
    copies = iter(reversed(range(axes.count(None))))
    tiled = tiled[..., None]
    axes = [next(copies) if axis is None else tiled.ndim + axis for axis in axes]
    vector = tiled.ndim - 1 + layout.vector_dim
    rest = [n for n in range(tiled.ndim) if n not in axes and n != vector]
    moved = tiled.transpose(*rest, *axes, vector)
    moved = moved.reshape(-1, 128, tiled.shape[vector])
    found = np.empty(len(moved), object)
    found[:] = list(moved)
    return found


def mma(acc, a, b):
    """The fragments of mma.m16n8k16.row.col, for each tile of 8 columns of b."""
    left = np.zeros((4, 16, 16))
    for r, register in enumerate(a.registers.flat):
        for e in range(2):
            left[WARP, G + 8 * (r % 2), 2 * T + e + 8 * (r // 2)] = register[:, e]
    tiles = b.registers.reshape(-1, 2)
    right = np.zeros((4, 16, 8 * len(tiles)))
    for tile, r in np.ndindex(tiles.shape):
        for e in range(2):
            right[WARP, 2 * T + e + 8 * r, G + 8 * tile] = tiles[tile, r][:, e]
    return acc + (left @ right).reshape(acc.shape)


class Array:
    """Stands in for a FragmentedArray."""

    def __init__(self, _registers, _layout=None, _is_signed=None):
        self.registers = _registers


@pytest.fixture(autouse=True)
def numpy_instead(monkeypatch):
    monkeypatch.setattr(zipped_products, "FragmentedArray", Array)
    monkeypatch.setattr(zipped_products, "mma", mma)
    utils = types.SimpleNamespace(
        vector_slice=lambda register, entries: register[:, entries],
        vector_concat=lambda parts: np.concatenate(parts, axis=1),
        warp_barrier=lambda: None,
    )
    monkeypatch.setattr(zipped_products, "_utils", utils)


@pytest.mark.parametrize(
    ("merged", "unit", "warps"),
    [
        # Lines of 8, 4 and 2 features.
        (8, (LINE,), Warps(1, 2, 2, 1)),
        (4, (LINE,), Warps(2, 1, 1, 2)),
        (2, (LINE,), Warps(1, 1, 1, 4)),
        # Rows of their own, of 8 to 64 neighbours.
        (2, (2, 8), Warps(1, 1, 4, 1)),
        (2, (2, 16), Warps(1, 2, 1, 2)),
        (2, (2, 32), Warps(1, 1, 1, 4)),
        (2, (2, 64), Warps(1, 1, 1, 4)),
    ],
)
def test_products(merged, unit, warps):
    rng = np.random.default_rng(0)
    operands, held = [], []
    for is_dy, tiles in ((True, warps.outputs), (False, warps.inputs)):
        shape = (tiles * TILE // merged, 16 * warps.vectors, *unit)
        layout = zipped_products.operand_layout(shape, warps, is_dy=is_dy).to_mgpu()
        operands.append(rng.standard_normal(shape))
        held.append(Array(registers(operands[-1], layout)))
        # Eight lanes of a load meet in no bank; the swizzle is as wide as a row.
        places = np.arange(operands[-1].size).reshape(shape)
        for register in registers(places, layout):
            byte = 2 * register[:, 0]
            row = 2 * unit[-1]
            swizzled = byte ^ (byte // 128 % (row // 16) * 16)
            banks = (swizzled % 128 // 16).reshape(16, 8)
            assert all(len(set(phase)) == 8 for phase in banks)
    neighbours = 2 * unit[-1] if len(unit) == 2 else LINE
    groups = neighbours // merged // (EIGHT * warps.neighbours)
    sums = [np.zeros((64, TILE))] * (EIGHT * groups)
    with ir.Context():
        found = zipped_products._add_lane(None, *held, *sums, warps=warps)
    add = jax.jit(functools.partial(zipped_products._add, warps=warps))
    expected = add(*operands, *sums)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("merged", "warps"),
    [
        (8, Warps(1, 2, 2, 1)),
        (4, Warps(2, 1, 1, 2)),
        (4, Warps(1, 2, 1, 2)),
        (2, Warps(1, 1, 4, 1)),
        (2, Warps(1, 1, 1, 4)),
    ],
)
def test_sums(merged, warps):
    rng = np.random.default_rng(0)
    sums = rng.standard_normal((EIGHT, 64, TILE)).astype(np.float32)
    fragments = plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=4).to_mgpu()
    expected = zipped_products._zip(*map(jnp.asarray, sums), warps=warps, merged=merged)
    layout = zipped_products.sums_layout(warps, merged).to_mgpu()
    context = types.SimpleNamespace(avals_out=[expected])
    with ir.Context():
        found = zipped_products._zip_lane(
            context,
            *[Array(registers(s, fragments)) for s in sums],
            warps=warps,
            merged=merged,
        )
    wanted = registers(np.asarray(expected), layout)
    for one, other in zip(found.registers.flat, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
