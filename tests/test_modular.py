"""Transforms over the integers modulo a prime, against Python's integers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax import modular

COMMON = 998244353  # 119·2²³ + 1
LARGEST = 2147473409  # 2³¹ - 10239, 1 more than a multiple of 2¹¹.


def integers(shape, modulus, seed=0):
    return np.random.default_rng(seed).integers(0, modulus, shape, np.uint32)


def product(f, g, modulus, n=None, sign=1):
    """Coefficients of f·g, modulo xⁿ - sign if there is an n."""
    length = n or len(f) + len(g) - 1
    found = [0] * length
    for (i, one), (j, other) in itertools.product(enumerate(f), enumerate(g)):
        wraps, k = divmod(i + j, length)
        found[k] = (found[k] + sign**wraps * int(one) * int(other)) % modulus
    return found


@pytest.mark.parametrize(
    ("n", "modulus", "radix"),
    [(1, 3, 2), (8, 17, 8), (15, 31, 2), (32, LARGEST, 4)],
)
def test_transform_and_inverse(n, modulus, radix):
    x = integers((3, n), modulus)
    x[0] = modulus - 1  # The largest products.
    links = modular.ntt(n, modulus, radix=radix)
    both = np.concatenate([x, np.eye(n, dtype=np.uint32)])
    transformed = modular.butterfly(both, links, modulus)
    assert transformed.dtype == "uint32"
    y = transformed[:3]
    # Whichever root: row 1 of the matrix is its powers, row k those of its k-th power.
    matrix = np.asarray(transformed[3:]).T.tolist()
    root = matrix[min(1, n - 1)][min(1, n - 1)]
    assert matrix == [[pow(root, j * k, modulus) for j in range(n)] for k in range(n)]
    assert len({pow(root, k, modulus) for k in range(n)}) == n
    expected = [
        [sum(w * v for w, v in zip(row, one, strict=True)) % modulus for row in matrix]
        for one in x.tolist()
    ]
    np.testing.assert_array_equal(y, expected)
    inverse = modular.intt(n, modulus, radix=radix)
    np.testing.assert_array_equal(modular.butterfly(y, inverse, modulus), x)


@pytest.mark.parametrize(
    ("n", "modulus", "wrap"),
    [
        (1, 3, "negacyclic"),
        (12, 73, "cyclic"),
        (12, 73, "negacyclic"),
        (32, LARGEST, "negacyclic"),
    ],
)
def test_convolution(n, modulus, wrap):
    f, g = integers((2, n), modulus)
    f[0] = g[0] = modulus - 1
    sign = 1 if wrap == "cyclic" else -1
    np.testing.assert_array_equal(
        modular.convolve(f, g, modulus, wrap=wrap, radix=4),
        product(f, g, modulus, n, sign),
    )


def test_product_of_polynomials():
    f, g = integers((2, 3, 7), COMMON), integers((3, 4), COMMON, seed=1)
    found = modular.multiply_polynomials(f, g, COMMON)
    assert found.shape == (2, 3, 10)
    for i, j in itertools.product(range(2), range(3)):
        np.testing.assert_array_equal(found[i, j], product(f[i, j], g[j], COMMON))


def test_integers_of_all_types_are_reduced():
    links = (jnp.full((1, 1, 1, 1), 5, "uint32"),)
    with jax.enable_x64(True):
        for x in (
            [-1],
            np.array([-1], np.int8),
            np.array([255], np.uint8),
            np.array([2**32 - 1], np.uint32),
            np.array([-(2**60) - 1]),
        ):
            expected = [int(x[0]) * 5 % LARGEST]
            y = modular.butterfly(x, links, LARGEST)
            assert y.dtype == "uint32"
            np.testing.assert_array_equal(y, expected)


def test_links_of_any_shape():
    chain = bj.Chain([(2, 3, 4, 2), (1, 4, 5, 4)])
    factors = [integers(shape, LARGEST, i) for i, shape in enumerate(chain.shapes)]
    x = integers((2, 20), LARGEST, seed=2)
    exact = x.astype(object)
    for w in reversed(factors):
        a, _, c, d = w.shape
        blocks = exact.reshape(2, a, c, d)
        exact = np.einsum("nilk,ijlk->nijk", blocks, w.astype(object)).reshape(2, -1)
    y = modular.butterfly(x, factors, LARGEST)
    np.testing.assert_array_equal(y, (exact % LARGEST).astype(np.uint32))
