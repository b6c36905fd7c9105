import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.export
import numpy as np
import pytest

import butterjax as bj
from tests import flax_cases, reference


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(1, 5000), st.integers(1, 5000))
def test_default_chain_fits_and_is_never_larger_than_dense(n_in, n_out):
    chain = bj.default_chain(n_in, n_out)
    assert chain.in_features >= n_in
    assert chain.out_features >= n_out
    assert chain.num_weights <= n_in * n_out
    assert chain.in_features <= n_in + 64
    assert chain.out_features <= n_out + 64


@pytest.mark.parametrize("sizes", [(784, 256), (768, 3072), (1021, 1024)])
def test_default_chain_is_far_smaller_than_dense_where_sizes_are_large(sizes):
    chain = bj.default_chain(*sizes)
    assert chain.num_weights < 0.15 * sizes[0] * sizes[1]


def test_default_chain_of_sizes_that_factor_is_monarch():
    assert bj.default_chain(768, 3072) == bj.Chain.monarch(768, 3072)
    assert bj.default_chain(1021, 4096) == bj.Chain.monarch(1024, 4096)


def test_default_chain_of_small_sizes_is_one_dense_factor():
    assert bj.default_chain(64, 1) == bj.Chain([(1, 1, 64, 1)])


def test_sizes_must_be_positive():
    with pytest.raises(ValueError, match="must be at least 1"):
        bj.default_chain(0, 4)


def butterflies(in_features, out_features):
    """The layers of both modules."""
    return itertools.islice(flax_cases.layers(in_features, out_features), 0, None, 2)


def test_eager_layers_promote_no_ranks_and_bring_nothing_to_the_device():
    x = jax.device_put(reference.draw((2, 3, 62)))
    for layer in butterflies(62, 45):  # Padded and cut.
        with jax.numpy_rank_promotion("raise"), jax.transfer_guard("disallow"):
            y = layer(x)
        np.testing.assert_allclose(y, jax.jit(layer)(x), atol=1e-6)


def test_layers_are_exported_for_any_batch():
    rows = jax.export.symbolic_shape("b, t")
    x = reference.draw((2, 3, 62))
    for layer in butterflies(62, 45):
        argument = jax.ShapeDtypeStruct((*rows, 62), "float32")
        exported = jax.export.export(jax.jit(layer))(argument)
        np.testing.assert_allclose(exported.call(x), layer(x), atol=1e-6)
