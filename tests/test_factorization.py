import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import butterjax as bj
from butterjax import factorization, hierarchy
from butterjax.numerics import tolerance
from tests import reference, strategies

ORDERS = ["balanced", "left_to_right"]
RADIX_2 = bj.Chain.square_dyadic(16)
RANK_2 = bj.Chain([(1, 4, 6, 6), (3, 4, 4, 3), (6, 6, 3, 1)])
OFF_SUPPORT = bj.Chain([(2, 3, 4, 6), (4, 6, 4, 2)])
REDUNDANT = bj.Chain([(1, 2, 8, 4), (2, 8, 8, 2), (4, 8, 4, 1), (8, 2, 2, 1)])
CASES = [
    (RADIX_2, "balanced"),
    (RADIX_2, "left_to_right"),
    (RANK_2, "left_to_right"),
    (OFF_SUPPORT, "balanced"),
    (REDUNDANT, "balanced"),
    (bj.Chain([(2, 3, 4, 2)]), "balanced"),
]


def matrices(chain) -> dict[str, np.ndarray]:
    """Far from a chain, near to one, of decaying rows, and smooth off the diagonal."""
    shape = (chain.out_features, chain.in_features)
    near = reference.dense(reference.draw_factors(chain, "float64", seed=3))
    noise = reference.draw(shape, "float64", seed=7)
    i, j = np.indices(shape)
    return {
        "random": noise,
        "near": near + 1e-3 * noise,
        "decaying": np.logspace(0, -9, shape[0])[:, None] * (near + 1e-3 * noise),
        "kernel": 1 / (1 + np.abs(i / shape[0] - j / shape[1])),
    }


def split_errors(matrix: np.ndarray, chain) -> tuple[float, list[float]]:
    """What is off the support, and e_s for every s: from supports and NumPy's SVD.

    Inner indices with the same rows and columns are one block, of as low a rank.
    """
    supports = [pattern.support().astype(int) for pattern in chain]
    product = np.linalg.multi_dot(supports) if len(supports) > 1 else supports[0]
    off = float(np.linalg.norm(matrix[product == 0]))
    errors = []
    for s in range(1, len(supports)):
        left = np.linalg.multi_dot([np.eye(len(product)), *supports[:s]]) > 0
        right = np.linalg.multi_dot([*supports[s:], np.eye(product.shape[1])]) > 0
        blocks = [(tuple(left[:, m]), tuple(right[m])) for m in range(left.shape[1])]
        squares = 0.0
        for rows, columns in set(blocks):
            block = matrix[np.ix_(rows, columns)]
            values = np.linalg.svd(block, compute_uv=False)
            squares += float(np.sum(values[blocks.count((rows, columns)) :] ** 2))
        errors.append(math.sqrt(squares))
    return off, errors


