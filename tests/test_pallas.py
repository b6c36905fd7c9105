"""The one-factor kernel as an implementation of `butterfly`, run in the interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels.factor import Config
from tests import gpu_interpreter, reference

CHAIN = bj.Chain.monarch(256, 256)
butterfly = functools.partial(bj.butterfly, implementation="pallas")


@pytest.fixture(autouse=True)
def few_warpgroups(monkeypatch):
    # With more of them than cores, the interpreter can run out of XLA's threads.
    def small(shape, dtype, batch, *, axis, **_):
        blocks = 8 if axis == -1 and shape[3] > 1 else 1
        return Config(64, 32, 16, blocks, m_warps=1, stages=2, ctas=2)

    monkeypatch.setattr("pallas_kernels.factor.default_config", small)


def draw(seed=1):
    x = reference.draw((40, 256), "bfloat16", seed)
    return x, reference.draw_factors(CHAIN, "bfloat16", seed + 1)


@pytest.mark.parametrize("axis", [-1, 0])
def test_value_and_gradients(axis):
    x, factors = draw()
    bias = reference.draw((256,), "float32", seed=3)
    dy = reference.draw((40, 256), "bfloat16", seed=4)

    # Not in one program: XLA has few threads on a small machine, and the backward
    # pass must not wait for those that the interpreter holds.
    def apply(x, factors, bias):
        return butterfly(x, factors, axis=axis, bias=bias)

    with gpu_interpreter.interpreter():
        turn = np.asarray if axis == -1 else np.transpose
        y, pull_back = jax.vjp(apply, turn(x), factors, bias)
        y.block_until_ready()
        dx, dfactors, dbias = pull_back(turn(dy))
    if axis == 0:
        y, dx = y.T, dx.T
    bound = tolerance("bfloat16", len(CHAIN))
    sums = reference.apply(x, factors) + reference.wide(bias)
    assert reference.relative_error(y, sums) < bound
    expected_dx, expected_dfactors = reference.gradients(x, factors, dy)
    assert reference.relative_error(dx, expected_dx) < bound
    assert reference.relative_error(dbias, reference.wide(dy).sum(0)) < bound
    for actual, expected in zip(dfactors, expected_dfactors, strict=True):
        assert reference.relative_error(actual, expected) < bound


def test_the_last_launch_has_the_epilogue_and_the_wider_result():
    x, factors = draw()
    function = functools.partial(
        butterfly, activation="relu", preferred_element_type="float32"
    )
    y = gpu_interpreter.run(function, x, factors)
    assert y.dtype == "float32"
    expected = np.maximum(reference.apply(x, factors), 0)
    assert reference.relative_error(y, expected) < tolerance("bfloat16", 1)


def test_vmap_over_a_batch_of_chains():
    pairs = [draw(seed) for seed in (10, 20)]
    stacked = jax.tree.map(lambda *one: np.stack(one), *pairs)
    y = gpu_interpreter.run(jax.vmap(butterfly), *stacked)
    expected = np.stack([reference.apply(*pair) for pair in pairs])
    assert reference.relative_error(y, expected) < tolerance("bfloat16", 2)


def test_scan_and_remat():
    x, factors = draw()

    @jax.checkpoint
    def layer(x, _):
        return butterfly(x, factors), None

    y = gpu_interpreter.run(lambda x: jax.lax.scan(layer, x, length=2)[0], x)
    expected = reference.apply(reference.apply(x, factors), factors)
    assert reference.relative_error(y, expected) < tolerance("bfloat16", 4)


def test_complex_numbers_are_refused():
    x = np.ones((8, 256), "complex64")
    with pytest.raises(NotImplementedError, match="got complex64"):
        butterfly(x, reference.draw_factors(CHAIN, "complex64"))


def test_a_cpu_is_refused():
    with pytest.raises(NotImplementedError, match="lowered for cpu"):
        butterfly(*draw())


@pytest.mark.parametrize("name", ["pallas", "pallas_chain"])
@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize(
    "chain", [bj.Chain.square_dyadic(64), bj.Chain([(1, 48, 16, 1)])], ids=str
)
def test_empty_batch(name, axis, chain):
    shape = [chain.in_features]
    shape.insert(1 + axis, 0)
    factors = reference.draw_factors(chain, "bfloat16")
    apply = functools.partial(bj.butterfly, axis=axis, implementation=name)
    y, pull_back = jax.vjp(apply, jnp.zeros(shape, "bfloat16"), factors)
    assert y.size == 0 and chain.out_features in y.shape
    dx, dfactors = pull_back(y)
    assert dx.shape == tuple(shape)
    for gradient in dfactors:
        assert not np.asarray(gradient).any()
