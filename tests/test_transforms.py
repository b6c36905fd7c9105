"""Transforms are those of SciPy, of every norm, radix and kind of size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.linalg

import butterjax as bj
from butterjax import transforms
from tests import reference

NORMS = ["backward", "ortho", "forward"]
SIZES = [(1, 2), (2, 2), (15, 2), (60, 4), (4096, 64)]  # Features, radix.
TOLERANCE = 1e-13


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def check(links, expected, n, dtype="float64", tolerance=TOLERANCE):
    """Compares links with a function of the rows of a matrix."""
    x = reference.draw((3, n), dtype)
    y = bj.butterfly(x, links)
    wanted = expected(x)
    assert np.iscomplexobj(y) == np.iscomplexobj(wanted)
    assert reference.relative_error(y, wanted) < tolerance


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "radix"), SIZES)
def test_fourier(n, radix, norm):
    x = (n, "complex128")
    links = transforms.dft(n, norm=norm, radix=radix)
    check(links, lambda x: scipy.fft.fft(x, norm=norm), *x)
    links = transforms.idft(n, norm=norm, radix=radix)
    check(links, lambda x: scipy.fft.ifft(x, norm=norm), *x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "radix"), SIZES)
@pytest.mark.parametrize("kind", [2, 3, 4])
@pytest.mark.parametrize("name", ["dct", "dst"])
def test_cosines_and_sines(name, kind, n, radix, norm):
    function = getattr(scipy.fft, name)
    links = getattr(transforms, name)(n, type=kind, norm=norm, radix=radix)
    check(links, lambda x: function(x, type=kind, norm=norm), n)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "radix"), SIZES)
def test_hartley(n, radix, norm):
    def expected(x):
        spectrum = scipy.fft.fft(x, norm=norm)
        return spectrum.real - spectrum.imag

    check(transforms.hartley(n, norm=norm, radix=radix), expected, n)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("n", "radix"), [(2, 2), (6, 2), (16, 4), (4096, 64)])
def test_real_fourier(n, radix, norm):
    def expected(x):
        spectrum = scipy.fft.rfft(x, norm=norm)
        return np.concatenate(
            [spectrum.real[:, :-1], spectrum.real[:, -1:], spectrum.imag[:, 1:-1]], 1
        )

    check(transforms.real_dft(n, norm=norm, radix=radix), expected, n)


@pytest.mark.parametrize(("n", "radix"), [(1, 2), (2, 2), (32, 2), (32, 4), (1024, 32)])
def test_hadamard_and_walsh(n, radix):
    matrix = scipy.linalg.hadamard(n).astype(float)
    # Sequency: how often a row changes its sign.
    changes = np.count_nonzero(np.diff(matrix, axis=1), axis=1)
    by_sequency = matrix[np.argsort(changes)]
    for function, rows in (
        (transforms.hadamard, matrix),
        (transforms.walsh, by_sequency),
    ):
        for norm, scale in zip(NORMS, [1, n**-0.5, 1 / n], strict=True):
            links = function(n, norm=norm, radix=radix)
            check(links, lambda x, m=rows, s=scale: s * x @ m.T, n)


def haar_matrix(n):
    if n == 1:
        return np.ones((1, 1))
    coarse = np.kron(haar_matrix(n // 2), [1, 1])
    fine = np.kron(np.eye(n // 2), [1, -1])
    return np.concatenate([coarse, fine]) / np.sqrt(2)


@pytest.mark.parametrize(("n", "radix"), [(1, 2), (2, 2), (32, 2), (32, 4), (512, 32)])
def test_haar(n, radix):
    matrix = haar_matrix(n)
    check(transforms.haar(n, radix=radix), lambda x: x @ matrix.T, n)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize(("n", "radix"), [(1, 2), (6, 2), (2048, 64)])
def test_circulant_and_toeplitz(n, radix, dtype):
    column, row = reference.draw((2, n), dtype, seed=1)
    matrix = scipy.linalg.circulant(column)
    links = transforms.circulant(column, radix=radix)
    check(links, lambda x: x @ matrix.T, n, dtype)
    matrix = scipy.linalg.toeplitz(column, row)
    links = transforms.toeplitz(column, row, radix=radix)
    check(links, lambda x: x @ matrix.T, n, dtype)


def test_toeplitz_of_a_column_is_hermitian():
    column = reference.draw((6,), "complex128")
    dense = bj.to_dense(transforms.toeplitz(column))
    np.testing.assert_allclose(dense, scipy.linalg.toeplitz(column), atol=1e-14)


def test_gradient_of_a_convolution():
    column, x, dy = reference.draw((3, 12))
    gradient = jax.grad(
        lambda column: bj.butterfly(x, transforms.circulant(column)) @ dy
    )(column.astype(float))
    # y_i = Σ_j c_{i-j} x_j, so dy/dc is the circulant matrix of x.
    np.testing.assert_allclose(
        gradient, scipy.linalg.circulant(x.astype(float)).T @ dy, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("radix", [2, 3, 4, 8, 4096])
def test_radix_is_the_largest_block(radix):
    for n, largest_prime in ((64, 2), (90, 5)):
        chain = bj.Chain.of(transforms.dft(n, radix=radix)[:-1])
        assert np.prod([factor.b for factor in chain]) == n
        assert max(factor.b for factor in chain) <= max(radix, largest_prime)
    assert len(transforms.dft(4096, radix=4)) == 6 + 1
    assert len(transforms.dft(4096, radix=64)) == 2 + 1
    assert bj.Chain.of(transforms.dft(64)[:-1]) == bj.Chain.square_dyadic(64)


@pytest.mark.parametrize(
    "links",
    [
        transforms.dft(64, norm="ortho", dtype="c64"),
        transforms.hadamard(64, norm="ortho", dtype="f32"),
    ],
)
def test_ortho_has_unitary_factors(links):
    for factor in links[:6]:
        dense = reference.matrix(factor)
        np.testing.assert_allclose(dense @ dense.conj().T, np.eye(64), atol=1e-6)


@pytest.mark.parametrize("name", ["dct", "dst"])
def test_adjoint_of_an_orthogonal_transform_is_its_inverse(name):
    links = getattr(transforms, name)(30, norm="ortho")
    x = reference.draw((3, 30), "float64")
    y = bj.butterfly(bj.butterfly(x, links), bj.adjoint(links))
    assert reference.relative_error(y, x) < TOLERANCE


def test_permutations():
    x = np.arange(12)
    (stride,) = transforms.stride_permutation(12, 4)
    np.testing.assert_array_equal(stride.indices, x.reshape(3, 4).T.reshape(-1))
    (axes,) = transforms.permuted_axes((2, 3, 2), (2, 0, 1))
    np.testing.assert_array_equal(
        axes.indices, x.reshape(2, 3, 2).transpose(2, 0, 1).reshape(-1)
    )
    (bits,) = transforms.bit_reversal(16)
    expected = [int(f"{i:04b}"[::-1], 2) for i in range(16)]
    np.testing.assert_array_equal(bits.indices, expected)
    assert bits.transpose == bits


def test_two_dimensional():
    x = reference.draw((2, 6, 4), "complex128")
    links = bj.algebra.kron(transforms.dft(6), transforms.dft(4, radix=4))
    y = bj.butterfly(x.reshape(2, 24), links).reshape(2, 6, 4)
    assert reference.relative_error(y, scipy.fft.fft2(x)) < TOLERANCE


def test_large_transforms_make_no_matrix():
    n = 2**16
    check(transforms.dft(n, radix=16), scipy.fft.fft, n, "complex128", 1e-12)
    check(transforms.dct(n, radix=16), scipy.fft.dct, n, tolerance=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-6), ("bfloat16", 2e-2), ("float16", 3e-3)],
)
def test_narrow_weights(dtype, tolerance):
    links = transforms.dct(256, norm="ortho", dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(links)} == {dtype}
    x = reference.draw((4, 256), dtype)
    expected = scipy.fft.dct(reference.wide(x), norm="ortho")
    assert reference.relative_error(bj.butterfly(x, links), expected) < tolerance


def test_default_dtypes_are_the_widest():
    assert transforms.dft(4)[0].dtype == "complex128"
    assert transforms.dct(4)[0].dtype == "float64"
    with jax.enable_x64(False):
        assert transforms.dft(4)[0].dtype == "complex64"
        assert transforms.haar(4)[1].dtype == "float32"
        assert transforms.circulant(jnp.ones(4, "bfloat16"))[0].dtype == "bfloat16"
