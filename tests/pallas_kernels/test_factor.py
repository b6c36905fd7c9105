"""The one-factor kernel, in the interpreter: values against float64, and races."""

import dataclasses
import functools
import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels.common import chip as chips
from pallas_kernels.common import pieces
from pallas_kernels.factor import Config, cost, default_config, factor
from pallas_kernels.factor.plan import tiling
from tests import gpu_interpreter, reference
from tests.alignment import check_alignment
from tests.covering import covering

# One warpgroup, and two that share vectors, outputs or blocks.
ALONE = Config(features=32, depth=32, m_warps=1, stages=2, ctas=2)
BY_ROWS = Config(128, 32, 16, split_rows=2, m_warps=1, stages=3, out_stages=2, ctas=1)
BY_FEATURES = Config(64, 64, 16, split_features=2, m_warps=2, stages=1, ctas=2)
TALL = Config(64, 64, 32, m_warps=4, stages=1, ctas=1, batch_first=True)
NEIGHBOURS = Config(64, 32, 16, split_rows=2, m_warps=2, stages=2, ctas=2)
# Weights that stay until the one CTA comes to the next block.
RESIDENT = Config(
    *(128, 64, 32), split_rows=2, stages=2, ctas=1, batch_first=True, resident=True
)
# wgmma: one warpgroup, and two that share vectors or outputs.
WIDE = Config(64, 64, 64, m_warps=4, stages=2, ctas=2, wgmma=True)
WIDE_BY_ROWS = dataclasses.replace(WIDE, rows=128, split_rows=2, out_stages=2, ctas=1)
WIDE_BY_FEATURES = dataclasses.replace(
    *(WIDE,), rows=128, features=96, depth=128, split_features=2, stages=3, ctas=1
)
WIDE_SHARED = dataclasses.replace(WIDE, cluster=2)
WIDE_RESIDENT = dataclasses.replace(WIDE_BY_ROWS, batch_first=True, resident=True)

LAYOUTS = [-1, 0]
both_layouts = pytest.mark.parametrize("axis", LAYOUTS)
more = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def check(shape, config, *, batch=104, axis, dtype="bfloat16", **options):
    """Compares the kernel with float64 on random numbers."""
    patterns = bj.Chain([shape])
    x = reference.draw((batch, patterns.in_features), dtype, seed=1)
    (w,) = reference.draw_factors(patterns, dtype, seed=2)
    function = functools.partial(factor, axis=axis, config=config, **options)
    y = gpu_interpreter.run(function, x if axis == -1 else x.T, w)
    assert y.dtype == dtype
    y = y if axis == -1 else y.T
    bound = tolerance(dtype, 1)
    if dtype == "float32" and options.get("precision") != "highest":
        bound = 2**-16  # Two pieces of 8 bits, and a sign each.
    assert reference.relative_error(y, reference.apply(x, [w])) < bound


CASES = [
    ((2, 16, 16, 1), ALONE),
    ((1, 48, 48, 1), BY_ROWS),  # Several tiles of outputs and chunks of inputs.
    ((1, 72, 200, 1), BY_FEATURES),
    ((1, 64, 64, 1), TALL),
    ((16, 2, 2, 1), ALONE),  # Merged into blocks of 16.
    ((2, 48, 80, 1), RESIDENT),
    ((2, 72, 48, 1), RESIDENT),  # Two tiles of outputs that stay.
]


@pytest.mark.parametrize(("case", "axis"), covering(CASES, LAYOUTS), ids=str)
def test_blocks_of_neighbours(case, axis):
    check(*case, axis=axis)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((1, 48, 80, 2), ALONE),
        ((2, 24, 20, 3), BY_ROWS),  # Neither b nor c a multiple of the tile.
        ((1, 2, 2, 32), BY_FEATURES),
        ((2, 64, 16, 5), TALL),
    ],
    ids=str,
)
def test_spread_blocks_of_a_feature_first_array(shape, config):
    check(shape, config, axis=0)


