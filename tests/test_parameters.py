"""Names of factors, and finding them again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, serialization

import butterjax as bj
from butterjax.parameters import factor_names
from tests import reference

# Eleven equal sizes: nothing but the names tells the factors apart.
CHAIN = bj.Chain([(1, 2, 2, 1)] * 11)
X = reference.draw((3, 2))


def layers():
    """Parameters of both modules, and the factors as they were drawn."""
    linen_layer = bj.linen.Butterfly(2, chain=CHAIN, use_bias=False)
    variables = linen_layer.init(jax.random.key(0), X)
    nnx_layer = bj.nnx.Butterfly(2, 2, chain=CHAIN, use_bias=False, rngs=nnx.Rngs(0))
    return linen_layer, variables, nnx_layer


def assert_same(one, other):
    assert len(one) == len(other) == len(CHAIN)
    for left, right in zip(one, other, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("length", [1, 2, 10, 11, 100, 101, 1000])
def test_names_sort(length):
    names = factor_names(length)
    assert len(set(names)) == length
    assert list(names) == sorted(names)
    assert names[0].startswith("factor_00")


def test_leaves_of_a_tree_are_in_order():
    linen_layer, variables, nnx_layer = layers()
    expected = linen_layer.apply(variables, X)
    leaves = jax.tree.leaves(variables)
    np.testing.assert_allclose(bj.butterfly(X, leaves), expected, rtol=1e-4)
    leaves = jax.tree.leaves(nnx.state(nnx_layer, nnx.Param))
    np.testing.assert_allclose(bj.butterfly(X, leaves), nnx_layer(X), rtol=1e-4)


def test_accessors():
    linen_layer, variables, nnx_layer = layers()
    factors = linen_layer.bind(variables).factors
    assert isinstance(factors, tuple)
    assert bj.Chain.of(factors) == CHAIN
    np.testing.assert_allclose(
        bj.butterfly(X, factors), linen_layer.apply(variables, X), rtol=1e-4
    )
    assert_same(factors, bj.factors_of(variables["params"]))
    np.testing.assert_allclose(
        bj.butterfly(X, nnx_layer.factors), nnx_layer(X), rtol=1e-4
    )
    assert_same(nnx_layer.factors, bj.factors_of(nnx.state(nnx_layer)))
    state = nnx.to_pure_dict(nnx.state(nnx_layer))
    assert_same(nnx_layer.factors, bj.factors_of(state))


def test_factors_of_a_restored_layer_and_a_restored_tuple():
    _, variables, _ = layers()
    params = variables["params"]
    factors = bj.factors_of(params)
    saved = serialization.to_bytes({"bias": X, **params})
    restored = serialization.msgpack_restore(saved)
    assert_same(bj.factors_of(restored), factors)
    # Flax writes a tuple as a dict of "0", "1", "10", ..., in no promised order.
    restored = serialization.msgpack_restore(serialization.to_bytes(factors))
    shuffled = {name: restored[name] for name in sorted(restored)}
    assert list(shuffled)[:3] == ["0", "1", "10"]
    assert_same(bj.factors_of(shuffled), factors)


def test_a_layer_inside_a_model():
    class Model(nn.Module):
        def setup(self):
            self.hidden = bj.linen.Butterfly(8)

        def __call__(self, x):
            return bj.butterfly(self.hidden(x), self.hidden.factors)

    x = reference.draw((3, 8))
    model = Model()
    y, variables = model.init_with_output(jax.random.key(0), x)
    factors = bj.factors_of(variables["params"]["hidden"])
    w = reference.dense(factors)
    np.testing.assert_allclose(y, x @ w.T @ w.T, rtol=1e-4)
    bound = model.bind(variables)
    assert bj.Chain.of(bound.hidden.factors) == bj.default_chain(8, 8)


def test_boxes_are_opened():
    names = ("blocks", None, None, "stride")
    init = nn.with_partitioning(nn.initializers.lecun_normal(), names)
    layer = bj.linen.Butterfly(16, kernel_init=init)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 16)))
    factors = bj.factors_of(variables["params"])
    assert all(isinstance(factor, jax.Array) for factor in factors)
    assert bj.Chain.of(factors) == bj.default_chain(16, 16)
    bound = layer.bind(variables)
    assert bj.Chain.of(bound.factors) == bj.default_chain(16, 16)


def test_stacked_layers():
    layer = bj.nnx.Butterfly(16, 16, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(layer))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    x = reference.draw((16,))
    y = jax.vmap(lambda p: bj.butterfly(x, bj.factors_of(p)))(stacked)
    expected = reference.dense(layer.factors) @ x
    np.testing.assert_allclose(y, [expected, 4 * expected], rtol=1e-4)
    assert [factor.ndim for factor in bj.factors_of(stacked)] == [5, 5]
