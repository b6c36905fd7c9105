"""The independent truth of the tests: chains as explicit matrices in float64.

Built entry by entry from the definition y[i,j,k] = Σ_l w[i,j,l,k] · x[i,l,k], in
NumPy, with no code of the library.
"""

import functools
import itertools
from collections.abc import Sequence

import ml_dtypes  # noqa: F401  Teaches NumPy the name bfloat16.
import numpy as np


def draw(shape: Sequence[int], dtype="float32", seed: int = 0) -> np.ndarray:
    """Standard normal numbers, complex where the dtype is."""
    rng = np.random.default_rng(seed)
    numbers = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        numbers = (numbers + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return numbers.astype(dtype)


def draw_factors(chain, dtype="float32", seed: int = 0) -> tuple[np.ndarray, ...]:
    """Factors that keep the variance of what they are applied to."""
    return tuple(
        (draw(shape, dtype, seed + i) / np.sqrt(shape[2])).astype(dtype)
        for i, shape in enumerate(chain.shapes)
    )


def wide(array) -> np.ndarray:
    """The array in float64 or complex128."""
    array = np.asarray(array)
    return array.astype(complex if np.iscomplexobj(array) else float)


def matrix(factor) -> np.ndarray:
    """One factor as a matrix of shape (a·b·d, a·c·d)."""
    w = wide(factor)
    a, b, c, d = w.shape
    k = np.zeros((a * b * d, a * c * d), w.dtype)
    for i, j, l, m in itertools.product(range(a), range(b), range(c), range(d)):
        k[(i * b + j) * d + m, (i * c + l) * d + m] = w[i, j, l, m]
    return k


def dense(factors: Sequence) -> np.ndarray:
    """W = K₁K₂…K_L."""
    return functools.reduce(np.matmul, map(matrix, factors))


def apply(x, factors: Sequence) -> np.ndarray:
    """W x for x (batch, in_features)."""
    return wide(x) @ dense(factors).T


def activate(y: np.ndarray, activation: str | None) -> np.ndarray:
    """max(y, 0), the tanh form of y·Φ(y), y / (1 + exp(-y)), or y itself."""
    gelu_argument = np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
    return {
        None: y,
        "relu": np.maximum(y, 0),
        "gelu": y * (1 + np.tanh(gelu_argument)) / 2,
        "silu": y / (1 + np.exp(-y)),
    }[activation]


def slope(y: np.ndarray, activation: str | None) -> np.ndarray:
    """The derivative of `activate`."""
    sigmoid = 1 / (1 + np.exp(-y))
    tanh = np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))
    inner = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * y**2)
    return {
        None: np.ones_like(y),
        "relu": (y > 0).astype(y.dtype),
        "gelu": (1 + tanh) / 2 + y * (1 - tanh**2) * inner / 2,
        "silu": sigmoid * (1 + y * (1 - sigmoid)),
    }[activation]


def gradients(x, factors: Sequence, dy) -> tuple[np.ndarray, list[np.ndarray]]:
    """Gradients of Σ y·dy in x (batch, in_features) and in each factor.

    With W = A K B the gradient in K is Aᵀ dyᵀ x Bᵀ, of which a factor's weights are
    the entries on its support.
    """
    x, dy = wide(x), wide(dy)
    matrices = [matrix(factor) for factor in factors]
    identity = [np.eye(matrices[0].shape[0])], [np.eye(matrices[-1].shape[1])]
    in_factors = []
    for index, factor in enumerate(factors):
        left = functools.reduce(np.matmul, identity[0] + matrices[:index])
        right = functools.reduce(np.matmul, matrices[index + 1 :] + identity[1])
        dk = (dy @ left).T @ (x @ right.T)
        a, b, c, d = np.shape(factor)
        dw = np.empty((a, b, c, d), dk.dtype)
        for i, j, l, m in itertools.product(range(a), range(b), range(c), range(d)):
            dw[i, j, l, m] = dk[(i * b + j) * d + m, (i * c + l) * d + m]
        in_factors.append(dw)
    return dy @ dense(factors), in_factors


def tangent(x, factors: Sequence, x_dot, factors_dot: Sequence) -> np.ndarray:
    """Derivative of W x along (x_dot, factors_dot), by the product rule."""
    total = wide(x_dot) @ dense(factors).T
    for index, factor_dot in enumerate(factors_dot):
        moved = [*factors[:index], factor_dot, *factors[index + 1 :]]
        total = total + apply(x, moved)
    return total


def relative_error(actual, expected) -> float:
    """‖actual − expected‖ / ‖expected‖; infinite where actual is not finite."""
    actual, expected = wide(actual), wide(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if not np.isfinite(actual).all():
        return float("inf")
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