@pytest.mark.parametrize(
    ("shape", "axis", "config"),
    [
        ((1, 64, 64, 1), -1, WIDE),
        ((2, 72, 200, 1), -1, WIDE_BY_ROWS),  # Tiles reach beyond their block.
        ((1, 200, 136, 1), -1, WIDE_BY_FEATURES),
        ((2, 48, 128, 1), -1, WIDE_RESIDENT),
        ((2, 72, 200, 1), -1, WIDE_SHARED),  # An odd number of tiles of the batch.
        more((1, 136, 72, 1), -1, dataclasses.replace(WIDE, cluster_features=2)),
        ((1, 72, 72, 2), 0, dataclasses.replace(WIDE_SHARED, cluster_features=2)),
        ((1, 64, 64, 1), 0, WIDE),
        more((1, 72, 200, 2), 0, WIDE_SHARED),
        more((2, 72, 200, 3), 0, WIDE_BY_ROWS),
        more((1, 200, 136, 2), 0, WIDE_BY_FEATURES),
        more((2, 48, 128, 2), 0, WIDE_RESIDENT),
        ((1, 96, 72, 2), 0, WIDE_RESIDENT),
    ],
    ids=str,
)
def test_wgmma(shape, axis, config):
    check(shape, config, axis=axis, batch=136)


@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((1, 48, 32, 8), NEIGHBOURS),
        ((1, 8, 8, 16), NEIGHBOURS),  # Merged into (1, 16, 16, 8).
        (
            (1, 48, 48, 4),
            Config(64, 64, 32, split_features=2, m_warps=1, stages=2, ctas=2),
        ),
        more((1, 48, 72, 2), Config(64, 64, 64, split_rows=2, m_warps=1, stages=2)),
        ((2, 16, 16, 3), Config(64, 32, 16, m_warps=4, stages=2)),
        ((1, 40, 24, 5), Config(64, 48, 32, m_warps=2, stages=2)),
        more((1, 32, 20, 6), Config(64, 16, 16, m_warps=2, stages=2)),
        more((1, 24, 16, 8), Config(64, 32, 16, m_warps=4, stages=2)),
        ((1, 16, 48, 12), Config(64, 16, 16, m_warps=4, stages=2)),
        more((1, 48, 32, 8), dataclasses.replace(NEIGHBOURS, cluster=2)),
        more((1, 48, 32, 8), dataclasses.replace(NEIGHBOURS, cluster_features=2)),
        (
            *((1, 72, 16, 8),),
            dataclasses.replace(NEIGHBOURS, cluster=2, cluster_features=2),
        ),
        ((1, 16, 16, 20), Config(64, 32, 16, m_warps=4)),  # Two merged into one.
    ],
    ids=str,
)
def test_spread_blocks_of_a_feature_last_array(shape, config):
    check(shape, config, axis=-1)


KEPT = {"batch_first": True, "resident": True}


@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "config"),
    [
        # Several tiles of outputs, panels of inputs, groups of blocks.
        ((1, 48, 32, 8), -1, "bfloat16", dataclasses.replace(NEIGHBOURS, **KEPT)),
        (
            (2, 16, 24, 12),
            -1,
            "float16",
            Config(64, 16, 16, m_warps=4, stages=2, **KEPT),
        ),
        (
            *((1, 48, 48, 4), -1, "bfloat16"),
            Config(64, 64, 48, split_features=2, m_warps=1, stages=1, **KEPT),
        ),
        more(
            *((1, 48, 72, 2), -1, "bfloat16"),
            Config(64, 64, 64, split_rows=2, m_warps=1, stages=2, **KEPT),
        ),
        (
            *((1, 16, 32, 6), -1, "float32"),
            Config(64, 32, 16, m_warps=1, stages=2, **KEPT),
        ),
        ((1, 80, 48, 2), 0, "float32", dataclasses.replace(ALONE, **KEPT)),
        more((1, 48, 40, 8), 0, "bfloat16", dataclasses.replace(BY_ROWS, **KEPT)),
        # Neither b nor c a multiple of the tile; rows of 40 bytes.
        ((2, 24, 20, 3), 0, "bfloat16", dataclasses.replace(BY_ROWS, **KEPT)),
        ((2, 24, 20, 1), 0, "bfloat16", dataclasses.replace(TALL, **KEPT)),
    ],
    ids=str,
)
def test_weights_that_stay_are_read_where_they_are(shape, axis, dtype, config):
    config = dataclasses.replace(config, ctas=2)
    check(shape, config, axis=axis, dtype=dtype)
    assert moved_before(shape, config, axis=axis, dtype=dtype) == set()


def moved_before(shape, config, *, axis, dtype="bfloat16", with_bias=False):
    """What is done to arrays outside the kernel, but for what moves nothing."""
    call = [*arrays(shape, axis=axis, batch=256, dtype=dtype)]
    if with_bias:
        a, b, _, d = shape
        call.append(jax.ShapeDtypeStruct((a * b * d,), dtype))

    def function(x, w, bias=None):
        return factor(x, w, bias=bias, axis=axis, config=config)

    jaxpr = jax.make_jaxpr(function)(*call)
    done = {equation.primitive.name for equation in jaxpr.eqns}
    return done - {"reshape", "gpu_only", "custom_vmap_call"}  # The last is the kernel.


