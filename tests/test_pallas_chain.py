"""The chain kernel as an implementation of `butterfly`, run in the interpreter."""

import functools

import jax
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels.chain import Config
from tests import gpu_interpreter, reference

CHAIN = bj.Chain.monarch(256, 256)
butterfly = functools.partial(bj.butterfly, implementation="pallas_chain")


@pytest.fixture(autouse=True)
def few_warpgroups(monkeypatch):
    # With more of them than cores, the interpreter can run out of XLA's threads.
    small = Config(rows=32, warpgroups=2, ctas=2)
    monkeypatch.setattr("pallas_kernels.chain.default_config", lambda *_, **__: small)


@pytest.mark.parametrize("axis", [-1, 0])
def test_value_and_gradients(axis):
    x = reference.draw((40, 256), "bfloat16", seed=1)
    factors = reference.draw_factors(CHAIN, "bfloat16", seed=2)
    bias = reference.draw((256,), "float32", seed=3)
    dy = reference.draw((40, 256), "bfloat16", seed=4)

    # Not in one program: XLA has few threads on a small machine, and the backward
    # pass must not wait for those that the interpreter holds.
    def apply(x, factors, bias):
        return butterfly(x, factors, axis=axis, bias=bias, activation="silu")

    with gpu_interpreter.interpreter():
        turn = np.asarray if axis == -1 else np.transpose
        y, pull_back = jax.vjp(apply, turn(x), factors, bias)
        y.block_until_ready()
        dx, dfactors, dbias = pull_back(turn(dy))
    if axis == 0:
        y, dx = y.T, dx.T
    bound = tolerance("bfloat16", len(CHAIN))
    sums = reference.apply(x, factors) + reference.wide(bias)
    expected = reference.activate(sums, "silu")
    assert reference.relative_error(y, expected) < bound
    sigmoid = 1 / (1 + np.exp(-sums))
    dsums = reference.wide(dy) * (sigmoid + expected * (1 - sigmoid))
    expected_dx, expected_dfactors = reference.gradients(x, factors, dsums)
    assert reference.relative_error(dx, expected_dx) < bound
    assert reference.relative_error(dbias, dsums.sum(0)) < bound
    for actual, expected in zip(dfactors, expected_dfactors, strict=True):
        assert reference.relative_error(actual, expected) < bound


def test_vmap_over_a_batch_of_chains():
    x = reference.draw((2, 16, 256), "bfloat16")
    stacks = [reference.draw_factors(CHAIN, "bfloat16", seed) for seed in (10, 20)]
    stacked = jax.tree.map(lambda *one: np.stack(one), *stacks)
    y = gpu_interpreter.run(jax.vmap(butterfly), x, stacked)
    expected = [reference.apply(*one) for one in zip(x, stacks, strict=True)]
    assert reference.relative_error(y, np.stack(expected)) < tolerance("bfloat16", 2)


def test_complex_numbers_are_refused():
    x = np.ones((8, 256), "complex64")
    with pytest.raises(NotImplementedError, match="got complex64"):
        butterfly(x, reference.draw_factors(CHAIN, "complex64"))


def test_a_cpu_is_refused():
    x = np.ones((8, 256), "bfloat16")
    factors = reference.draw_factors(CHAIN, "bfloat16")
    with pytest.raises(NotImplementedError, match="lowered for cpu"):
        butterfly(x, factors)
