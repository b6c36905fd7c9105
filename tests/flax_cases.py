"""Sizes and chains that both Flax modules are tested with."""

import numpy as np
import pytest

import butterjax as bj
from tests import reference

SIZES = pytest.mark.parametrize(
    ("in_features", "out_features", "chain"),
    [
        (36, 64, None),
        (60, 100, None),
        (31, 47, None),  # Primes: padded and cut.
        (7, 1, None),  # One dense factor.
        (64, 64, bj.Chain.square_dyadic(64)),
        (50, 33, bj.Chain.square_dyadic(64)),
        (96, 20, bj.Chain([(1, 8, 8, 3), (6, 4, 16, 1)])),
    ],
    ids=str,
)


def expected_output(x, factors, bias) -> np.ndarray:
    """Pads x, applies the matrix, cuts the result to the bias' size."""
    w = reference.dense(factors)
    rows = reference.wide(x).reshape(-1, x.shape[-1])
    y = rows @ w[: len(bias), : x.shape[-1]].T + reference.wide(bias)
    return y.reshape(*x.shape[:-1], len(bias))
