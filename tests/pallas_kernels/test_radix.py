"""The radix kernel, in the interpreter: values against float64, and races."""

import functools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels.common import chip
from pallas_kernels.radix import Config, cost, default_config, radix
from pallas_kernels.radix.config import plan_for
from tests import gpu_interpreter, reference
from tests.alignment import check_alignment
from tests.covering import covering

SMALL = Config(rows=64, warpgroups=1, ctas=2)
PAIR = Config(rows=16, warpgroups=2, ctas=2)
AHEAD = Config(rows=128, warpgroups=2, stages=2, ctas=1)
DYADIC = bj.Chain.square_dyadic(64).shapes

LAYOUTS = [-1, 0]
both_layouts = pytest.mark.parametrize("axis", LAYOUTS)


def check(shapes, *, batch, axis, dtype="float32", config=SMALL, **more):
    """Compares the kernel with float64 on random numbers."""
    patterns = bj.Chain(shapes)
    x = reference.draw((batch, patterns.in_features), dtype, seed=1)
    factors = reference.draw_factors(patterns, dtype, seed=2)
    function = functools.partial(radix, axis=axis, config=config, **more)
    y = gpu_interpreter.run(function, x if axis == -1 else x.T, factors)
    expected = reference.apply(x, factors)
    if "bias" in more:
        expected = expected + reference.wide(more["bias"])
    expected = reference.activate(expected, more.get("activation"))
    out_dtype = more.get("out_dtype", dtype)
    assert y.dtype == out_dtype
    error = reference.relative_error(y if axis == -1 else y.T, expected)
    # Nothing is rounded to 16 bits but the result.
    factors_that_round = len(patterns) if out_dtype == "float32" else 1
    assert error < tolerance(out_dtype, factors_that_round)


@pytest.mark.parametrize(("n", "axis"), covering([16, 32], LAYOUTS))
def test_radix_2(n, axis):
    check(bj.Chain.square_dyadic(n).shapes, batch=72, axis=axis)


@both_layouts
def test_radix_2_of_256_features(axis):
    check(bj.Chain.square_dyadic(256).shapes, batch=40, axis=axis, config=PAIR)


CHAINS = [
    [(8, 2, 2, 1)],
    [(1, 2, 2, 8)],
    [(2, 8, 8, 4)],
    [(4, 8, 4, 2)],
    [(1, 16, 4, 4)],
    [(3, 2, 2, 4)],
    [(1, 3, 5, 16)],
    [(1, 4, 4, 16), (4, 4, 4, 4), (16, 4, 4, 1)],
    [(1, 8, 8, 8), (8, 8, 8, 1)],
    [(1, 2, 4, 16), (2, 8, 4, 4), (8, 4, 2, 1)],
    [(1, 8, 2, 16), (2, 2, 4, 8), (8, 8, 4, 1)],
    [(1, 6, 3, 8), (3, 2, 4, 4), (12, 4, 8, 1)],
    [*reversed(DYADIC)],
    [(1, 2, 2, 32), (32, 2, 2, 1)],
    [(2, 2, 2, 16)] * 3,
]


@pytest.mark.parametrize(("shapes", "axis"), covering(CHAINS, LAYOUTS), ids=str)
def test_patterns(shapes, axis):
    check(shapes, batch=72, axis=axis)


@both_layouts
def test_more_digits_than_tma_has_axes(axis):
    shapes = [(4**i, 4, 4, 4 ** (4 - i)) for i in range(5)]
    config = Config(rows=4, warpgroups=2, ctas=2)
    check(shapes, batch=8 if axis == 0 else 7, axis=axis, config=config)


@pytest.mark.parametrize(("dtype", "axis"), covering(["bfloat16", "float16"], LAYOUTS))
def test_16_bit_types_are_rounded_once(dtype, axis):
    check(DYADIC, batch=72, axis=axis, dtype=dtype)


@pytest.mark.parametrize(("config", "axis"), covering([PAIR, AHEAD], LAYOUTS), ids=str)
def test_configurations_and_ragged_batches(config, axis):
    check(DYADIC, batch=config.rows * 2 + 8, axis=axis, config=config)


@both_layouts
def test_tiles_of_one_pass_fetch_ahead(axis):
    check([(4, 2, 2, 4)], batch=296, axis=axis, config=AHEAD)


@pytest.mark.parametrize("batch", [1, 63, 65])
def test_any_batch(batch):
    check(DYADIC, batch=batch, axis=-1)


