"""The chain kernel, in the interpreter: values against float64, and races."""

import dataclasses
import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels import chain_plan, chain_steps
from pallas_kernels.chain import Config, chain, default_config
from tests import gpu_interpreter, reference
from tests.pallas_kernels.chain_check import both_layouts
from tests.pallas_kernels.chain_check import check as check_chain

SMALL = Config(rows=32, warpgroups=2, m_warps=2, stages=2, out_stages=1, ctas=2)
ONE_CTA = Config(rows=32, warpgroups=3, m_warps=2, stages=3, out_stages=2, ctas=1)
NARROW = Config(rows=16, warpgroups=2, m_warps=1, stages=1, out_stages=1, ctas=1)
TALL = Config(rows=64, warpgroups=1, m_warps=4, stages=2, out_stages=2, ctas=1)
MONARCH = [(1, 16, 16, 16), (16, 16, 16, 1)]

check = functools.partial(check_chain, config=SMALL)


@both_layouts
@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 16, 16, 1)],
        [(1, 16, 48, 16)],
        [(2, 48, 16, 16)],
        [(1, 2, 2, 32)],
        MONARCH,
        [(1, 32, 16, 16), (16, 16, 48, 1)],
        [(1, 24, 24, 32), (24, 32, 8, 1)],
        [(1, 12, 4, 16), (4, 16, 16, 1)],
        [(16, 16, 16, 1), (1, 16, 16, 16)],  # A transpose: not chainable.
        [(16, 32, 16, 1), (1, 16, 16, 16)],
        [(2, 16, 16, 16), (2, 16, 16, 16)],  # Twice the same pattern.
        [(1, 4, 8, 64), (8, 8, 8, 8), (64, 8, 4, 1)],
        bj.Chain.square_dyadic(64).shapes,
    ],
    ids=str,
)
def test_patterns(shapes, axis):
    check(shapes, batch=32, axis=axis)


@both_layouts
@pytest.mark.parametrize("config", [SMALL, ONE_CTA, TALL], ids=str)
def test_configurations_and_ragged_batches(config, axis):
    check(MONARCH, batch=104, axis=axis, config=config)


@both_layouts
def test_one_stage_and_narrow_tiles(axis):
    check([(1, 32, 16, 32), (16, 32, 16, 1)], batch=40, axis=axis, config=NARROW)


@both_layouts
def test_float16(axis):
    check(MONARCH, batch=40, axis=axis, dtype="float16")


@both_layouts
@pytest.mark.parametrize("precision", [None, "highest"])
@pytest.mark.parametrize(
    "shapes",
    [[(2, 16, 16, 1)], [(1, 32, 16, 16)], [(1, 16, 16, 16), (16, 16, 16, 1)]],
    ids=str,
)
def test_float32(shapes, precision, axis):
    config = dataclasses.replace(SMALL, stages=1)
    check(
        shapes,
        batch=40,
        axis=axis,
        config=config,
        dtype="float32",
        precision=precision,
    )


@both_layouts
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [("bfloat16", "float32"), ("float16", "bfloat16"), ("float32", "bfloat16")],
)
def test_results_of_another_dtype(dtype, out_dtype, axis):
    check(MONARCH, batch=40, axis=axis, dtype=dtype, out_dtype=out_dtype)


@both_layouts
@pytest.mark.parametrize(
    ("shapes", "activation"),
    [(MONARCH, "relu"), ([(2, 16, 16, 1)], "gelu"), ([(2, 16, 16, 16)], "silu")],
    ids=str,
)
def test_bias_and_activation(shapes, activation, axis):
    n = bj.Chain(shapes).out_features
    bias = reference.draw((n,), "float32", seed=3)
    check(shapes, batch=40, axis=axis, bias=bias, activation=activation)


@both_layouts
@pytest.mark.parametrize("out_dtype", ["bfloat16", "float32"])
def test_shares_of_the_last_factor(out_dtype, axis):
    if (axis, out_dtype) == (0, "bfloat16"):
        pytest.skip("nothing is stored from a buffer")
    config = dataclasses.replace(SMALL, shares=2)
    shapes = [(1, 64, 16, 16), (16, 16, 16, 1)]
    bias = reference.draw((1024,), "float32", seed=3)
    check(shapes, batch=40, axis=axis, config=config, out_dtype=out_dtype, bias=bias)


@pytest.mark.parametrize("batch", [1, 31, 33, 65])
def test_any_batch(batch):
    check(MONARCH, batch=batch, axis=-1)


def test_more_warpgroups_than_blocks():
    check([(1, 32, 32, 1)], batch=40, axis=-1, config=ONE_CTA)


@both_layouts
def test_empty_batch(axis):
    factors = reference.draw_factors(bj.Chain(MONARCH), "bfloat16")
    x = jnp.zeros((0, 256) if axis == -1 else (256, 0), "bfloat16")
    assert chain(x, factors, axis=axis).shape == x.shape


