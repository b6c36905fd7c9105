"""The chain kernel over clusters, in the interpreter: values against float64, races."""

import dataclasses
import functools

import jax
import pytest

import butterjax as bj
from pallas_kernels.chain import Config, chain
from tests import reference
from tests.pallas_kernels.chain_check import both_layouts, check

PAIR = Config(rows=32, warpgroups=2, stages=2, out_stages=1, ctas=2, cluster=2)
# Two clusters, the one after the other, and more tiles than these.
FOUR = Config(rows=64, warpgroups=1, stages=2, ctas=8, cluster=4, resident=2)
MONARCH = [(1, 32, 32, 32), (32, 32, 32, 1)]


@both_layouts
@pytest.mark.parametrize("resident", [0, 1])
def test_two_ctas_ragged_batches_and_an_epilogue(resident, axis):
    config = dataclasses.replace(PAIR, resident=resident)
    bias = reference.draw((1024,), "float32", seed=3)
    options = {"bias": bias, "activation": "gelu"}
    check(MONARCH, batch=72, axis=axis, config=config, **options)


@both_layouts
def test_four_ctas_and_several_tiles_each(axis):
    check(MONARCH, batch=200, axis=axis, config=FOUR)


@both_layouts
@pytest.mark.parametrize(
    "shapes",
    [
        [(32, 32, 32, 1), (1, 32, 32, 32)],  # A transpose: shared out the other way.
        [(1, 16, 32, 32), (32, 32, 16, 1)],
        [(2, 16, 16, 32), (32, 32, 32, 1)],
        [(1, 16, 16, 64), (16, 16, 16, 4)],  # Four features stay together.
        [(16, 16, 16, 4), (1, 16, 16, 64)],
        [(1, 16, 16, 64), (16, 8, 8, 8), (128, 8, 8, 1)],
    ],
    ids=str,
)
def test_patterns(shapes, axis):
    check(shapes, batch=32, axis=axis, config=PAIR)


@pytest.mark.parametrize("shapes", [MONARCH, MONARCH[::-1]], ids=str)
def test_runs_of_eight_features(shapes):
    config = dataclasses.replace(PAIR, warpgroups=1, ctas=4, cluster=4)
    check(shapes, batch=40, axis=-1, config=config)


@both_layouts
def test_float32(axis):
    config = Config(rows=32, warpgroups=1, stages=1, out_stages=1, ctas=2, cluster=2)
    shapes = [(1, 32, 16, 16), (16, 16, 32, 1)]
    check(shapes, batch=40, axis=axis, config=config, dtype="float32")


@pytest.mark.parametrize(
    ("shapes", "cluster", "reason"),
    [
        ([(2, 32, 32, 1)], 2, "cannot be shared out to 2 CTAs"),
        ([(1, 16, 16, 16), (16, 16, 16, 1)], 16, "in a cluster of 16"),
        ([(1, 24, 24, 24), (24, 24, 24, 1)], 16, "cannot be shared out to 16 CTAs"),
    ],
)
def test_what_cannot_be_shared_out(shapes, cluster, reason):
    patterns = bj.Chain(shapes)
    x = jax.ShapeDtypeStruct((32, patterns.in_features), "bfloat16")
    factors = tuple(jax.ShapeDtypeStruct(s, "bfloat16") for s in shapes)
    function = functools.partial(chain, config=Config(cluster=cluster))
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(function, x, factors)


def test_clusters_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"cluster must be one of .* got 3"):
        Config(cluster=3)
    with pytest.raises(ValueError, match="resident must not be negative, got -1"):
        Config(resident=-1)


@both_layouts
def test_resident_weights_of_one_cta(axis):
    config = Config(rows=32, warpgroups=3, stages=2, ctas=1, resident=2)
    check([(1, 16, 16, 16), (16, 16, 16, 1)], batch=72, axis=axis, config=config)