@pytest.mark.parametrize(
    ("activation", "axis"), covering([None, "relu", "gelu", "silu"], LAYOUTS)
)
def test_epilogue(activation, axis):
    bias = reference.draw((64,), "float32", seed=3)
    check(DYADIC, batch=72, axis=axis, bias=bias, activation=activation)


@both_layouts
def test_bias_of_rectangular_blocks_and_a_wider_result(axis):
    shapes = [(1, 8, 4, 16), (4, 4, 2, 4)]
    bias = reference.draw((128,), "bfloat16", seed=3)
    more = {"bias": bias, "out_dtype": "float32"}
    check(shapes, batch=72, axis=axis, dtype="bfloat16", **more)


FACTORS = [
    (1, 2, 2, 64),
    (64, 2, 2, 1),
    (4, 4, 4, 16),
    (8, 8, 8, 1),
    (1, 8, 8, 8),
    (2, 16, 4, 8),
    (2, 4, 12, 8),
    (16, 2, 2, 4),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "axis"),
    covering(FACTORS, ["float32", "bfloat16", "float16"], LAYOUTS),
    ids=str,
)
def test_one_factor_in_its_default_configuration(shape, dtype, axis):
    check([shape], batch=72, axis=axis, dtype=dtype, config=None)


PARTS = [
    ((1, 2, 2, 64), (1, 4)),
    ((64, 2, 2, 1), (4, 1)),
    ((4, 4, 4, 32), (2, 2)),
    ((4, 4, 4, 32), (4, 4)),  # One block along a.
    ((4, 8, 8, 1), (4, 1)),  # One block.
    ((2, 8, 4, 8), (1, 1)),
]


@pytest.mark.parametrize(("case", "axis"), covering(PARTS, LAYOUTS), ids=str)
def test_parts_of_a_factor_with_bias_and_activation(case, axis):
    shape, parts = case
    a, b, _, d = shape
    bias = reference.draw((a * b * d,), "float16", seed=3)
    more = {"bias": bias, "activation": "gelu", "out_dtype": "float32"}
    # Several tiles for each CTA, whose last one is not whole.
    config = Config(128, 1, 2, 1, 2 * parts[0] * parts[1], *parts)
    check([shape], batch=264, axis=axis, dtype="bfloat16", config=config, **more)


@both_layouts
def test_one_factor_and_features_that_no_vector_of_tma_divides(axis):
    config = Config(128, 1, 2, 1, 4, 3, 1) if axis == 0 else SMALL
    shape = (3, 2, 4, 5) if axis == 0 else (3, 2, 4, 12)
    bias = reference.draw((6 * shape[3],), "float32", seed=3)
    more = {"bias": bias, "activation": "silu"}
    check([shape], batch=136, axis=axis, config=config, **more)


@pytest.mark.parametrize(("batch", "axis"), covering([8, 200], LAYOUTS))
def test_a_unit_has_several_turns(batch, axis):
    config = Config(32, 1, 2, 1, 2, 1, 2)
    check([(4, 8, 8, 16)], batch=batch, axis=axis, config=config)


@both_layouts
def test_empty_batch(axis):
    factors = reference.draw_factors(bj.Chain(DYADIC))
    x = jnp.zeros((0, 64) if axis == -1 else (64, 0))
    assert radix(x, factors, axis=axis).shape == x.shape


def test_vmap():
    xs = reference.draw((2, 72, 64))
    factors = reference.draw_factors(bj.Chain(DYADIC))
    function = functools.partial(radix, config=SMALL)
    ys = gpu_interpreter.run(jax.vmap(function, in_axes=(0, None)), xs, factors)
    for x, y in zip(xs, ys, strict=True):
        error = reference.relative_error(y, reference.apply(x, factors))
        assert error < tolerance("float32", len(factors))


def test_nan_reaches_no_feature_that_does_not_depend_on_it():
    x = np.array(reference.draw((72, 64)))
    x[3, 7] = np.nan
    factors = reference.draw_factors(bj.Chain([(8, 4, 4, 2)]))
    y = gpu_interpreter.run(functools.partial(radix, config=SMALL), x, factors)
    reached = np.argwhere(np.isnan(y))
    assert reached.tolist() == [[3, 1], [3, 3], [3, 5], [3, 7]]