def factorize64(matrix, chain, **options):
    """`factorize` in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, bj.factorize(matrix, chain, **options))


def relative_error(result, matrix) -> float:
    return reference.relative_error(reference.dense(result.factors), matrix)


@hypothesis.settings(max_examples=4, deadline=None)
@hypothesis.given(
    strategies.chains(),
    st.sampled_from(ORDERS),
    st.sampled_from(["float64", "complex128", "float32", "complex64"]),
)
def test_product_of_a_chain_comes_back(chain, order, dtype):
    matrix = reference.dense(reference.draw_factors(chain, dtype)).astype(dtype)
    result = factorize64(matrix, chain, order=order)
    allowed = 1e-12 if dtype in ("float64", "complex128") else 1e-6
    assert bj.Chain.of(result.factors) == chain
    assert {factor.dtype.name for factor in result.factors} == {dtype}
    assert relative_error(result, matrix) < allowed
    assert result.error < allowed


def test_transforms_come_back():
    n, chain = 32, bj.Chain.square_dyadic(32)
    reversed_bits = [int(f"{i:05b}"[::-1], 2) for i in range(n)]
    for matrix in (
        scipy.linalg.hadamard(n).astype(float),
        scipy.linalg.dft(n)[:, reversed_bits],
    ):
        assert relative_error(factorize64(matrix, chain), matrix) < 1e-12


@pytest.mark.parametrize(("chain", "order"), CASES, ids=str)
def test_bounds(chain, order):
    """Against E_s as NumPy finds them; the upper one is derived for either order."""
    for name, matrix in matrices(chain).items():
        off, errors = split_errors(matrix, chain)
        norm = np.linalg.norm(matrix)
        result = factorize64(matrix, chain, order=order)
        error = relative_error(result, matrix)
        lower, upper = result.bounds
        assert result.error == pytest.approx(error, rel=1e-9, abs=1e-14), name
        expected = math.hypot(off, max(errors, default=0)) / norm
        assert lower == pytest.approx(expected, rel=1e-9, abs=1e-14), name
        assert lower <= error * (1 + 1e-12) + 1e-14, name
        assert error <= upper * (1 + 1e-12) + 1e-14, name
        if order == "left_to_right" and chain is not REDUNDANT:
            expected = math.hypot(off, *errors) / norm
            assert upper == pytest.approx(expected, rel=1e-9, abs=1e-14), name
        if order == "balanced" and chain is RADIX_2:
            expected = math.hypot(off, sum(errors)) / norm
            assert upper == pytest.approx(expected, rel=1e-9, abs=1e-14), name


def test_two_factors_are_the_best_there_are():
    for chain in (bj.Chain.monarch(12, 20), OFF_SUPPORT):
        matrix = reference.draw((chain.out_features, chain.in_features), "complex128")
        off, (error,) = split_errors(matrix, chain)
        result = factorize64(matrix, chain)
        best = math.hypot(off, error) / np.linalg.norm(matrix)
        assert relative_error(result, matrix) == pytest.approx(best, rel=1e-12)


def test_all_factors_but_one_are_orthonormal():
    """Columns that share a block of the cut after a factor, r = 2 at a time."""
    matrix = matrices(RANK_2)["random"]
    factors = factorize64(matrix, RANK_2, order="left_to_right").factors
    for factor in factors[:-1]:
        a, b, c, d = factor.shape
        blocks = factor.reshape(a, b, c // 2, 2, d)
        gram = np.einsum("ijtrk,ijtqk->itkrq", blocks, blocks)
        identity = np.broadcast_to(np.eye(2), gram.shape)
        np.testing.assert_allclose(gram, identity, atol=1e-12)


def test_bounds_would_tell_that_parts_are_not_orthonormal(monkeypatch):
    matrix = matrices(RADIX_2)["decaying"]

    def errors():
        factorization._factorize.clear_cache()
        result = factorize64(matrix, RADIX_2, order="balanced")
        return relative_error(result, matrix), result.bounds[1]

    error, upper = errors()
    assert error <= upper
    monkeypatch.setattr(
        hierarchy, "_move_center", lambda parts, patterns, center, index: index
    )
    error, upper = errors()
    factorization._factorize.clear_cache()
    assert error > 2 * upper


def test_redundant_factors_reach_every_matrix():
    chain = bj.Chain([(1, 2, 8, 4), (2, 8, 8, 2), (4, 8, 2, 1)])
    matrix = reference.draw((8, 8), "float32")
    result = bj.factorize(matrix, chain)
    assert bj.Chain.of(result.factors) == chain
    assert relative_error(result, matrix) == 0
    assert result.bounds == (0, 0)


def test_jit_vmap_and_batches():
    matrix = reference.draw((2, 3, 18, 24), "complex64")
    chain = bj.Chain([(1, 3, 4, 6), (4, 6, 6, 1)])
    batched = bj.factorize(matrix, chain)
    assert batched.error.shape == batched.bounds[0].shape == (2, 3)
    assert [f.shape for f in batched.factors] == [(2, 3, *s) for s in chain.shapes]
    jitted = jax.jit(bj.factorize, static_argnames=("chain", "order"))
    one = jitted(matrix[0, 0], chain, order="left_to_right")
    mapped = jax.vmap(lambda w: bj.factorize(w, chain))(matrix[0])
    for i, j in itertools.product(range(2), range(3)):
        product = reference.dense([factor[i, j] for factor in batched.factors])
        error = reference.relative_error(product, matrix[i, j])
        assert batched.error[i, j] == pytest.approx(error, rel=1e-5)
    dense = bj.to_dense([factor[0, 0] for factor in batched.factors])
    for factors in (one.factors, [factor[0] for factor in mapped.factors]):
        assert reference.relative_error(bj.to_dense(factors), dense) < 1e-5
    assert jax.tree.map(jnp.shape, bj.factorize(matrix[:0], chain)) == jax.tree.map(
        lambda leaf: (0, *leaf.shape[1:]), batched
    )


def test_what_is_not_finite_propagates_under_jit():
    matrix = jnp.ones((4, 4)).at[1, 2].set(jnp.nan)
    result = jax.jit(lambda w: bj.factorize(w, bj.Chain.monarch(4, 4)))(matrix)
    assert all(map(jnp.isnan, (result.error, *result.bounds)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_types(dtype):
    matrix = jnp.asarray(reference.draw((12, 20)), dtype)
    chain = bj.Chain.monarch(20, 12)
    result = bj.factorize(matrix, chain)
    assert {factor.dtype.name for factor in result.factors} == {dtype}
    assert result.error == pytest.approx(relative_error(result, matrix), rel=1e-4)
    assert result.error == pytest.approx(
        float(result.bounds[0]), rel=tolerance(dtype, 2)
    )


@pytest.mark.parametrize("scale", [0, 1e-30, 1e30])
def test_scale_of_a_matrix_leaves_the_error(scale):
    matrix = reference.draw((16, 16)) * np.float32(scale)
    result = bj.factorize(matrix, RADIX_2)
    assert all(jnp.isfinite(factor).all() for factor in result.factors)
    if scale:
        error = float(bj.factorize(reference.draw((16, 16)), RADIX_2).error)
        assert result.error == pytest.approx(error, rel=1e-3)
        assert relative_error(result, matrix) == pytest.approx(error, rel=1e-3)
    else:
        assert (result.error, *result.bounds) == (0, 0, 0)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_refinement(dtype):
    chain = bj.Chain.square_dyadic(8)
    matrix = reference.draw((8, 8), dtype, seed=2)
    start = factorize64(matrix, chain)
    refined = factorize64(matrix, chain, refine_steps=10)
    assert refined.bounds == start.bounds
    assert refined.error == pytest.approx(relative_error(refined, matrix), rel=1e-9)
    assert refined.bounds[0] <= refined.error < start.error * 0.999


def test_best_chain():
    chain = bj.Chain.from_shape(8, 12, num_factors=2)
    wider = bj.Chain([(1, 3, 4, 4), (2, 8, 4, 1)])  # Rank 2, the same blocks else.
    target = reference.dense(reference.draw_factors(wider, "float64"))
    with jax.enable_x64(True):
        front = bj.best_chain(target, budget=wider.num_weights)
        small = bj.best_chain(target, budget=chain.num_weights)
    assert front[-1].error < 1e-13
    assert front[-1].chain == wider
    assert len(front) > 1
    assert [fit.chain for fit in small] == [front[0].chain]
    assert front[0].num_weights <= chain.num_weights
    for fit, larger in itertools.pairwise(front):
        assert fit.num_weights < larger.num_weights
        assert fit.error > larger.error
    for fit in front:
        assert bj.Chain.of(fit.factors) == fit.chain
        error = relative_error(fit, target)
        assert fit.error == pytest.approx(error, rel=1e-9, abs=1e-14)
        assert fit.bounds[0] <= fit.error * (1 + 1e-9) + 1e-14