READ_IN_PLACE = [
    *itertools.product([(2, 48, 192, 1), (1, 32, 32, 4), (16, 16, 16, 6)], LAYOUTS),
    ((2, 1024, 256, 4), -1),
    ((1, 96, 96, 3), -1),
    ((2, 192, 48, 6), -1),
]


@pytest.mark.parametrize(
    ("case", "dtype", "batch", "with_bias"),
    covering(READ_IN_PLACE, ["bfloat16", "float32"], [512, 25088], [False, True]),
    ids=str,
)
def test_nothing_is_needed_before_the_kernel(case, dtype, batch, with_bias):
    shape, axis = case
    config = default_config(shape, dtype, batch, axis=axis)
    moved = moved_before(shape, config, axis=axis, dtype=dtype, with_bias=with_bias)
    assert moved == set()


def test_streamed_weights_of_a_feature_first_array_are_put_in_order():
    assert moved_before((1, 32, 32, 16), ALONE, axis=0) >= {"transpose"}


FLOAT32 = [
    ((2, 48, 32, 1), -1, BY_ROWS),
    ((1, 48, 48, 2), 0, ALONE),
    ((1, 16, 24, 3), -1, Config(64, 32, 16, m_warps=2, stages=2)),
    ((1, 16, 24, 3), 0, Config(64, 32, 16, m_warps=2, stages=2)),
    ((1, 32, 16, 8), 0, Config(64, 32, 16, split_features=2, m_warps=1)),
    ((1, 32, 16, 4), -1, Config(64, 32, 16, split_rows=2, m_warps=2)),
    ((1, 16, 32, 6), -1, Config(64, 32, 16, m_warps=1, stages=2)),
]


@pytest.mark.parametrize(
    ("case", "precision"), covering(FLOAT32, [None, "highest"]), ids=str
)
def test_float32(case, precision):
    shape, axis, config = case
    check(shape, config, axis=axis, dtype="float32", precision=precision)


@pytest.mark.parametrize(
    ("shape", "axis", "config"),
    [
        ((1, 16, 1024, 1), -1, Config(64, 16, 64, m_warps=4, stages=2)),
        ((1, 16, 1024, 2), -1, Config(64, 16, 16, m_warps=4, stages=2)),
        ((1, 16, 1024, 1), 0, Config(64, 16, 64, m_warps=1, stages=2)),
    ],
    ids=str,
)
def test_long_sums_stay_exact_on_a_tensor_core(shape, axis, config):
    with gpu_interpreter.sums_of_tensor_cores():
        options = {"dtype": "float32", "precision": "highest"}
        check(shape, config, batch=64, axis=axis, **options)


@pytest.mark.parametrize(("axis", "d"), covering(LAYOUTS, [8, 1]))
def test_float16(axis, d):
    config = NEIGHBOURS if (axis, d) == (-1, 8) else ALONE
    check((1, 32, 32, d), config, axis=axis, dtype="float16")


@both_layouts
def test_float16_by_wgmma(axis):
    check((1, 64, 64, 1), WIDE, axis=axis, dtype="float16")


FORMS = [
    ((1, 32, 32, 1), BY_ROWS),
    ((1, 16, 16, 8), NEIGHBOURS),
    ((1, 64, 64, 1), WIDE),
]


@pytest.mark.parametrize(("case", "batch"), covering(FORMS, [65, 200, 63, 1]), ids=str)
def test_any_batch(case, batch):
    check(*case, batch=batch, axis=-1)