def arrays(shapes, *, batch=64, axis=-1, dtype="float32"):
    """Shapes and dtypes of a call, without numbers."""
    n = bj.Chain(shapes).in_features
    x = jax.ShapeDtypeStruct((batch, n) if axis == -1 else (n, batch), dtype)
    return x, tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)


@both_layouts
@pytest.mark.parametrize("bias_dtype", ["float32", "bfloat16", "float8_e5m2"])
def test_weights_and_bias_are_read_as_they_are_given(bias_dtype, axis):
    """Outside the kernel nothing is moved: there are only views."""
    x, factors = arrays(DYADIC, axis=axis, dtype="bfloat16")
    bias = jax.ShapeDtypeStruct((64,), bias_dtype)
    for weights in (factors, factors[2:3]):
        traced = jax.make_jaxpr(lambda x, w, b: radix(x, w, axis=axis, bias=b))
        found = [eqn.primitive.name for eqn in traced(x, weights, bias).jaxpr.eqns]
        allowed = {"reshape", "gpu_only", "custom_vmap_call"}  # The last is the kernel.
        if bias_dtype == "float8_e5m2":  # The kernel does not load that.
            allowed |= {"convert_element_type"}
        assert set(found) == allowed and found.count("custom_vmap_call") == 1


def test_lowering_for_a_cpu_is_refused():
    with pytest.raises(NotImplementedError, match=r"NVIDIA GPUs.* lowered for cpu"):
        jax.jit(radix).lower(*arrays(DYADIC))


@both_layouts
def test_exports_for_a_gpu_from_any_machine(axis):
    function = jax.jit(functools.partial(radix, axis=axis))
    exported = jax.export.export(function, platforms=["cuda"])(
        *arrays(DYADIC, axis=axis)
    )
    assert "mosaic_gpu" in exported.mlir_module()


ALIGNED = [
    # Of these an H200 found the first five misaligned, features last.
    (DYADIC, "bfloat16", None),
    (bj.Chain.square_dyadic(256).shapes, "float16", None),
    ([(1, 4, 4, 16), (4, 4, 4, 4), (16, 4, 4, 1)], "bfloat16", None),
    ([(1, 4, 4, 16), (4, 4, 4, 4), (16, 4, 4, 1)], "float16", None),
    ([(1, 4, 2, 8), (2, 4, 2, 2)], "float32", None),
    (DYADIC, "float32", None),
    (DYADIC, "bfloat16", AHEAD),
    ([(1, 6, 3, 8), (3, 2, 4, 4), (12, 4, 8, 1)], "float32", SMALL),
    ([(4, 4, 4, 32)], "bfloat16", Config(128, 1, 2, 1, 8, 2, 2)),
    ([(64, 8, 8, 1)], "float32", None),
]


@pytest.mark.parametrize(("case", "axis"), covering(ALIGNED, LAYOUTS), ids=str)
def test_accesses_are_aligned(case, axis):
    shapes, dtype, config = case
    n = bj.Chain(shapes).out_features
    bias = jax.ShapeDtypeStruct((n,), dtype)
    call = arrays(shapes, batch=1000, axis=axis, dtype=dtype)
    function = functools.partial(radix, axis=axis, config=config)
    check_alignment(lambda x, w, bias: function(x, w, bias=bias), *call, bias)


@pytest.mark.parametrize(
    ("call", "axis", "reason"),
    [
        (
            arrays(DYADIC, dtype="complex64"),
            -1,
            "dtype of x must be one of .* complex64",
        ),
        (arrays([(1, 16, 16, 1)]), -1, "shape .1, 16, 16, 1. does not fit a thread"),
        (arrays([(1, 3, 5, 2)]), -1, "rows of whole 16 bytes"),
        (arrays(DYADIC, batch=30, axis=0), 0, "rows of whole 16 bytes"),
        (arrays(bj.Chain.square_dyadic(8192).shapes), -1, "bytes of shared memory"),
    ],
)
def test_what_is_unsupported_is_refused_while_tracing(call, axis, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(radix, axis=axis), *call)