def test_vmap():
    xs = reference.draw((2, 40, 256), "bfloat16")
    factors = reference.draw_factors(bj.Chain(MONARCH), "bfloat16")
    function = functools.partial(chain, config=SMALL)
    ys = gpu_interpreter.run(jax.vmap(function, in_axes=(0, None)), xs, factors)
    for x, y in zip(xs, ys, strict=True):
        error = reference.relative_error(y, reference.apply(x, factors))
        assert error < tolerance("bfloat16", 2)


def test_nan_stays_in_its_vector():
    x = np.asarray(reference.draw((64, 256), "bfloat16"))
    x[3, 7] = np.nan
    factors = reference.draw_factors(bj.Chain(MONARCH), "bfloat16")
    function = functools.partial(chain, config=SMALL)
    y = np.asarray(gpu_interpreter.run(function, x, factors), np.float64)
    assert np.isnan(y[3]).all()
    assert np.isfinite(np.delete(y, 3, axis=0)).all()


def test_lowering_for_a_cpu_is_refused():
    with pytest.raises(NotImplementedError, match=r"NVIDIA GPUs.* lowered for cpu"):
        jax.jit(chain).lower(*arrays(MONARCH))


def test_exports_for_a_gpu_from_any_machine():
    exported = jax.export.export(jax.jit(chain), platforms=["cuda"])(*arrays(MONARCH))
    assert "mosaic_gpu" in exported.mlir_module()


def arrays(shapes, *, batch=32, axis=-1, dtype="bfloat16"):
    """Shapes and dtypes of a call, without numbers."""
    n = bj.Chain(shapes).in_features
    x = jax.ShapeDtypeStruct((batch, n) if axis == -1 else (n, batch), dtype)
    return x, tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)


@pytest.mark.parametrize(
    ("call", "axis", "reason"),
    [
        (arrays(MONARCH, dtype="int32"), -1, "dtype of x must be one of .* got int32"),
        (arrays([(1, 3, 5, 1)]), -1, "16 bytes.* last axis of x .* has 10"),
        (arrays([(1, 3, 8, 1)]), -1, "16 bytes.* of the result .* has 6"),
        (
            arrays(MONARCH, batch=12, axis=0),
            0,
            "16 bytes.* last axis of x .* has 24",
        ),
        (arrays([(1, 24, 24, 1)]), -1, "shape .1, 24, 24, 1. has no embedding"),
        (arrays([(1, 512, 16, 1)]), -1, "blocks of at most 256 × 256"),
        (
            arrays([(1, 256, 256, 256), (256, 256, 256, 1)]),
            -1,
            "bytes of shared memory",
        ),
        (arrays([(2, 128, 144, 16), (3, 96, 16, 16)], axis=0), 0, "do not fit"),
    ],
)
def test_what_is_unsupported_is_refused_while_tracing(call, axis, reason):
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(functools.partial(chain, axis=axis), *call)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"rows": 24}, "rows must be a multiple of 16·m_warps = 32"),
        ({"m_warps": 3}, "m_warps must be 1, 2 or 4, got 3"),
        ({"stages": 0}, "stages must be positive, got 0"),
        ({"warpgroups": 9}, "warpgroups must be at most 8, got 9"),
        ({"warpgroups": 8, "stages": 5}, "warpgroups · stages must be at most 32"),
    ],
)
def test_configurations_that_cannot_be(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Config(**fields)


@both_layouts
@pytest.mark.parametrize(
    ("in_features", "out_features"),
    [(512, 512), (768, 768), (1024, 1024), (2048, 2048), (3072, 768), (768, 3072)],
)
def test_default_configuration_fits(in_features, out_features, axis):
    shapes = bj.Chain.monarch(in_features, out_features).shapes
    config = default_config(shapes, "bfloat16", 4096, axis=axis)
    plan = chain_steps.plan(
        shapes,
        chain_plan.Types("bfloat16", "bfloat16"),
        rows=config.rows,
        mma=config.mma,
        batch_first=axis == -1,
        shares=config.shares,
    )
    assert [(f.a * f.c * f.d, f.a * f.b * f.d) for f in plan.factors] == [
        (p.in_features, p.out_features) for p in bj.Chain(shapes)
    ]


def test_sizes_that_do_not_fit_are_refused():
    x, factors = arrays(MONARCH)
    with pytest.raises(ValueError, match="takes a·c·d = 256 features, but is given 32"):
        jax.eval_shape(chain, jax.ShapeDtypeStruct((8, 32), "bfloat16"), factors)
    with pytest.raises(ValueError, match="axis must be 0 or -1, got 1"):
        jax.eval_shape(functools.partial(chain, axis=1), x, factors)
