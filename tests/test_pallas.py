"""The one-factor kernel as an implementation of `butterfly`, run in the interpreter."""

import functools

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


def draw():
    x = reference.draw((40, 256), "bfloat16", seed=1)
    return x, reference.draw_factors(CHAIN, "bfloat16", seed=2)


def test_the_last_launch_has_the_epilogue_and_the_wider_result():
    x, factors = draw()
    function = functools.partial(
        butterfly, activation="relu", preferred_element_type="float32"
    )
    y = gpu_interpreter.run(function, x, factors)
    assert y.dtype == "float32"
    expected = np.maximum(reference.apply(x, factors), 0)
    assert reference.relative_error(y, expected) < tolerance("bfloat16", 1)


def test_a_cpu_is_refused():
    with pytest.raises(NotImplementedError, match="lowered for cpu"):
        butterfly(*draw())
