"""Activations against their formulas in float64."""

import jax
import numpy as np
import pytest
from scipy import special

from pallas_kernels.common import epilogue


def _gelu(x):
    return x * special.ndtr(x)


def _silu(x):
    return x * special.expit(x)


@pytest.mark.parametrize(
    ("activation", "formula", "error"),
    [
        (None, lambda x: x, 0),
        ("relu", lambda x: np.maximum(x, 0), 0),
        ("gelu", _gelu, 5e-4),  # The tanh form comes that close.
        ("silu", _silu, 1e-6),
    ],
)
def test_activations(activation, formula, error):
    x = np.linspace(-8, 8, 999, dtype=np.float32)
    y = epilogue.activate(x, activation)
    assert y.dtype == np.float32
    assert np.abs(y - formula(np.float64(x))).max() <= error


def test_relu_where_it_has_no_slope():
    x = np.array([-1, -0.0, 0, 2, np.nan], np.float32)
    y, pull_back = jax.vjp(lambda x: epilogue.activate(x, "relu"), x)
    np.testing.assert_array_equal(y, [0, 0, 0, 2, np.nan])
    np.testing.assert_array_equal(pull_back(np.ones_like(x))[0][:4], [0, 0, 0, 1])


def test_all_are_listed():
    assert epilogue.ACTIVATIONS == ("relu", "gelu", "silu")
