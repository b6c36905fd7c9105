"""The kernel for two factors: values against float64, races, lanes, alignment."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels.common.tiles import SMEM_BYTES
from pallas_kernels.fused import first, last
from pallas_kernels.fused.api import Config, default_config, fused
from pallas_kernels.fused.plan import plan
from tests import alignment, gpu_interpreter, lane_machine, reference

SMALL = ((1, 16, 16, 16), (16, 16, 16, 1))
WIDE = ((1, 16, 16, 32), (16, 32, 32, 1))
TALL = ((1, 32, 32, 16), (32, 16, 16, 1))
LARGE = ((1, 32, 32, 32), (32, 32, 32, 1))
# Inputs and outputs of different numbers; blocks of 8; three warpgroups: of 24 blocks
# the last 8 are half of what mma.sync takes otherwise.
UNEQUAL = ((1, 64, 32, 16), (32, 16, 16, 1))
EIGHTS = ((1, 32, 32, 8), (32, 8, 32, 1))
ODD = ((1, 24, 24, 32), (24, 32, 32, 1))
THREES = ((1, 48, 48, 16), (48, 16, 16, 1))

both_layouts = pytest.mark.parametrize("axis", [-1, 0])


def draw(shapes, batch, dtype):
    patterns = bj.Chain(shapes)
    x = reference.draw((batch, patterns.in_features), dtype, seed=1)
    return x, reference.draw_factors(patterns, dtype, seed=2)


@pytest.mark.parametrize(
    ("shapes", "axis", "config", "batch", "options"),
    [
        # More tiles than there are slabs, by two and more; the last one is ragged.
        (LARGE, -1, Config(16, 3, 2, 1), 16 * 6 + 5, {}),
        (LARGE, 0, Config(64, 1, 0, 1), 64 * 3 + 40, {}),
        # Teams, of which some take less than others, or none.
        (WIDE, -1, Config(16, 2, 1, 2), 16 * 17, {"dtype": "float16"}),
        (TALL, 0, Config(32, 2, 0, 1), 32 * 8 + 24, {"dtype": "float16"}),
        (SMALL, 0, Config(32, 2, 0, 1), 8, {}),
        # Three warpgroups, and a batch that is odd.
        (ODD, -1, Config(16, 1, 1, 1), 41, {"activation": "gelu", "bias": "float32"}),
        (
            UNEQUAL,
            0,
            Config(32, 2, 0, 1),
            40,
            {"activation": "silu", "bias": "bfloat16"},
        ),
    ],
)
def test_values_and_races(shapes, axis, config, batch, options):
    dtype, activation = options.get("dtype", "bfloat16"), options.get("activation")
    x, factors = draw(shapes, batch, dtype)
    expected = reference.apply(x, factors)
    bias = None
    if "bias" in options:
        bias = reference.draw(expected.shape[1:], options["bias"], seed=3)
        expected = expected + reference.wide(bias)
    function = functools.partial(fused, axis=axis, config=config, activation=activation)
    y = gpu_interpreter.run(
        lambda x, factors, bias: function(x, factors, bias=bias),
        x if axis == -1 else x.T,
        factors,
        bias,
    )
    assert y.dtype == dtype
    error = reference.relative_error(
        y if axis == -1 else y.T, reference.activate(expected, activation)
    )
    assert error < tolerance(dtype, 2)


def run_lanes(function, operands, result, *arrays):
    """What a product is, by what each lane of each warp does with its registers.

    Args:
      function: a product, from registers to registers.
      operands: fragments of 16-bit arrays.
      result: fragment of the result, of float32 or, if in pairs, of 16 bits.
      arrays: the operands.
    """
    places = [lane_machine.held(one.layout, one.shape) for one in operands]
    to = lane_machine.held(result.layout, result.shape)
    found = np.full(result.shape, np.nan)
    for warp in range(4):
        machine = lane_machine.Machine(np.empty(0, np.uint8), warp)
        words = []
        for array, at, one in zip(arrays, places, operands, strict=True):
            mine = np.ascontiguousarray(array.reshape(-1)[at[:, warp]]).view(np.uint32)
            registers = np.empty(mine.shape[::2], dtype=object)
            for place in np.ndindex(*registers.shape):
                registers[place] = mine[place[0], :, place[1]]
            words.append(registers.reshape(*one.registers, -1))
        entries = function(*words, isa=machine)
        entries = entries.reshape(-1, entries.shape[-1])
        assert len(entries) == len(to)
        for register, at in zip(entries, to[:, warp], strict=True):
            values = np.stack([*register], -1)  # lanes, entries
            if values.dtype == np.uint32:
                values = values.view(arrays[0].dtype)
            found.reshape(-1)[at] = values
    return found


@pytest.mark.parametrize(
    ("shapes", "axis"),
    [
        *itertools.product((SMALL, LARGE, UNEQUAL, THREES), (-1, 0)),
        (EIGHTS, -1),
        (ODD, -1),
    ],
)
def test_lanes(shapes, axis):
    """Registers hold what the interpreter takes them to hold, and mma.sync gets it."""
    found = plan(shapes, jnp.dtype("bfloat16"), None, axis)
    layout = last if axis == -1 else first

    def with_(function, *args):
        return lambda plan, *more, **options: function(plan, *args, *more, **options)

    def check(lanes, arrays, operands, result):
        drawn = [reference.draw(f.shape, "bfloat16", n) for n, f in enumerate(operands)]
        expected = reference.wide(arrays(found, *drawn))
        got = run_lanes(functools.partial(lanes, found), operands, result, *drawn)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)

    steps = [] if axis == -1 else [2]
    right = layout.x_fragment(found, *steps), last.right_fragment(found)
    left = layout.left_operands(found)
    given = [layout.left_as_given(found)]
    h, y = layout.h_stored(found), layout.y_fragment(found)
    if axis == -1:
        check(with_(last.multiply_right, "bfloat16"), last.right_values, right, h)
        check(with_(last.multiply_left, "bfloat16"), last.left_values, left, y)
        check(last.pair_left, lambda plan, w: w, given, left[-1])
        return
    for n in np.ndindex(found.blocks_of_warp, 2):
        lanes, arrays = with_(first.multiply_right, "bfloat16", *n), first.right_values
        check(lanes, with_(arrays, *n), right, h)
    for n in range(found.middle_of_warp):
        lanes, arrays = with_(first.multiply_left, "bfloat16", n), first.left_values
        check(lanes, with_(arrays, n), left, y)
    for n in range(found.groups_middle):
        check(with_(first.pair_left, n), with_(first.pair_values, n), given, left[-1])


@both_layouts
@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=str)
def test_accesses_are_aligned(shapes, axis):
    n_in, n_out = bj.Chain(shapes).in_features, bj.Chain(shapes).out_features
    array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
    alignment.check_alignment(
        lambda x, factors, bias: fused(x, factors, axis=axis, bias=bias),
        array((1000, n_in) if axis == -1 else (n_in, 1000)),
        [array(shape) for shape in shapes],
        array((n_out,)),
    )


@both_layouts
@pytest.mark.parametrize("n", [16, 32], ids=str)
def test_default_configurations_fit(n, axis):
    shapes = ((1, n, n, n), (n, n, n, 1))
    config = default_config(shapes, "float16", 25_088, axis=axis)
    found = plan(shapes, jnp.dtype("float16"), None, axis)
    assert found.smem_bytes(config.rows, config.stages, config.out_stages) <= SMEM_BYTES


@pytest.mark.parametrize(
    ("shapes", "options", "reason"),
    [
        ((*LARGE, (1024, 2, 2, 1)), {}, "two factors"),
        (((2, 16, 16, 16), (32, 16, 16, 1)), {}, "two factors"),
        (LARGE, {"dtype": "float32"}, "bfloat16 or both float16"),
        (LARGE, {"out_dtype": "float32"}, "bfloat16 or both float16"),
        (((1, 20, 16, 16), (16, 16, 16, 1)), {}, "b0 must be a multiple of 8"),
        (
            ((1, 24, 16, 16), (16, 16, 16, 1)),
            {"axis": 0},
            "b0 must be a multiple of",
        ),
        (((1, 64, 64, 64), (64, 64, 64, 1)), {}, "weights stay in registers"),
        (((1, 8, 16, 16), (16, 16, 16, 1)), {}, "no number of warpgroups"),
        (SMALL, {"axis": 0, "batch": 20}, "multiple of 8"),
    ],
)
def test_what_is_not_taken(shapes, options, reason):
    options = {"dtype": "bfloat16", "batch": 64, **options}
    with pytest.raises(NotImplementedError, match=reason):
        default_config(shapes, options.pop("dtype"), options.pop("batch"), **options)


@pytest.mark.parametrize(
    ("config", "axis", "reason"),
    [
        (Config(16, 9, 2, 132), -1, "shared memory"),
        (Config(16, 2, 0, 132), -1, "out_stages"),
        (Config(32, 2, 2, 132), 0, "out_stages"),
        (Config(16, 2, 0, 132), 0, "rows must be one of"),
    ],
)
def test_configurations_that_do_not_fit(config, axis, reason):
    x, factors = draw(LARGE, 32, "bfloat16")
    with pytest.raises(NotImplementedError, match=reason):
        fused(x if axis == -1 else x.T, factors, axis=axis, config=config)


@both_layouts
def test_an_empty_batch(axis):
    x, factors = draw(SMALL, 0, "bfloat16")
    y = fused(x if axis == -1 else x.T, factors, axis=axis)
    assert y.shape == ((0, 256) if axis == -1 else (256, 0))
