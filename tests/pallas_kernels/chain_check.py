"""What the tests of the chain kernel share: a comparison with float64."""

import functools

import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from pallas_kernels.chain import chain
from tests import gpu_interpreter, reference

both_layouts = pytest.mark.parametrize("axis", [-1, 0])


def check(shapes, *, batch, axis, dtype="bfloat16", config, **kwargs):
    """Compares the kernel with float64 on random numbers."""
    patterns = bj.Chain(shapes)
    x = reference.draw((batch, patterns.in_features), dtype, seed=1)
    factors = reference.draw_factors(patterns, dtype, seed=2)
    function = functools.partial(chain, axis=axis, config=config, **kwargs)
    y = gpu_interpreter.run(function, x if axis == -1 else x.T, factors)
    assert y.dtype == kwargs.get("out_dtype", dtype)
    expected = reference.apply(x, factors)
    if "bias" in kwargs:
        expected = expected + reference.wide(kwargs["bias"])
    expected = reference.activate(expected, kwargs.get("activation"))
    error = reference.relative_error(y if axis == -1 else y.T, expected)
    exact = kwargs.get("precision") == "highest"
    assert error < tolerance(dtype, len(patterns), tf32=not exact)
