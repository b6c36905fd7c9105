"""Algebra of chains against NumPy on their matrices, in float64 and complex128."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import butterjax as bj
from butterjax import algebra
from tests import reference

DTYPES = ["float64", "complex128"]
KEY = jax.random.key(0)
CROSSED = bj.Chain([(2, 3, 3, 2), (1, 3, 3, 4), (4, 3, 3, 1)])  # Not chainable.
SHARED = bj.Chain([(1, 8, 6, 3), (2, 9, 12, 1)])  # Of shared rank 3.
RECTANGULAR = bj.Chain.monarch(6, 4)


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def check(actual, expected, tolerance=1e-12):
    assert reference.relative_error(actual, expected) < tolerance


@pytest.mark.parametrize(
    ("chain", "dtype"),
    [
        (bj.Chain([(3, 4, 4, 2)]), "float64"),
        (bj.Chain.square_dyadic(8), "float64"),
        (CROSSED, "complex128"),
    ],
    ids=str,
)
def test_inverse_and_determinant(chain, dtype):
    factors = reference.draw_factors(chain, dtype)
    dense = reference.dense(factors)
    inverted, actual, product = jax.jit(
        lambda factors: (
            inverted := algebra.inverse(factors),
            algebra.slogdet(factors),
            bj.to_dense(inverted),
        )
    )(factors)
    assert bj.Chain.of(inverted) == bj.Chain(reversed(chain.patterns))
    assert {one.dtype.name for one in inverted} == {dtype}
    check(product, np.linalg.inv(dense), 1e-10)
    expected = np.linalg.slogdet(dense)
    check(actual.sign, expected.sign)
    check(actual.logabsdet, expected.logabsdet)
    assert actual.logabsdet.dtype == "float64"


@pytest.mark.parametrize(
    ("chain", "dtype"),
    [
        (bj.Chain([(3, 4, 4, 2)]), "complex128"),
        (bj.Chain.square_dyadic(8), "float64"),
        (SHARED, "complex128"),
        (bj.Chain([(1, 8, 8, 3), (12, 2, 2, 1)]), "complex128"),  # Two runs of one.
        (CROSSED, "complex128"),
        (RECTANGULAR, "float64"),
        (bj.Chain([(2, 3, 4, 6), (4, 6, 2, 2), (8, 2, 3, 1)]), "complex128"),
    ],
    ids=str,
)
def test_trace_and_norms(chain, dtype, monkeypatch):
    monkeypatch.setattr(algebra, "_COLUMNS", 5)
    is_square = chain.in_features == chain.out_features

    @jax.jit
    def numbers(factors):
        square = factors
        if not is_square:
            square = algebra.product(bj.adjoint(factors), factors)
        return (
            algebra.trace(square),
            algebra.frobenius_norm(factors),
            algebra.spectral_norm(factors, KEY, num_steps=1000),
            bj.to_dense(factors),
        )

    factors = reference.draw_factors(chain, dtype)
    trace, frobenius, spectral, dense = map(np.asarray, numbers(factors))
    check(dense, reference.dense(factors))
    check(trace, np.trace(dense if is_square else dense.conj().T @ dense))
    check(frobenius, np.linalg.norm(dense))
    check(spectral, np.linalg.norm(dense, 2), 1e-5)
    assert trace.shape == frobenius.shape == spectral.shape == ()
    assert frobenius.dtype == spectral.dtype == "float64"


def test_spectral_norm_is_a_lower_bound_that_grows_with_steps():
    factors = reference.draw_factors(bj.Chain.monarch(24, 60), "float64")
    exact = np.linalg.norm(reference.dense(factors), 2)

    @jax.jit
    def norms(factors):
        return [algebra.spectral_norm(factors, KEY, num_steps=n) for n in (1, 10)]

    few, more = norms(factors)
    assert 0.3 * exact < few < more <= exact * (1 + 1e-14)
    assert norms([np.zeros_like(factor) for factor in factors]) == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_products(dtype):
    left = reference.draw_factors(bj.Chain.monarch(6, 4), dtype)
    right = reference.draw_factors(bj.Chain([(3, 2, 5, 1)]), dtype, seed=7)
    w, v = reference.dense(left), reference.dense(right)
    check(reference.dense(algebra.product(left, right)), w @ v)
    both = algebra.kron(left, right)
    check(reference.dense(both), np.kron(w, v))
    # Of chains whose product is full, the chain is chainable.
    full = algebra.kron(left, left)
    assert bj.Chain.of(full).is_chainable
    check(reference.dense(full), np.kron(w, w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_and_stacks(dtype):
    chain = bj.Chain([(1, 2, 3, 4), (3, 4, 2, 1)])
    chains = [reference.draw_factors(chain, dtype, seed=seed) for seed in (0, 5, 9)]
    matrices = [reference.dense(factors) for factors in chains]
    diagonal = algebra.block_diagonal(*chains)
    assert bj.Chain.of(diagonal) == bj.Chain([(3, 2, 3, 4), (9, 4, 2, 1)])
    check(reference.dense(diagonal), scipy.linalg.block_diag(*matrices))
    beside = algebra.hstack(*chains)  # The first factors have a = 1.
    assert bj.Chain.of(beside) == bj.Chain([(1, 2, 9, 4), (9, 4, 2, 1)])
    check(reference.dense(beside), np.hstack(matrices))
    above = algebra.vstack(*chains)
    assert bj.Chain.of(above)[-1] == bj.Pattern(1, 3, 1, 6)
    check(reference.dense(above), np.vstack(matrices))
    beside = algebra.hstack(above, above)  # Its first factor has a = 3.
    check(reference.dense(beside), np.hstack([np.vstack(matrices)] * 2))
    lone = [[reference.draw((1, 2, 3, 4), dtype, seed=seed)] for seed in (3, 4)]
    (above,) = algebra.vstack(*lone)
    check(reference.dense([above]), np.vstack([*map(reference.dense, lone)]))


def test_block_diagonal_of_unequal_numbers_of_blocks():
    chains = [[reference.draw((a, 2, 3, 2), "float64", seed=a)] for a in (1, 3)]
    expected = scipy.linalg.block_diag(*map(reference.dense, chains))
    check(reference.dense(algebra.block_diagonal(*chains)), expected)


def check_orthogonal(make, factors, parameters):
    """Factors made of parameters: unitary, and their blocks by the formula."""
    dense = reference.dense(factors)
    check(dense @ dense.conj().T, np.eye(len(dense)), 1e-13)
    one = np.eye(parameters[0].shape[1])
    skew = parameters[0][0, :, :, 1]
    skew = skew - skew.conj().T
    expected = {
        algebra.cayley: np.linalg.inv(one + skew) @ (one - skew),
        algebra.matrix_exponential: scipy.linalg.expm(skew),
    }[make]
    check(factors[0][0, :, :, 1], expected)


def test_unitary_parametrisations():
    functions = algebra.cayley, algebra.matrix_exponential
    make_all = jax.jit(lambda parameters: [make(parameters) for make in functions])
    chain = bj.Chain([(2, 3, 3, 2), (1, 3, 3, 4)])
    parameters = reference.draw_factors(chain, "complex128")
    for make, factors in zip(functions, make_all(parameters), strict=True):
        check_orthogonal(make, factors, parameters)
    for factors in make_all([np.zeros_like(one) for one in parameters]):
        check(reference.dense(factors), np.eye(12))


def of_any(factors):
    return (
        algebra.trace(factors),
        algebra.frobenius_norm(factors),
        algebra.spectral_norm(factors, KEY, num_steps=500),
    )


def of_square_blocks(factors):
    return (
        algebra.slogdet(factors).logabsdet,
        algebra.inverse(factors),
        algebra.cayley(factors),
        algebra.matrix_exponential(factors[:1]),
        algebra.kron(factors, factors),
        algebra.hstack(factors, factors),
    )


@pytest.mark.parametrize(
    ("function", "chain"),
    [
        (of_any, SHARED),
        (of_any, CROSSED),
        (of_square_blocks, bj.Chain([(1, 3, 3, 2), (3, 2, 2, 1)])),
    ],
)
def test_gradients_and_vmap(function, chain):
    @jax.jit
    @jax.vmap
    def differentiate(factors):
        def weighted(factors):
            outputs = function(factors)
            leaves = jax.tree.leaves(outputs)
            sums = [
                (leaf * jnp.sin(1 + jnp.arange(leaf.size)).reshape(leaf.shape)).sum()
                for leaf in leaves
            ]
            return sum(sums), outputs

        return jax.value_and_grad(weighted, has_aux=True)(factors)

    step = 1e-6
    factors = reference.draw_factors(chain, "float64", seed=3)
    along = reference.draw_factors(chain, "float64", seed=20)
    batch = tuple(
        np.stack([f, f + step * v, f - step * v])
        for f, v in zip(factors, along, strict=True)
    )
    (values, outputs), gradients = differentiate(batch)
    actual = sum((g[0] * v).sum() for g, v in zip(gradients, along, strict=True))
    check(actual, (values[1] - values[2]) / (2 * step), 1e-5)
    # What vmap gives is right too.
    for i in range(3):
        one, out = jax.tree.map(lambda stacked, i=i: stacked[i], (batch, outputs))
        dense = reference.dense(one)
        if function is of_any:
            check(out[0], np.trace(dense))
            check(out[1], np.linalg.norm(dense))
        else:
            check(out[0], np.linalg.slogdet(dense)[1])
            check(reference.dense(out[1]), np.linalg.inv(dense))
            check_orthogonal(algebra.cayley, out[2], one)
            check_orthogonal(algebra.matrix_exponential, out[3], one)
            check(reference.dense(out[4]), np.kron(dense, dense))
            check(reference.dense(out[5]), np.hstack([dense, dense]))


def test_16_bits_are_computed_in_float32():
    chain = bj.Chain.square_dyadic(8)
    with jax.enable_x64(False):
        factors = reference.draw_factors(chain, "bfloat16")

        @jax.jit
        def compute(factors):
            return (
                algebra.slogdet(factors).logabsdet,
                algebra.trace(factors),
                algebra.frobenius_norm(factors),
            ), (algebra.inverse(factors), algebra.cayley(factors))

        actual, chains = compute(factors)
        assert {one.dtype.name for one in jax.tree.leaves(chains)} == {"bfloat16"}
        assert {one.dtype.name for one in actual} == {"float32"}
        dense = reference.dense(factors)
        expected = np.linalg.slogdet(dense)[1], np.trace(dense), np.linalg.norm(dense)
        check(actual, expected, 1e-5)


def test_no_square_matrix_is_formed():
    shapes = [
        jax.ShapeDtypeStruct(shape, "float64")
        for shape in bj.Chain.square_dyadic(2**12).shapes
    ]
    for function in (
        algebra.trace,
        algebra.frobenius_norm,
        algebra.slogdet,
        algebra.inverse,
        functools.partial(algebra.spectral_norm, key=KEY),
    ):
        jaxpr = jax.make_jaxpr(function)(shapes)
        sizes = [v.aval.size for e in jaxpr.eqns for v in e.outvars]
        assert max(sizes) <= 2**18  # n^1.5


def test_what_patterns_do_not_allow_is_said():
    chains = [reference.draw_factors(bj.Chain.monarch(*s)) for s in ((4, 4), (6, 6))]
    with pytest.raises(ValueError, match=r"same b, c and d .* got"):
        algebra.block_diagonal(*chains)
    with pytest.raises(ValueError, match=r"as many features as right gives, 6.*4"):
        algebra.product(*chains)
    with pytest.raises(ValueError, match="equally many columns, got 4, 6"):
        algebra.vstack(*chains)
    with pytest.raises(ValueError, match="equally many rows, got 4, 6"):
        algebra.hstack(*chains)
    with pytest.raises(ValueError, match=r"factors\[1\] must have square blocks"):
        algebra.inverse(reference.draw_factors(RECTANGULAR))
    with pytest.raises(ValueError, match="equally many factors, got 2, 1"):
        algebra.block_diagonal(chains[0], chains[0][:1])
