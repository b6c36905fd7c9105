import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from tests import reference
from tests.covering import covering

CHAINS = [
    bj.Chain.square_dyadic(256),
    bj.Chain.monarch(256, 1024),
    bj.Chain.monarch(1024, 256),  # Blocks of fewer rows than columns.
    bj.Chain([(1, 64, 16, 8), (8, 16, 4, 1)]),
]


@pytest.mark.parametrize(
    ("chain", "dtype"), covering(CHAINS, ["float32", "complex64"]), ids=str
)
def test_default_keeps_the_variance(chain, dtype):
    factors = bj.init(jax.random.key(0), chain, dtype)
    assert bj.Chain.of(factors) == chain
    assert all(factor.dtype == dtype for factor in factors)
    x = reference.draw((512, chain.in_features), dtype)
    y = np.asarray(bj.butterfly(x, factors))
    assert np.mean(np.abs(y) ** 2) == pytest.approx(1, rel=0.2)
    assert abs(y.mean()) < 0.05


def test_blocks_and_keys_are_independent():
    chain = bj.Chain([(4, 8, 8, 4)])
    (one,) = bj.init(jax.random.key(0), chain)
    (other,) = bj.init(jax.random.key(1), chain)
    blocks = np.asarray(one).transpose(0, 3, 1, 2).reshape(16, 64)
    correlation = np.corrcoef(np.concatenate([blocks, np.ravel(other)[None, :64]]))
    assert np.abs(correlation - np.eye(17)).max() < 0.6
    assert len(np.unique(np.concatenate([np.ravel(one), np.ravel(other)]))) > 2000


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_orthogonal_chain(dtype):
    initializer = jax.nn.initializers.orthogonal()
    chain = bj.Chain.monarch(36, 36)
    factors = bj.init(jax.random.key(0), chain, dtype, initializer=initializer)
    w = reference.dense(factors)
    np.testing.assert_allclose(w @ w.conj().T, np.eye(36), atol=1e-5)
    assert np.abs(w - np.eye(36)).max() > 0.1


@pytest.mark.parametrize("n", [16, 64])
def test_identity_chain(n):
    identity = bj.initializers.identity()
    for chain in (bj.Chain.square_dyadic(n), bj.Chain.monarch(n, n)):
        factors = bj.init(jax.random.key(0), chain, initializer=identity)
        np.testing.assert_array_equal(reference.dense(factors), np.eye(n))


def test_rectangular_identity_blocks():
    factors = bj.init(
        jax.random.key(0),
        bj.Chain([(1, 2, 3, 1)]),
        "bfloat16",
        initializer=bj.initializers.identity(),
    )
    assert factors[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(reference.dense(factors), np.eye(2, 3))


@pytest.mark.parametrize("draw", [lambda *_: None, lambda *_: jnp.ones((3, 2))])
def test_initialisers_that_return_another_shape(draw):
    # Blocks of 2 × 3 are asked for as (in, out) = (3, 2), and of 3 × 2 as (2, 3).
    for chain in (bj.Chain([(1, 2, 3, 1)]), bj.Chain([(1, 3, 2, 1)])):
        shape = (chain[0].c, chain[0].b)
        if getattr(draw(), "shape", None) == shape:
            (factor,) = bj.init(jax.random.key(0), chain, initializer=draw)
            assert factor.shape == (1, 2, 3, 1)
        else:
            message = rf"must return .* \({shape[0]}, {shape[1]}\), got"
            with pytest.raises(ValueError, match=message):
                bj.init(jax.random.key(0), chain, initializer=draw)


def test_old_and_new_keys():
    chain = bj.Chain.monarch(4, 4)
    for key in (jax.random.key(0), jax.random.PRNGKey(0), np.zeros(2, np.uint32)):
        assert bj.Chain.of(bj.init(key, chain)) == chain