def test_sizes_that_do_not_fit_are_refused():
    x, factors = arrays(DYADIC)
    with pytest.raises(ValueError, match="takes a·c·d = 64 features, but is given 32"):
        jax.eval_shape(radix, jax.ShapeDtypeStruct((8, 32), "float32"), factors)
    with pytest.raises(ValueError, match="axis must be 0 or -1, got 1"):
        jax.eval_shape(functools.partial(radix, axis=1), x, factors)
    bias = jax.ShapeDtypeStruct((32,), "float32")
    with pytest.raises(ValueError, match=r"bias must have the shape \(64,\)"):
        jax.eval_shape(lambda x, w, b: radix(x, w, bias=b), x, factors, bias)
    with pytest.raises(ValueError, match="Precision"):
        jax.eval_shape(functools.partial(radix, precision="exact"), x, factors)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rows": 0}, "rows must be positive, got 0"),
        ({"rows": 512}, "rows must be at most 256, got 512"),
        ({"warpgroups": 3}, "warpgroups must be 1, 2 or 4, got 3"),
        ({"parts_d": 0}, "parts_d must be positive, got 0"),
    ],
)
def test_configurations_that_cannot_be(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Config(**fields)


@both_layouts
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n", [16, 256, 1024])
def test_there_is_a_default_configuration(n, dtype, axis):
    shapes = bj.Chain.square_dyadic(n).shapes
    for batch in (1, 4096):
        config = default_config(shapes, dtype, batch, axis=axis)
        assert config.rows * config.ctas >= min(batch, 1) and config.occupancy <= 2


WIDE = [
    *FACTORS,
    (1, 2, 2, 512),
    (512, 2, 2, 1),
    (16, 4, 4, 16),
    (64, 8, 8, 1),
    (1, 8, 8, 64),
    (1, 2, 2, 4096),
    (2048, 2, 2, 1),
    (8192, 2, 2, 1),
    (1, 4, 16, 4096),
]


@pytest.mark.parametrize(
    ("shape", "dtype", "axis"),
    covering(
        [*WIDE, *bj.Chain.square_dyadic(1024).shapes],
        ["float32", "bfloat16"],
        LAYOUTS,
    ),
    ids=str,
)
def test_one_factor_lowers_for_a_gpu(shape, dtype, axis):
    """Loads of weights, as they lie, do not lower in all layouts."""
    bias = jax.ShapeDtypeStruct((math.prod(shape) // shape[2],), dtype)
    function = jax.jit(lambda x, w, bias: radix(x, w, axis=axis, bias=bias))
    call = arrays([shape], axis=axis, dtype=dtype)
    jax.export.export(function, platforms=["cuda"])(*call, bias)


@pytest.mark.parametrize(
    ("shape", "dtype", "axis"),
    covering(WIDE, ["float32", "bfloat16"], LAYOUTS),
    ids=str,
)
def test_one_factor_of_any_size_stays_near_the_floor(shape, dtype, axis):
    """By prediction; and in every configuration each CTA keeps its weights."""
    types = (jnp.dtype(dtype),) * 2
    a, b, c, d = shape
    for batch in (8, 4096, 25_088):
        config = default_config([shape], dtype, batch, axis=axis)
        plan = plan_for((shape,), types, config, axis)
        assert plan.keeps_weights or batch == 8
        assert plan.smem_bytes(config.stages) <= 232_448 // config.occupancy
        if batch == 25_088 and a * c * d >= 1024:
            h200 = chip.load()
            seconds = cost.seconds(plan, types, config, batch, h200)
            floor = batch * a * (b + c) * d * types[0].itemsize / h200.hbm
            assert floor < seconds
            # Launching and the first fetch apart. With features last, TMA's boxes have
            # a unit's own features innermost: where these are but 16 bytes, it binds.
            spent = seconds - h200.before(cost.usage(plan, types, config, batch))
            innermost = config.rows if axis == 0 else plan.tiles[0].digits[-1]
            run = innermost * types[0].itemsize
            assert spent < (1.35 if run >= 64 else 2.0 if run >= 32 else 3.0) * floor


@pytest.mark.parametrize(
    ("shapes", "config", "reason"),
    [
        (DYADIC, Config(parts_a=2), "parts_a and parts_d must divide a and d of a sin"),
        ([(4, 4, 4, 4)], Config(parts_d=3), "are 1 and 3 for .*4, 4, 4, 4"),
        ([(4, 4, 4, 8)], Config(parts_d=4), "16 bytes, but parts_d = 4 leaves 8"),
        ([(4, 4, 4, 8)], Config(parts_d=8), "parts_d = 8 leaves but one"),
        ([(2, 2, 2, 1)], Config(4, 1, stages=2), "multiples of 128 bytes"),
    ],
)
def test_parts_and_stages_that_do_not_fit(shapes, config, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(radix, config=config), *arrays(shapes))
