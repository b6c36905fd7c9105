"""Weights that the chain kernel brings into order itself: values, races, no copy."""

import dataclasses
import functools
import re

import jax
import pytest

import butterjax as bj
from pallas_kernels.chain import Config, chain
from pallas_kernels.chain_config import plan_for, types_of
from tests import reference
from tests.pallas_kernels.chain_check import both_layouts, check

ALONE = Config(rows=32, warpgroups=2, out_stages=1, ctas=2)
THREE = Config(rows=32, warpgroups=3, out_stages=1, ctas=1)
PAIR = Config(rows=32, warpgroups=2, out_stages=1, ctas=2, cluster=2)
MONARCH = [(1, 16, 16, 16), (16, 16, 16, 1)]
WIDE = [(1, 32, 16, 16), (16, 16, 32, 1)]
BY_OUTER = [(16, 16, 16, 2), (1, 16, 16, 32)]


def keeping(config, resident, **changes):
    return dataclasses.replace(config, resident=resident, **changes)


def arrivals(shapes, config, axis, dtype="bfloat16", out_dtype=None):
    plan = plan_for(shapes, types_of(dtype, out_dtype, None), config, axis)
    return [plan.arrival(index) for index in range(len(shapes))]


def check_arranged(shapes, *, config, axis, dtype="bfloat16", **kwargs):
    """Compares the kernel with float64, and has it arrange what it can."""
    config = keeping(config, len(shapes))
    in_order = 1 if dtype != "float32" else 0  # Blocks of this d are.
    expected = ["fetched" if d == in_order else "arranged" for *_, d in shapes]
    found = arrivals(shapes, config, axis, dtype, kwargs.get("out_dtype"))
    assert found == expected
    check(shapes, batch=72, axis=axis, config=config, dtype=dtype, **kwargs)


@both_layouts
@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        (MONARCH, ALONE),
        (MONARCH, THREE),  # One of which is idle at times.
        (MONARCH[::-1], ALONE),
        ([(2, 16, 32, 16)], ALONE),
        ([(2, 16, 16, 16), (2, 16, 16, 16)], ALONE),
    ],
    ids=str,
)
def test_one_cta(shapes, config, axis):
    check_arranged(shapes, axis=axis, config=config)


@pytest.mark.parametrize(
    "shape", [(3, 16, 16, 5), (1, 48, 16, 6), (1, 16, 32, 12)], ids=str
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_runs_of_any_length(shape, dtype):
    config = dataclasses.replace(THREE, stages=1)
    check_arranged([shape], axis=0, config=config, dtype=dtype)


@both_layouts
@pytest.mark.parametrize("precision", [None, "highest"])
@pytest.mark.parametrize("shapes", [[(2, 32, 16, 1)], MONARCH], ids=str)
def test_float32(shapes, precision, axis):
    config = dataclasses.replace(ALONE, stages=1)
    options = {"dtype": "float32", "precision": precision}
    check_arranged(shapes, axis=axis, config=config, **options)


@both_layouts
def test_shares_of_the_last_factor(axis):
    config = dataclasses.replace(ALONE, shares=2)
    shapes = [(1, 64, 16, 16), (16, 16, 16, 1)]
    check_arranged(shapes, axis=axis, config=config, out_dtype="float32")


@both_layouts
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shapes", [WIDE, WIDE[::-1]], ids=str)
def test_blocks_of_a_cluster_by_inner(shapes, dtype, axis):
    config = dataclasses.replace(PAIR, warpgroups=1, stages=1)
    check_arranged(shapes, axis=axis, config=config, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shapes", [BY_OUTER, BY_OUTER[::-1]], ids=str)
def test_blocks_of_a_cluster_by_outer(shapes, dtype):
    config = dataclasses.replace(PAIR, warpgroups=1, stages=1)
    check_arranged(shapes, axis=0, config=config, dtype=dtype)


@both_layouts
def test_four_ctas(axis):
    config = Config(rows=64, warpgroups=2, ctas=8, cluster=4)
    shapes = [(1, 32, 32, 32), (32, 32, 32, 1)]
    check_arranged(shapes, axis=axis, config=config)


@both_layouts
@pytest.mark.parametrize("bias_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shapes", [MONARCH, MONARCH[::-1]], ids=str)
def test_bias(shapes, bias_dtype, axis):
    bias = reference.draw((256,), bias_dtype, seed=3)
    options = {"bias": bias, "activation": "relu"}
    check_arranged(shapes, axis=axis, config=ALONE, **options)


def lowered(shapes, config, *, axis=-1, dtype="bfloat16", bias=None):
    """What a call is made of, before XLA: names of operations."""
    n_in, n_out = bj.Chain(shapes).in_features, bj.Chain(shapes).out_features
    x = jax.ShapeDtypeStruct((64, n_in) if axis == -1 else (n_in, 64), dtype)
    factors = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    options = {} if bias is None else {"bias": jax.ShapeDtypeStruct((n_out,), bias)}
    function = jax.jit(functools.partial(chain, axis=axis, config=config))
    traced = function.trace(x, factors, **options)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    return set(re.findall(r"stablehlo\.(\w+)", text))


@both_layouts
@pytest.mark.parametrize(
    ("shapes", "config", "dtype"),
    [
        (MONARCH, keeping(ALONE, 1), "bfloat16"),
        (MONARCH, keeping(ALONE, 2), "float32"),
        (WIDE, keeping(PAIR, 2), "float16"),
        (WIDE, keeping(PAIR, 2), "float32"),
    ],
    ids=str,
)
def test_nothing_is_copied_before_the_launch(shapes, config, dtype, axis):
    before = {"custom_call", "reshape"}
    assert lowered(shapes, config, axis=axis, dtype=dtype) <= before
    others = lowered(shapes, keeping(config, 0), axis=axis, dtype=dtype) - before
    assert "transpose" in others


@pytest.mark.parametrize("bias", ["bfloat16", "float32"])
def test_a_bias_is_not_copied_where_blocks_are_runs(bias):
    config = keeping(ALONE, 2)
    found = lowered(MONARCH[::-1], config, bias=bias)
    assert found == {"custom_call", "reshape"}
    assert "transpose" in lowered(MONARCH, config, bias=bias)


def test_which_weights_are_resident_and_how_they_arrive():
    def ways(shapes, resident, axis=0, dtype="bfloat16"):
        return arrivals(shapes, keeping(ALONE, resident), axis, dtype)

    assert ways(MONARCH, 0) == ["ordered", "fetched"]
    # First what is not put in order then, be it the larger one.
    assert ways(WIDE, 1) == ["arranged", "fetched"]
    assert ways(MONARCH[::-1], 1) == ["fetched", "arranged"]
    # Then the smaller one.
    assert ways([(2, 16, 16, 16), (2, 16, 32, 16)], 1) == ["arranged", "ordered"]
    assert ways([(2, 32, 16, 16), (2, 16, 16, 16)], 1) == ["ordered", "arranged"]
    # In pieces.
    assert ways(MONARCH, 0, dtype="float32") == ["ordered", "ordered"]
    assert ways(MONARCH, 2, dtype="float32") == ["arranged", "arranged"]
    # In blocks of 16 × 16.
    assert ways([(1, 4, 4, 64)], 1) == ["ordered"]
