"""Permutations and diagonals are links of a chain wherever there is one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from tests import reference

ORDER = [2, 0, 5, 1, 4, 3]
VALUES = np.array([1.0, -2, 0.5, 3, -1, 2])
# 6 -> 4 features: links first, last and between, and two runs of factors.
CHAINS = [bj.Chain([(2, 2, 3, 1)]), bj.Chain([(1, 3, 2, 2), (2, 2, 3, 1)])]


def mixed(dtype="float32"):
    values = reference.draw((6,), dtype, seed=5)
    (first,) = reference.draw_factors(CHAINS[0], dtype)
    rest = reference.draw_factors(CHAINS[1], dtype, seed=1)
    return (
        bj.Permutation([1, 3, 0, 2]),
        first,
        bj.Diagonal(jnp.asarray(values)),
        *rest,
        bj.Permutation(ORDER),
    )


def matrix(link):
    if isinstance(link, bj.Permutation):
        return np.eye(len(link.indices))[link.indices]
    if isinstance(link, bj.Diagonal):
        return np.diag(reference.wide(link.values))
    return reference.matrix(link)


def dense(links):
    return functools.reduce(np.matmul, map(matrix, links))


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_butterfly_and_dense_matrix(start, dtype):
    links = mixed(dtype)[start:]
    expected = dense(links)
    assert reference.relative_error(bj.to_dense(links), expected) < 1e-6
    x = reference.draw((2, 3, 6), dtype)
    y = jax.jit(bj.butterfly)(x, links)
    assert y.dtype == dtype
    assert reference.relative_error(y, reference.wide(x) @ expected.T) < 1e-6
    for axis in (0, 1):
        y = bj.butterfly(np.moveaxis(x, -1, axis), links, axis=axis)
        wanted = np.moveaxis(reference.wide(x) @ expected.T, -1, axis)
        assert reference.relative_error(y, wanted) < 1e-6


def test_transposes():
    links = mixed("complex64")
    w = dense(links)
    for function, expected in [
        (bj.transpose, w.T),
        (bj.conjugate, w.conj()),
        (bj.adjoint, w.conj().T),
    ]:
        assert reference.relative_error(dense(function(links)), expected) < 1e-15


@pytest.mark.parametrize("start", [0, 1, 2])
def test_bias_and_activation_follow_the_first_link(start):
    links = mixed()[start:]
    w = dense(links)
    x, bias = reference.draw((3, 6)), reference.draw(w.shape[:1], seed=1)
    for axis in (0, -1):
        y = bj.butterfly(
            x if axis else x.T,
            links,
            axis=axis,
            bias=bias,
            activation="gelu",
            preferred_element_type="bfloat16",
        )
        assert y.dtype == "bfloat16"
        expected = reference.activate(reference.wide(x) @ w.T + bias, "gelu")
        assert reference.relative_error(y if axis else y.T, expected) < 1e-2


def test_links_without_factors():
    x = reference.draw((2, 6))
    order, values = bj.Permutation(ORDER), bj.Diagonal(jnp.asarray(VALUES, "float32"))
    np.testing.assert_array_equal(bj.butterfly(x, [order]), x[:, ORDER])
    np.testing.assert_array_equal(
        bj.butterfly(x, [order, values]), (x * VALUES.astype("float32"))[:, ORDER]
    )
    assert bj.to_dense([order]).dtype == "float32"
    np.testing.assert_array_equal(bj.to_dense([order, values]), np.diag(VALUES)[ORDER])


def test_types_are_promoted_together():
    links = (bj.Permutation(ORDER), bj.Diagonal(np.ones(6, np.float32)))
    assert bj.butterfly(np.ones((1, 6), np.float16), links).dtype == "float32"
    assert bj.butterfly(np.ones((1, 6), np.float16), links[:1]).dtype == "float16"


def test_gradients_reach_factors_and_diagonals():
    with jax.enable_x64(True):
        links = mixed("float64")
        x, dy = reference.draw((3, 6), "float64"), reference.draw((3, 4), "float64")

        def loss(links, x):
            return (bj.butterfly(x, links) * dy).sum()

        gradients, dx = jax.grad(loss, (0, 1))(links, x)
        assert reference.relative_error(dx, dy @ dense(links)) < 1e-14
        assert gradients[0] == links[0]  # Permutations hold no number to be trained.
        # dL/dW = dyᵀx, of which a link gets Aᵀ dL/dW Bᵀ for W = A link B.
        for i in (1, 2, 3, 4):
            left = dense(links[:i])
            right = dense(links[i + 1 :])
            whole = left.T @ dy.T @ x @ right.T
            one = gradients[i]
            support = matrix(jax.tree.map(jnp.ones_like, links[i]))
            assert reference.relative_error(matrix(one), whole * support) < 1e-13


def test_pytrees():
    links = mixed()
    assert len(jax.tree.leaves(links)) == 4
    twice = jax.tree.map(lambda leaf: 2 * leaf, links)
    assert isinstance(twice[0], bj.Permutation) and twice[0] == links[0]
    np.testing.assert_array_equal(twice[2].values, 2 * links[2].values)
    # Equal permutations share a compiled program.
    assert hash(bj.Permutation(ORDER)) == hash(bj.Permutation(np.array(ORDER)))
    assert bj.Permutation(ORDER) != bj.Permutation(ORDER[::-1])


def test_vmap_over_diagonals():
    values = reference.draw((3, 6))
    y = jax.vmap(lambda v: bj.butterfly(jnp.ones(6), [bj.Diagonal(v)]))(values)
    np.testing.assert_array_equal(y, values)


def test_sharded_features_are_brought_together():
    mesh = jax.make_mesh((2,), ("i",), (jax.sharding.AxisType.Explicit,))
    links = mixed()
    x = reference.draw((4, 6))
    with jax.set_mesh(mesh):
        for spec in [("i", None), (None, "i")]:
            sharded = jax.device_put(x, jax.P(*spec))
            y = bj.butterfly(sharded, links)
            assert reference.relative_error(y, x @ dense(links).T) < 1e-6
            assert jax.typeof(y).sharding.spec[0] == spec[0]


def test_nan_stays_on_the_diagonal():
    expected = np.diag([1.0, np.nan])
    np.testing.assert_array_equal(
        bj.to_dense([bj.Diagonal(jnp.array([1.0, jnp.nan]))]), expected
    )


def test_kronecker_product():
    links = mixed()
    for left, right in [(links[:3], links[-1:]), (links[-1:], links[:3])]:
        actual = dense(bj.algebra.kron(left, right))
        np.testing.assert_allclose(actual, np.kron(dense(left), dense(right)))
