"""Linear maps with a transpose of their own, by hand-made ones that tell themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.linear_map import linear_map
from tests import reference

W, X = reference.draw((3, 4)), reference.draw((4,), seed=1)


def product(w, x):
    """w @ x, whose transpose is tenfold."""
    return linear_map(
        lambda residuals, operands: residuals[0] @ operands[0],
        lambda residuals, dy: (10 * dy @ residuals[0],),
        (w,),
        (x,),
    )


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


def test_gradients_of_what_is_constant_are_not_asked_for():
    def both(residuals, operands):
        return operands[0] + operands[1]

    def only_the_first(x):
        return linear_map(both, lambda _, dy: (dy, dy), (), (x, jnp.ones(4)))

    _, pull_back = jax.vjp(only_the_first, X)
    np.testing.assert_array_equal(pull_back(jnp.ones(4))[0], np.ones(4))
