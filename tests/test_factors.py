import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import butterjax as bj
from butterjax.numerics import tolerance
from tests import reference, strategies
from tests.covering import covering

DTYPES = ["float16", "bfloat16", "float32", "complex64"]


CHAINS = [
    bj.Chain.square_dyadic(16),
    bj.Chain.monarch(24, 60),
    bj.Chain([(3, 4, 5, 2)]),
    bj.Chain([(1, 8, 8, 3), (6, 4, 16, 1)]),  # Not chainable.
    bj.Chain([(1, 6, 4, 4), (4, 4, 4, 1), (2, 8, 8, 1)]),
]


@pytest.mark.parametrize(("chain", "dtype"), covering(CHAINS, DTYPES), ids=str)
def test_to_dense(chain, dtype):
    factors = reference.draw_factors(chain, dtype)
    dense = bj.to_dense(factors)
    assert dense.dtype == dtype
    error = reference.relative_error(dense, reference.dense(factors))
    assert error < tolerance(dtype, len(chain))


@pytest.mark.parametrize("n", [2, 16, 256])
def test_radix_2_chain_of_hadamard_blocks_is_the_hadamard_matrix(n):
    block = jnp.array([[1.0, 1.0], [1.0, -1.0]])[None, :, :, None]
    factors = tuple(
        jnp.broadcast_to(block, pattern.shape) for pattern in bj.Chain.square_dyadic(n)
    )
    np.testing.assert_array_equal(bj.to_dense(factors), scipy.linalg.hadamard(n))


def test_to_dense_keeps_nan_on_the_support():
    factor = jnp.ones((2, 1, 1, 2)).at[0, 0, 0, 0].set(jnp.nan)
    expected = np.eye(4)
    expected[0, 0] = np.nan
    np.testing.assert_array_equal(bj.to_dense([factor]), expected)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(strategies.chains(max_factors=3))
def test_transposes(chain):
    factors = reference.draw_factors(chain, "complex64")
    dense = reference.dense(factors)
    for function, expected in [
        (bj.transpose, dense.T),
        (bj.conjugate, dense.conj()),
        (bj.adjoint, dense.conj().T),
    ]:
        error = reference.relative_error(reference.dense(function(factors)), expected)
        assert error < 1e-15
    assert bj.Chain.of(bj.transpose(factors)) == chain.transpose


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(strategies.chains(min_factors=2), st.data())
def test_fuse_leaves_the_map_unchanged(chain, data):
    cuts = data.draw(st.sets(st.integers(1, len(chain) - 1)))
    ends = [0, *sorted(cuts), len(chain)]
    partition = tuple(np.diff(ends).tolist())
    with jax.enable_x64(True):
        factors = reference.draw_factors(chain, "float64")
        fused = bj.fuse(factors, partition)
    assert bj.Chain.of(fused) == chain.fuse(partition)
    expected = reference.dense(factors)
    assert reference.relative_error(reference.dense(fused), expected) < 1e-14


def test_fuse_is_differentiable():
    chain = bj.Chain.square_dyadic(16)
    with jax.enable_x64(True):
        factors = reference.draw_factors(chain, "float64")
        x, dy = reference.draw((2, 5, 16), "float64")

        def loss(factors):
            return (bj.butterfly(x, bj.fuse(factors, (2, 2))) * dy).sum()

        actual = jax.grad(loss)(factors)
    _, expected = reference.gradients(x, factors, dy)
    for one, other in zip(actual, expected, strict=True):
        assert reference.relative_error(one, other) < 1e-14


def test_fuse_rounds_once():
    # 1 + 2⁻⁷ is a bfloat16; rounded after each product its 16th power is 1 + 16·2⁻⁷.
    factor = jnp.full((1, 1, 1, 1), 1 + 2**-7, "bfloat16")
    (fused,) = bj.fuse([factor] * 16, (16,))
    assert fused.dtype == "bfloat16"
    assert fused.item() == float(jnp.asarray((1 + 2**-7) ** 16, "bfloat16"))
    assert fused.item() > 1 + 16 * 2**-7


def test_fuse_errors():
    factors = reference.draw_factors(bj.Chain([(1, 8, 8, 3), (6, 4, 16, 1)]))
    with pytest.raises(ValueError, match="not chainable"):
        bj.fuse(factors, (2,))
    with pytest.raises(ValueError, match="partition must be"):
        bj.fuse(factors, (1, 2))


def test_integers_are_moved_but_not_multiplied():
    factor = np.arange(12).reshape(1, 3, 4, 1)
    (transposed,) = bj.transpose([factor])
    assert transposed.dtype == "int32"
    np.testing.assert_array_equal(transposed[0, ..., 0], factor[0, ..., 0].T)
    np.testing.assert_array_equal(bj.conjugate([factor])[0], factor)
    # 2²⁴ + 1 is no float32, so products in float32 would round it.
    large = np.full((1, 1, 1, 1), 2**24 + 1)
    with pytest.raises(TypeError, match=r"dtype of factors must be .*; got int32"):
        bj.to_dense([large])


def test_dense_matrix_of_mixed_types_has_the_promoted_one():
    factors = reference.draw_factors(bj.Chain.square_dyadic(4))
    mixed = [np.ones(factors[0].shape, np.int32), factors[1]]
    dense = bj.to_dense(mixed)
    assert dense.dtype == "float32"
    np.testing.assert_allclose(dense, reference.dense(mixed), rtol=1e-6)
