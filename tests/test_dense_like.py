import hypothesis
import hypothesis.strategies as st
import pytest

import butterjax as bj


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
