"""What a thread holds of operands that lie zipped, against the layouts of mma.sync.

The interpreter knows no threads, so that a wrong register would pass it.
"""

import itertools
import types

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.mosaic.gpu.fragmented_array import Replicated
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from tests.covering import covering

ZIPPED = [(2, 4), (3, 4), (4, 2), (5, 2), (8, 1), (12, 1)]  # Blocks, inputs of a lane.
THREADS = list(itertools.product(range(4), (0, 1, 6, 15, 16, 31)))  # Warps and lanes.


def held(layout, array, warp, lane):
    """The registers of a thread that holds its part of an array, each a vector."""
    for tile in layout.tiling.tiles:
        lead = array.ndim - len(tile)
        split = [
            size
            for n, t in zip(array.shape[lead:], tile, strict=True)
            for size in (n // t, t)
        ]
        array = array.reshape(*array.shape[:lead], *split)
        axes = range(lead, lead + 2 * len(tile))
        array = array.transpose(*range(lead), *axes[::2], *axes[1::2])
    for dims, index in ((layout.warp_dims, warp), (layout.lane_dims, lane)):
        sizes = [
            dim.times if isinstance(dim, Replicated) else array.shape[dim]
            for dim in dims
        ]
        places = np.unravel_index(index, sizes)
        for dim, place in zip(dims, places, strict=True):
            if not isinstance(dim, Replicated):
                array = array.take([place], axis=dim)
    vectors = np.moveaxis(array, layout.vector_dim, -1)
    registers = np.empty(vectors.shape[:-1], object)
    for place in np.ndindex(registers.shape):
        registers[place] = vectors[place]
    return registers


@pytest.fixture(autouse=True)
def numbers_for_values(monkeypatch):
    """Registers of arrays of numbers instead of what a compiler deals in."""
    fake = types.SimpleNamespace(
        vector_slice=lambda vector, part: vector[part],
        vector_concat=np.concatenate,
    )
    monkeypatch.setattr(compat, "_mgpu_utils", fake)
    monkeypatch.setattr(
        compat,
        "FragmentedArray",
        lambda _registers, _layout, _is_signed: types.SimpleNamespace(
            registers=_registers, layout=_layout
        ),
    )


def array_of(registers, layout, shape):
    """A kernel's array as the lowering rules see it."""
    return types.SimpleNamespace(
        registers=np.asarray(registers, object).reshape(layout.registers_shape(shape)),
        layout=layout,
        shape=shape,
        is_signed=None,
    )


def context(*shapes):
    avals = [types.SimpleNamespace(shape=shape) for shape in shapes]
    return types.SimpleNamespace(avals_out=avals)


def assert_alike(found, layout, array, warp, lane):
    expected = held(layout, array, warp, lane)
    assert found.registers.size == expected.size
    np.testing.assert_array_equal(
        np.stack(found.registers.ravel()), np.stack(expected.ravel())
    )


def test_fragments_are_those_of_mma_sync():
    """PTX, mma.m16n8k16: row lane / 4, columns 2·(lane mod 4) and the next."""
    a = np.arange(16 * 16).reshape(16, 16)
    layout = plgpu.Layout.MMA_LHS(jnp.bfloat16, m_warps=1).to_mgpu()
    for warp, lane in THREADS:
        row, column = lane // 4, 2 * (lane % 4)
        found = {tuple(vector) for vector in held(layout, a, warp, lane).ravel()}
        assert found == {
            tuple(a[row + down, column + right : column + right + 2])
            for down in (0, 8)
            for right in (0, 8)
        }


@pytest.mark.parametrize(
    ("case", "m_warps", "operand"), covering(ZIPPED, [1, 2, 4], ["LHS", "RHS"])
)
def test_operands(case, m_warps, operand):
    blocks, inputs = case
    rows = 128
    shape = (4 // inputs, rows, 4 * inputs * blocks)
    x = np.arange(np.prod(shape)).reshape(shape)
    zipped = compat.zipped_operands(operand, shape, m_warps, 2).to_mgpu()
    layout = getattr(plgpu.Layout, f"MMA_{operand}")(jnp.bfloat16, m_warps=m_warps)
    # Column 8h + 2t + e is input 2h + e of lane t; k is the block.
    entries = x.reshape(shape[0], rows, 4, -1, blocks)
    expected = np.empty((blocks, rows, 16), int)
    for h, t, e in itertools.product(range(2), range(4), range(2)):
        panel, one = divmod(2 * h + e, inputs)
        expected[:, :, 8 * h + 2 * t + e] = entries[panel, :, t, one].T
    if operand == "RHS":
        expected = expected.swapaxes(1, 2)
    for warp, lane in THREADS:
        mine = array_of(held(zipped, x, warp, lane), zipped, shape)
        found = compat._unzip_lane(
            context(*(one.shape for one in expected)),
            mine,
            operand=operand,
            blocks=blocks,
            layout=layout,
        )
        for k, part in enumerate(found):
            assert_alike(part, layout.to_mgpu(), expected[k], warp, lane)


@pytest.mark.parametrize(("case", "m_warps"), covering(ZIPPED, [1, 2, 4]))
def test_sums_and_bias(case, m_warps):
    blocks, _ = case
    rows, columns = 128, 64
    sums = np.arange(blocks * rows * columns).reshape(blocks, rows, columns)
    y = sums.transpose(1, 2, 0).reshape(rows, columns // 8, 8 * blocks)
    y = y.swapaxes(0, 1)
    layout = plgpu.Layout.MMA_ACC(jnp.float32, m_warps=m_warps)
    of_columns = layout.reduce(0)
    zipped = compat.zipped_sums(y.shape, m_warps, 2)
    zipped_bias = compat.zipped_bias((columns // 8, 8 * blocks), m_warps, 2).to_mgpu()
    for warp, lane in THREADS:
        parts = [
            array_of(
                held(layout.to_mgpu(), one, warp, lane), layout.to_mgpu(), one.shape
            )
            for one in sums
        ]
        found = compat._zip_lane(context(), *parts, shape=y.shape, layout=zipped)
        assert_alike(found, zipped.to_mgpu(), y, warp, lane)
        # The bias of what is in row 0.
        bias = y[:, 0]
        mine = array_of(held(zipped_bias, bias, warp, lane), zipped_bias, bias.shape)
        offsets = compat._unzip_bias_lane(
            context(*[(columns,)] * blocks), mine, blocks=blocks, layout=of_columns
        )
        for k, part in enumerate(offsets):
            assert_alike(part, of_columns.to_mgpu(), sums[k, 0], warp, lane)
