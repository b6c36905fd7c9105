"""Rules of one's own, by such that differ from JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from butterjax.gpu.custom_rules import Rules, call, call_linear
from tests import reference

W, X = reference.draw((3, 4)), reference.draw((4,), seed=1)


def product(w, x):
    """w @ x, whose transpose is tenfold."""
    (y,) = call_linear(
        lambda residuals, operands: [residuals[0] @ operands[0]],
        lambda residuals, gradients: [10 * gradients[0] @ residuals[0]],
        [w],
        [x],
    )
    return y


@pytest.mark.parametrize("apply", [product, jax.jit(product)], ids=["eager", "jit"])
def test_value_and_transpose(apply):
    np.testing.assert_allclose(apply(W, X), W @ X, rtol=1e-6)
    _, pull_back = jax.vjp(lambda x: apply(W, x), X)
    (dx,) = pull_back(jnp.ones(3))
    np.testing.assert_allclose(dx, 10 * W.sum(0), rtol=1e-6)
    (dx,) = jax.linear_transpose(lambda x: apply(W, x), X)(jnp.ones(3))
    np.testing.assert_allclose(dx, 10 * W.sum(0), rtol=1e-6)


def test_derivatives_are_those_of_the_function():
    _, y_dot = jax.jvp(product, (W, X), (2 * W, 3 * X))
    np.testing.assert_allclose(y_dot, 5 * W @ X, rtol=1e-6)


@pytest.mark.parametrize("axes", [(0, None), (None, 1), (2, 0)])
def test_vmap(axes):
    w = W if axes[0] is None else np.stack([W, 2 * W], axes[0])
    x = X if axes[1] is None else np.stack([X, 3 * X], axes[1])
    expected = {
        (0, None): [W @ X, 2 * W @ X],
        (None, 1): [W @ X, 3 * W @ X],
        (2, 0): [W @ X, 6 * W @ X],
    }[axes]
    mapped = jax.jit(jax.vmap(product, in_axes=axes))
    y, pull_back = jax.vjp(lambda x: mapped(w, x), x)
    np.testing.assert_allclose(y, np.stack(expected), rtol=1e-5)
    (dx,) = pull_back(jnp.ones_like(y))
    assert dx.shape == x.shape
    expected_dx = {
        (0, None): 30 * W.sum(0),  # The sum over both.
        (None, 1): np.stack([10 * W.sum(0)] * 2, 1),
        (2, 0): np.stack([10 * W.sum(0), 20 * W.sum(0)]),
    }[axes]
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-5)


def test_stacks_are_one_call():
    shapes = []

    def function(arrays):
        shapes.append([array.shape for array in arrays])
        return [arrays[0] * arrays[1]]

    def scale(x, scale):
        rules = Rules(function, lambda arrays, dots: [dots[0]], stacks=(True, False))
        (y,) = call(rules, [x, scale])
        return y

    np.testing.assert_array_equal(jax.vmap(scale, (1, None))(W, 2.0), 2 * W.T)
    assert shapes[-1] == [(4, 3), ()]
    np.testing.assert_array_equal(jax.vmap(scale)(W, X[:3]), (W.T * X[:3]).T)
    assert shapes[-1] == [(4,), ()]  # Mapped.


def test_gradients_of_what_is_constant_are_dropped():
    def only_the_first(x):
        (y,) = call_linear(
            lambda _, operands: [operands[0] + operands[1]],
            lambda _, gradients: [gradients[0], gradients[0]],
            [],
            [x, jnp.ones(4)],
        )
        return y

    (dx,) = jax.linear_transpose(only_the_first, X)(jnp.ones(4))
    np.testing.assert_array_equal(dx, np.ones(4))


def test_what_is_not_linear_has_no_transpose():
    rules = Rules(lambda arrays: arrays, lambda arrays, dots: dots)
    with pytest.raises(NotImplementedError, match="no transpose"):
        jax.linear_transpose(lambda x: call(rules, [x]), X)([jnp.ones(4)])