@pytest.mark.parametrize(
    ("shape", "axis", "config", "activation"),
    [
        ((2, 72, 64, 1), -1, WIDE_BY_ROWS, "silu"),
        more((2, 72, 64, 1), -1, WIDE_BY_FEATURES, None),
        ((1, 72, 64, 2), 0, WIDE_BY_ROWS, "gelu"),
        more((2, 40, 32, 1), -1, ALONE, None),
        ((2, 40, 32, 1), -1, ALONE, "relu"),
        ((2, 24, 16, 3), 0, BY_FEATURES, "gelu"),
        (
            (1, 48, 32, 4),
            -1,
            Config(64, 32, 32, split_rows=2, m_warps=2, stages=2),
            "silu",
        ),
        ((1, 40, 16, 6), -1, Config(64, 48, 16, m_warps=4, stages=2), "gelu"),
        ((1, 40, 16, 8), -1, NEIGHBOURS, "relu"),
        more((1, 40, 16, 8), 0, Config(64, 32, 16, m_warps=2, stages=2), "silu"),
        # Of whole tiles of the tensor core, the bias is read where it is.
        ((2, 40, 32, 1), -1, TALL, None),
        ((2, 48, 16, 3), 0, ALONE, None),
        ((2, 16, 16, 8), -1, Config(64, 16, 16, m_warps=2, stages=2), None),
        more((1, 64, 32, 4), -1, Config(64, 32, 32, m_warps=1, stages=2), None),
    ],
    ids=str,
)
def test_epilogue(shape, axis, config, activation):
    patterns = bj.Chain([shape])
    x = reference.draw((72, patterns.in_features), "bfloat16", seed=1)
    (w,) = reference.draw_factors(patterns, "bfloat16", seed=2)
    bias = reference.draw((patterns.out_features,), "float32", seed=3)
    out = "bfloat16" if config.wgmma and axis == 0 else "float32"
    function = functools.partial(
        factor, axis=axis, config=config, activation=activation, out_dtype=out
    )
    y = gpu_interpreter.run(
        lambda x, w, bias: function(x, w, bias=bias), x if axis == -1 else x.T, w, bias
    )
    assert y.dtype == out
    expected = reference.activate(reference.apply(x, [w]) + bias, activation)
    error = reference.relative_error(y if axis == -1 else y.T, expected)
    assert error < tolerance(out, 1)


@both_layouts
def test_empty_batch(axis):
    x = jnp.zeros((0, 64) if axis == -1 else (64, 0), "bfloat16")
    w = jnp.zeros((1, 32, 16, 4), "bfloat16")
    y = factor(x, w, axis=axis, out_dtype="float32")
    assert y.shape == ((0, 128) if axis == -1 else (128, 0))
    assert y.dtype == jnp.float32


@pytest.mark.parametrize("d", [1, 2])
def test_vmap(d):
    xs = reference.draw((2, 32 * d, 40), "bfloat16")
    (w,) = reference.draw_factors(bj.Chain([(1, 16, 32, d)]), "bfloat16")
    ws = np.stack([w, 2 * w])
    config = dataclasses.replace(ALONE, **KEPT)
    function = jax.vmap(functools.partial(factor, axis=0, config=config))
    ys = gpu_interpreter.run(function, xs, ws)
    for x, w, y in zip(xs, ws, ys, strict=True):
        error = reference.relative_error(y.T, reference.apply(x.T, [w]))
        assert error < tolerance("bfloat16", 1)


def test_nan_stays_in_its_vector():
    x = np.asarray(reference.draw((64, 256), "bfloat16"))
    x[3, 7] = np.nan
    (w,) = reference.draw_factors(bj.Chain([(2, 16, 16, 8)]), "bfloat16")
    y = gpu_interpreter.run(functools.partial(factor, config=NEIGHBOURS), x, w)
    y = np.asarray(y, np.float64)
    assert np.isnan(y[3]).any()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()


def arrays(shape, *, batch=32, axis=-1, dtype="bfloat16"):
    """Shapes and dtypes of a call, without numbers."""
    n = bj.Chain([shape]).in_features
    x = jax.ShapeDtypeStruct((batch, n) if axis == -1 else (n, batch), dtype)
    return x, jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("shape", "axis", "dtype", "config"),
    [
        ((2, 24, 20, 1), -1, "bfloat16", None),
        ((1, 48, 48, 1), -1, "bfloat16", BY_ROWS),
        ((2, 16, 16, 3), -1, "bfloat16", Config(64, 32, 16, m_warps=4, stages=2)),
        ((1, 40, 24, 5), -1, "float16", Config(64, 48, 32, m_warps=2, stages=2)),
        ((1, 48, 32, 8), -1, "bfloat16", dataclasses.replace(NEIGHBOURS, **KEPT)),
        ((1, 48, 32, 6), -1, "float32", None),
        ((1, 72, 16, 8), -1, "bfloat16", dataclasses.replace(NEIGHBOURS, cluster=2)),
        ((2, 72, 200, 1), -1, "bfloat16", WIDE_SHARED),
        ((2, 24, 20, 3), 0, "bfloat16", dataclasses.replace(BY_ROWS, **KEPT)),
        ((1, 16, 24, 3), 0, "float32", Config(64, 32, 16, m_warps=2)),
        ((1, 64, 64, 4), 0, "float16", None),
        ((1, 96, 72, 2), 0, "bfloat16", WIDE_RESIDENT),
    ],
    ids=str,
)
def test_accesses_are_aligned(shape, axis, dtype, config):
    x, w = arrays(shape, batch=1000, axis=axis, dtype=dtype)
    a, b, _, d = shape
    bias = jax.ShapeDtypeStruct((a * b * d,), "float32")
    function = functools.partial(factor, axis=axis, config=config)
    check_alignment(lambda x, w, bias: function(x, w, bias=bias), x, w, bias)


