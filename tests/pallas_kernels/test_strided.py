"""The kernel for one strided factor: values against float64, races, lanes, spills."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from butterjax.numerics import tolerance
from pallas_kernels.common.slabs import SWIZZLES
from pallas_kernels.strided import lanes
from pallas_kernels.strided.api import Config, default_config, strided
from pallas_kernels.strided.plan import GROUP, WARPS, plan
from tests import gpu_interpreter, lane_machine, reference
from tests.alignment import check_alignment

# What the kernel is to be fast for, and the corners: fewer inputs, outputs or
# neighbours than a tile of the tensor core has; warps that are left over; clusters.
SHAPES = [
    *((1, 32, 32, 64), (1, 64, 64, 64), (1, 32, 32, 32), (1, 48, 48, 16)),
    *((4, 64, 64, 16), (1, 128, 128, 16), (1, 64, 64, 8), (1, 48, 48, 64)),
    *((2, 24, 40, 16), (1, 16, 64, 48), (1, 8, 16, 256), (1, 64, 48, 24)),
    (2, 40, 104, 8),
]


def draw(shape, batch, dtype):
    a, _, c, d = shape
    x = reference.draw((batch, a * c * d), dtype, seed=1)
    w = (reference.draw(shape, dtype, seed=2) / np.sqrt(c)).astype(dtype)
    return x, w


@pytest.mark.parametrize(
    ("shape", "config", "batch", "dtype", "options"),
    [
        # Rows whole, three times as many tiles as stages, and a ragged one.
        ((1, 32, 32, 16), Config(16, 1, 2, ctas=1), 32 * 5 + 3, "bfloat16", {}),
        # Runs of 16 neighbours by two CTAs side by side; one more block along a.
        ((2, 16, 16, 32), Config(16, 1, 3, ctas=2), 64, "float16", {}),
        # Groups end within a CTA's run. Fewer inputs and outputs than tiles have.
        (
            *((3, 24, 40, 16), Config(16, 1, 4, ctas=2), 48, "bfloat16"),
            {"activation": "gelu", "bias": "bfloat16"},
        ),
        # A cluster, whose CTAs' outputs are no multiple of 16.
        (
            *((1, 48, 32, 32), Config(32, 2, 3, ctas=2), 8 * 8, "bfloat16"),
            {"activation": "relu", "bias": "float32", "out_dtype": "float16"},
        ),
        # A warp has four tiles of outputs, and loads x for two of them at a time.
        ((1, 64, 16, 16), Config(16, 1, 3, ctas=1), 70, "bfloat16", {}),
        # 4 neighbours of a warp, whose inputs come in two parts.
        ((1, 32, 128, 16), Config(8, 1, 3, ctas=2), 70, "float16", {}),
    ],
)
def test_values_and_races(shape, config, batch, dtype, options):
    x, w = draw(shape, batch, dtype)
    bias_dtype = options.pop("bias", None)
    function = functools.partial(strided, config=config, **options)
    expected = reference.apply(x, [w])
    if bias_dtype is None:
        y = gpu_interpreter.run(function, x, w)
    else:
        bias = reference.draw(expected.shape[1:], bias_dtype, seed=3)
        y = gpu_interpreter.run(lambda *a: function(*a[:2], bias=a[2]), x, w, bias)
        expected = expected + reference.wide(bias)
    expected = reference.activate(expected, options.get("activation"))
    assert y.dtype == options.get("out_dtype", dtype)
    assert reference.relative_error(y, expected) < tolerance(dtype, 1)


def tile_bytes(rows, slot, swizzle):
    """Where in a slot TMA puts each entry of rows (count, entries)."""
    _, pitch, line = slot
    entries = np.arange(rows.shape[1])
    at = np.arange(len(rows))[:, None] * pitch * line + entries
    return lane_machine.swizzled(2 * at, swizzle)


def copy_in(rows, shared, start, slot, swizzle):
    at = start + tile_bytes(rows, slot, swizzle)
    values = np.ascontiguousarray(rows).view(np.uint16)
    shared[at], shared[at + 1] = values & 255, values >> 8


def copy_out(count, entries, shared, start, slot, swizzle, dtype):
    at = start + tile_bytes(np.empty((count, entries)), slot, swizzle)
    values = shared[at].astype(np.uint16) | shared[at + 1].astype(np.uint16) << 8
    return values.view(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lanes(shape):
    """A tile of the last CTA of a cluster, by what each lane does, with a bias."""
    a, b, c, d = shape
    dtype = "float16" if c == 32 else "bfloat16"
    found = plan(shape, 1000, default_config(shape, dtype, 1000))
    neighbours, outputs, rows = found.config.neighbours, found.outputs, found.rows
    rank, k = found.config.cluster - 1, d - neighbours
    x, w = draw((1, b, c, d), rows, dtype)
    x = x.reshape(rows, c, d)[..., k:]
    bias = reference.draw((a, b, d), dtype, seed=3)
    mine = w[0, rank * outputs : (rank + 1) * outputs, :, k:]

    def padded(array, count):
        more = [(0, count - len(array)), (0, found.inputs - c), (0, 0)]
        return np.pad(array, more).reshape(count, -1)

    swizzle = 2 * found.line if 2 * found.line in SWIZZLES else 16
    size_in, size_out = 2 * math.prod(found.slot_in), 2 * math.prod(found.slot_out)
    shared = np.full(size_in * (found.chunks + 1) + size_out, 255, np.uint8)
    chunks = padded(mine, found.chunks * rows).reshape(found.chunks, rows, -1)
    for n, chunk in enumerate(chunks):
        copy_in(chunk, shared, n * size_in, found.slot_in, swizzle)
    start = found.chunks * size_in
    copy_in(padded(x, rows), shared, start, found.slot_in, swizzle)
    to = start + size_in
    for warp in range(WARPS):
        machine = lane_machine.Machine(shared, warp)
        weights = lanes.load_weights(machine, found, machine.thread, 0)
        machine.wavefronts = machine.fewest = 0
        vectors = [
            lanes.load_vectors(machine, found, machine.thread, start, part)
            for part in range(found.parts)
        ]
        for tile, of_tile in enumerate(weights):
            sums = None
            for part, of_part in enumerate(vectors):
                sums = lanes.multiply(
                    machine, found, of_tile, of_part, sums, part, dtype
                )
            offsets = lanes.load_bias(
                *(machine, found, machine.thread),
                *(bias, a - 1, rank * outputs, k, tile),
            )
            sums = [x + y for x, y in zip(sums, offsets, strict=True)]
            lanes.store(machine, found, machine.thread, sums, to, tile, dtype)
        # 4 neighbours are 8 bytes of 16, for all lanes the same half of the banks.
        assert machine.wavefronts == machine.fewest * (8 // found.width)
    y = copy_out(
        *(rows, outputs * neighbours, shared, to, found.slot_out, swizzle, dtype)
    )
    expected = np.einsum("rlk,jlk->rjk", reference.wide(x), reference.wide(mine))
    offset = reference.wide(bias)[-1, rank * outputs : (rank + 1) * outputs, k:]
    expected = (expected + offset).reshape(y.shape)
    assert reference.relative_error(y, expected) < tolerance(dtype, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 100, 25_088])
def test_tiles_are_taken_once_and_aligned(shape, batch):
    """By the arithmetic of runs: groups · tiles over walkers; and all of d."""
    found = plan(shape, batch, default_config(shape, "bfloat16", batch))
    a, _, _, d = shape
    assert found.groups * found.abreast * found.config.neighbours == a * d
    assert found.rows * found.tiles >= batch > found.rows * (found.tiles - 1)
    ctas = found.walkers * found.abreast * found.config.cluster
    assert ctas <= found.config.ctas
    assert found.rows == GROUP * found.row_groups
    # TMA writes to multiples of 128 bytes, what a CTA of a cluster fetches too.
    _, pitch, line = found.slot_in
    assert 2 * found.rows // found.config.cluster * pitch * line % 128 == 0
    assert 2 * math.prod(found.slot_out) % 128 == 0


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((1, 32, 32, 12), None, "d must be a multiple of 8, got 12"),
        ((1, 36, 32, 16), None, "b must be a multiple of 8, got 36"),
        ((1, 32, 136, 16), None, "c must be at most 128, got 136"),
        ((1, 512, 128, 64), None, "registers of"),
        ((1, 32, 32, 16), Config(32), "divides d = 16, got 32"),
        ((1, 32, 32, 16), Config(16, cluster=3), "one of .1, 2, 4., got 3"),
        ((1, 24, 32, 16), Config(16, cluster=2), "b = 24 does not consist of 2"),
        ((1, 64, 64, 64), Config(64), "take the registers of 32 warps"),
        ((1, 64, 64, 16), Config(16, stages=7), "come in 8 tiles, but stages is 7"),
        ((1, 64, 64, 16), Config(16, stages=12), "bytes of shared memory are more"),
    ],
)
def test_refusals(shape, config, message):
    x, w = draw(shape, 8, "bfloat16")
    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(functools.partial(strided, config=config), x, w)


def test_dtypes_and_layouts_that_the_kernel_has_not():
    x, w = draw((1, 32, 32, 16), 8, "float32")
    with pytest.raises(NotImplementedError, match="must be bfloat16 or float16"):
        strided(x, w)
    x, w = x.astype("bfloat16"), w.astype("bfloat16")
    with pytest.raises(NotImplementedError, match="out_dtype must be"):
        strided(x, w, out_dtype=jnp.float32)
    with pytest.raises(NotImplementedError, match="features must come last"):
        strided(x.T, w, axis=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accesses_are_aligned(shape):
    a, b, c, d = shape
    x = jax.ShapeDtypeStruct((1000, a * c * d), "bfloat16")
    w = jax.ShapeDtypeStruct(shape, "bfloat16")
    bias = jax.ShapeDtypeStruct((a * b * d,), "float32")
    check_alignment(lambda x, w, bias: strided(x, w, bias=bias), x, w, bias)


def test_an_empty_batch():
    x, w = draw((1, 32, 32, 16), 0, "bfloat16")
    assert strided(x, w).shape == (0, 512)


def test_it_is_for_gpus():
    x, w = draw((1, 32, 32, 16), 8, "bfloat16")
    with pytest.raises(NotImplementedError, match="NVIDIA GPUs"):
        jax.jit(strided).lower(x, w)
