"""One launch per factor as an implementation of `butterfly`, in the interpreter."""

import collections
import functools

import jax
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from tests import gpu_interpreter, reference

CHAIN = bj.Chain.monarch(256, 256)
KERNEL = "custom_vmap_call"
butterfly = functools.partial(bj.butterfly, implementation="pallas")


pytestmark = pytest.mark.usefixtures("few_warpgroups")


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


def primitives(jaxpr):
    """Names of what a program applies, but for the insides of kernels."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        if eqn.primitive.name != KERNEL:
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                yield from primitives(inner) if hasattr(inner, "eqns") else ()


def test_small_blocks_are_read_as_they_are_given():
    """By a kernel for each factor; beside these nothing runs but views and casts."""
    chain = bj.Chain.square_dyadic(64)
    x = reference.draw((40, 64), "bfloat16", seed=1)
    factors = reference.draw_factors(chain, "bfloat16", seed=2)
    traced = jax.make_jaxpr(functools.partial(butterfly, activation="relu"))(x, factors)
    found = collections.Counter(primitives(traced.jaxpr))
    assert found.pop(KERNEL) == len(chain)
    around = {"jit", "call_with_rules", "gpu_only"}
    assert found.keys() - around <= {"reshape", "convert_element_type"}


def test_a_cpu_is_refused():
    with pytest.raises(NotImplementedError, match="lowered for cpu"):
        butterfly(*draw())