def test_lowering_for_a_cpu_is_refused():
    with pytest.raises(NotImplementedError, match=r"NVIDIA GPUs.* lowered for cpu"):
        jax.jit(factor).lower(*arrays((2, 16, 16, 1)))


def test_exports_for_a_gpu_from_any_machine():
    call = arrays((2, 16, 16, 1))
    exported = jax.export.export(jax.jit(factor), platforms=["cuda"])(*call)
    assert "mosaic_gpu" in exported.mlir_module()


@pytest.mark.parametrize(
    ("call", "options", "reason"),
    [
        (arrays((2, 16, 16, 1), dtype="complex64"), {}, "one of .* got complex64"),
        (arrays((2, 16, 16, 1)), {"out_dtype": "int8"}, "out_dtype must .* got int8"),
        (arrays((1, 3, 5, 1)), {}, "last axis of x of shape .32, 5."),
        (arrays((1, 3, 8, 1)), {}, "last axis of the result .* has 6"),
        (arrays((2, 16, 16, 1), batch=12, axis=0), {"axis": 0}, "last axis of x"),
        (arrays((1, 16, 16, 67)), {}, "have no embedding"),
        (arrays((1, 64, 64, 64)), {}, "d is at most 12, without many more products"),
        (
            arrays((1, 512, 512, 1)),
            {"config": Config(256, 256, 128, stages=4)},
            "bytes of shared memory are more than 232,448",
        ),
        (
            arrays((2, 16, 16, 1)),
            {"config": Config(features=16, m_warps=1)},
            "must be multiples of 16 and 32, not 64 and 16",
        ),
        (
            arrays((2, 72, 16, 1)),
            {"config": dataclasses.replace(RESIDENT, batch_first=False)},
            "resident weights need batch_first",
        ),
        (arrays((1, 64, 64, 4)), {"config": WIDE}, "d = 1 or features first"),
        (arrays((1, 64, 64, 1), dtype="float32"), {"config": WIDE}, "is for 16 bits"),
        (
            arrays((1, 64, 64, 1), axis=0),
            {"config": WIDE, "axis": 0, "out_dtype": "float32"},
            "a result of 16 bits",
        ),
    ],
)
def test_what_is_unsupported_is_refused_while_tracing(call, options, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(factor, **options), *call)


