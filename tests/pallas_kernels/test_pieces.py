"""float32 as sums of bfloat16 pieces: against exact arithmetic in float64."""

import jax
import numpy as np
import pytest

from pallas_kernels.common import pieces
from tests import reference, tensor_core


def draw(size, seed=0):
    rng = np.random.default_rng(seed)
    scale = 2.0 ** rng.integers(-40, 40, size)
    return (rng.standard_normal(size) * scale).astype(np.float32)


@pytest.mark.parametrize(("num_pieces", "error"), [(1, 2**-8), (2, 2**-17), (3, 0)])
def test_pieces_add_up(num_pieces, error):
    x = draw(10_000)
    # Jitted: XLA must not simplify the pieces away.
    parts = jax.jit(pieces.split, static_argnums=1)(x, num_pieces)
    assert [part.dtype for part in parts] == ["bfloat16"] * num_pieces
    total = sum(np.asarray(part, np.float64) for part in parts)
    assert (np.abs(total - x) <= error * np.abs(np.float64(x))).all()


@pytest.mark.parametrize(
    ("num_pieces", "error"), [(1, 2**-6.9), (2, 2**-15), (3, 2**-23)]
)
def test_products_of_pieces(num_pieces, error):
    x, y = draw(10_000, 1), draw(10_000, 2)
    xs, ys = pieces.split(x, num_pieces), pieces.split(y, num_pieces)
    total = sum(
        np.asarray(xs[i], np.float64) * np.asarray(ys[j], np.float64)
        for i, j in pieces.products(num_pieces)
    )
    exact = np.float64(x) * np.float64(y)
    assert (np.abs(total - exact) <= error * np.abs(exact)).all()


@pytest.mark.parametrize(("inputs", "measured"), [(192, 1.7e-6), (1024, 7.3e-6)])
def test_long_sums_of_a_tensor_core_miss_float32(inputs, measured):
    """As an H200 did; which is why the kernels add up sums of few products."""
    x = reference.draw((16, inputs), seed=1)
    w = reference.draw((inputs, 16), seed=2)
    xs, ws = (list(map(np.asarray, pieces.split(one, 3))) for one in (x, w))
    sums = np.zeros((16, 16), np.float32)
    for start in range(0, inputs, 16):
        for i, j in pieces.products(3):
            some = slice(start, start + 16)
            sums = tensor_core.multiply_add(sums, xs[i][:, some], ws[j][some])
    exact = reference.wide(x) @ reference.wide(w)
    worst = max(map(reference.relative_error, sums, exact))
    assert worst == pytest.approx(measured, rel=0.3)


@pytest.mark.parametrize("num_pieces", [1, 2, 3])
def test_number_of_products(num_pieces):
    found = pieces.products(num_pieces)
    assert len(set(found)) == {1: 1, 2: 3, 3: 6}[num_pieces]
    sizes = [i + j for i, j in found]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("bfloat16", "highest", 1),
        ("float16", None, 1),
        ("float32", None, 2),
        ("float32", "high", 2),
        ("float32", "highest", 3),
        ("float32", jax.lax.Precision.HIGHEST, 3),
        ("float32", ("default", "highest"), 3),
    ],
)
def test_count(dtype, precision, expected):
    assert pieces.count(dtype, precision) == expected


def test_the_default_precision_of_jax_counts():
    with jax.default_matmul_precision("highest"):
        assert pieces.count("float32", None) == 3


def test_algorithms_of_xla_are_refused():
    with pytest.raises(NotImplementedError, match="TF32_TF32_F32"):
        pieces.count("float32", "TF32_TF32_F32")