def test_sizes_that_do_not_fit_are_refused():
    x, w = arrays((2, 16, 16, 1))
    with pytest.raises(ValueError, match="takes a·c·d = 32 features, but is given 48"):
        jax.eval_shape(factor, jax.ShapeDtypeStruct((8, 48), "bfloat16"), w)
    with pytest.raises(ValueError, match="axis must be 0 or -1, got 1"):
        jax.eval_shape(functools.partial(factor, axis=1), x, w)
    with pytest.raises(
        ValueError, match=r"bias must have the shape \(32,\), got \(16,\)"
    ):
        jax.eval_shape(lambda x, w: factor(x, w, bias=jnp.zeros(16)), x, w)
    with pytest.raises(
        NotImplementedError, match=r"factors\[0\] has dtype float32, but x has bf"
    ):
        jax.eval_shape(factor, x, jax.ShapeDtypeStruct((2, 16, 16, 1), "float32"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rows": 96}, "rows must be a multiple of 64 and at most 256, got 96"),
        ({"features": 8}, "features must be a multiple of 16"),
        ({"m_warps": 3}, "m_warps must be 1, 2 or 4, got 3"),
        ({"stages": 0}, "stages must be positive, got 0"),
        ({"split_rows": 8}, "must be at most 4, got 8"),
        ({"wgmma": True}, "with wgmma, m_warps must be 4, got 2"),
        ({"wgmma": True, "m_warps": 4, "stages": 1}, "stages must be 2 or more, got 1"),
        ({"wgmma": True, "m_warps": 4, "depth": 96}, "depth must be a multiple of 64"),
        (
            {"wgmma": True, "m_warps": 4, "rows": 192, "split_rows": 2},
            "rows / split_rows must be a multiple of 64, got 96",
        ),
        ({"cluster": 3}, "cluster must be 1, 2 or 4, got 3"),
        ({"cluster": 4, "cluster_features": 4}, "must be at most 8, got 16"),
        (
            {"cluster": 2, "resident": True},
            "must be 1 with resident weights, got 2 and 1",
        ),
        ({"split_rows": 3}, "rows must be a multiple of split_rows = 3, got 64"),
    ],
)
def test_configurations_that_cannot_be(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Config(**fields)


BY_DEFAULT = [
    *itertools.product(
        [(1, 48, 48, 1), (96, 192, 192, 4), (1, 128, 128, 3), (8, 1024, 1024, 1)],
        LAYOUTS,
    ),
    ((4, 384, 384, 7), -1),
    ((256, 2, 2, 1), -1),
    ((1, 8, 8, 1), -1),  # Smaller than a tile of the tensor core.
    ((1, 24, 8, 3), 0),
    ((4, 1024, 1024, 16), 0),
    ((1, 64, 16, 48), 0),
    ((2, 48, 192, 12), 0),
    ((1, 2, 2, 512), 0),
]


@pytest.mark.parametrize(
    ("case", "dtype"), covering(BY_DEFAULT, ["bfloat16", "float32"]), ids=str
)
def test_default_configuration_fits(case, dtype):
    shape, axis = case
    config = default_config(shape, dtype, 25088, axis=axis)
    size = jnp.dtype(dtype).itemsize
    plan = tiling(
        shape,
        config,
        batch=25088,
        feature_first=axis == 0,
        item_in=size,
        item_out=size,
        pieces=pieces.count(dtype, None),
    )
    a, b, c, d = shape
    embedded = plan.factor
    assert embedded.a * embedded.c * embedded.d == a * c * d
    assert plan.feature_tiles * config.features >= embedded.b
    chip = chips.load()
    # Nothing beats the floor: x read once and y written once.
    floor = 25088 * a * d * (b + c) * size
    asked = cost.usage(plan, chip)
    assert asked.hbm_bytes == pytest.approx(floor + embedded.num_weights * size)
    assert asked.l2_bytes >= floor
    assert cost.seconds(plan, chip) >= floor / chip.hbm
    # No more are launched than run at once.
    assert plan.clusters <= chip.resident(config.cluster_size, asked.per_multiprocessor)
    assert plan.ahead or asked.per_multiprocessor > 1


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        # What Nsight found to take 50.0 and 54.6 µs on an H200, of 48 for the copies.
        (-1, {"rows": 256, "split_rows": 2, "stages": 4}),
        (0, {"rows": 256, "m_warps": 1, "stages": 5, "resident": True}),
    ],
)
def test_default_configuration_is_like_what_was_measured(axis, expected):
    config = default_config((32, 64, 64, 1), "bfloat16", 25088, axis=axis)
    expected = {"features": 64, "depth": 64, "split_features": 1, **expected}
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("shape", "axis", "config", "counted"),
    [
        # Instructions for each mma.sync, as gpu_compile has them of these.
        ((32, 64, 64, 1), -1, Config(256, 64, 64, 2, m_warps=2, stages=4), 4.12),
        ((32, 64, 64, 1), -1, Config(128, 64, 64, m_warps=2, stages=4), 3.48),
        ((32, 64, 64, 1), 0, Config(256, 64, 64, m_warps=1, stages=4), 3.34),
        ((32, 64, 64, 1), 0, Config(256, 64, 64, 2, m_warps=1, stages=4), 5.08),
        ((32, 64, 64, 1), 0, Config(256, 64, 64, 1, 2, m_warps=1, stages=4), 5.28),
        ((32, 64, 64, 1), 0, Config(128, 64, 64, m_warps=1, stages=4), 3.97),
        ((1, 32, 32, 64), 0, Config(256, 32, 32, m_warps=1, stages=4), 8.72),
    ],
)
def test_instructions_are_those_of_compiled_kernels(shape, axis, config, counted):
    plan = tiling(
        shape,
        config,
        batch=25088,
        feature_first=axis == 0,
        item_in=2,
        item_out=2,
        pieces=1,
    )
    usage = cost.usage(plan, chips.load())
    assert usage.instructions / usage.mmas == pytest.approx(counted, rel=0.07)
