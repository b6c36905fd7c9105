import jax
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from tests import reference

CHAIN = bj.Chain.monarch(12, 20)
FACTORS = reference.draw_factors(CHAIN)
W = reference.dense(FACTORS)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (2, 1, 3), (0,), (2, 0, 3)])
def test_batch_axes_around_the_features(batch):
    for axis in range(-len(batch) - 1, len(batch) + 1):
        shape = list(batch)
        shape.insert(axis % (len(batch) + 1), 12)
        x = reference.draw(shape)
        y = bj.butterfly(x, FACTORS, axis=axis)
        expected = np.moveaxis(np.moveaxis(x, axis, -1) @ W.T, -1, axis)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, atol=1e-5)


def test_adjoint_identity():
    factors = reference.draw_factors(CHAIN, "complex64")
    x = reference.draw((12,), "complex64", seed=1)
    y = reference.draw((20,), "complex64", seed=2)
    left = np.vdot(y, bj.butterfly(x, factors))
    right = np.vdot(bj.butterfly(y, bj.adjoint(factors)), x)
    assert left == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize(
    ("x_dtype", "factor_dtype", "preferred", "expected"),
    [
        ("bfloat16", "float32", None, "float32"),
        ("float32", "bfloat16", None, "float32"),
        ("float16", "bfloat16", None, "float32"),
        ("int32", "float32", None, "float32"),
        ("float32", "complex64", None, "complex64"),
        ("bfloat16", "bfloat16", "float32", "float32"),
        ("float32", "float32", "bfloat16", "bfloat16"),
        ("float32", "float32", "complex64", "complex64"),
    ],
)
def test_dtype_promotion(x_dtype, factor_dtype, preferred, expected):
    x = jnp.ones((2, 12), x_dtype)
    factors = [jnp.asarray(factor, factor_dtype) for factor in FACTORS]
    y = bj.butterfly(x, factors, preferred_element_type=preferred)
    assert y.dtype == expected
    np.testing.assert_allclose(np.asarray(y, complex).real[0], W.sum(1), atol=0.1)


def test_python_numbers_are_arrays():
    y = bj.butterfly([1.0, 2.0], [np.ones((1, 1, 2, 1), np.float32)])
    np.testing.assert_array_equal(y, [3.0])


@pytest.mark.parametrize(
    ("x", "kwargs", "error", "message"),
    [
        (
            np.ones((2, 13)),
            {},
            ValueError,
            r"x of shape \(2, 13\) has 13 features along axis -1, but the last factor, "
            r"of shape \(3, 4, 4, 1\), takes a·c·d = 12",
        ),
        (np.ones((2, 12)), {"axis": 0}, ValueError, "has 2 features along axis 0"),
        (np.ones((2, 12)), {"axis": 2}, ValueError, "axis=2 is out of range"),
        (np.ones((2, 12)), {"axis": -3}, ValueError, "axis=-3 is out of range"),
        (np.ones(()), {}, ValueError, r"axis=-1 is out of range for x of shape \(\)"),
        (
            np.ones((2, 12)),
            {"implementation": "eimsum"},
            ValueError,
            "must be one of .*einsum.*; got 'eimsum'",
        ),
        (
            np.ones((2, 12), "complex64"),
            {"preferred_element_type": "float32"},
            TypeError,
            "drops the imaginary part of operands of dtype complex64",
        ),
        (
            np.ones((2, 12)),
            {"preferred_element_type": "int32"},
            TypeError,
            "preferred_element_type must be one of float16.*; got int32",
        ),
    ],
)
def test_errors(x, kwargs, error, message):
    with pytest.raises(error, match=message):
        bj.butterfly(x, FACTORS, **kwargs)


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        (FACTORS[0], ValueError, "must be a sequence of arrays.*got one array"),
        ([], ValueError, "factors must hold at least one factor"),
        (
            [np.ones((3, 4))],
            ValueError,
            r"factors\[0\] must have the shape \(a, b, c, d\).*got shape \(3, 4\)",
        ),
        (FACTORS[::-1], ValueError, "factor 0 .* takes .* features but factor 1"),
        (
            [np.ones((1, 2, 12, 1), np.int32)],
            TypeError,
            "dtype of x and factors must be one of .*; got int32",
        ),
    ],
)
def test_factor_errors(factors, error, message):
    with pytest.raises(error, match=message):
        bj.butterfly(np.ones((2, 12), np.int32), factors)


@pytest.mark.parametrize(
    ("dtype", "kwargs", "error", "message"),
    [
        (
            "float32",
            {"bias": np.ones(3)},
            ValueError,
            r"bias must have the shape .* = \(20,\), got \(3,\)",
        ),
        (
            "float32",
            {"bias": np.ones(20, np.int32)},
            TypeError,
            "dtype of bias must be one of .*; got int32",
        ),
        (
            "float32",
            {"bias": np.ones(20, np.complex64)},
            TypeError,
            "bias of dtype complex64 does not fit a result of dtype float32",
        ),
        (
            "float32",
            {"activation": "tanh"},
            ValueError,
            "activation must be one of None, relu, gelu, silu; got 'tanh'",
        ),
        (
            "complex64",
            {"activation": "relu"},
            TypeError,
            "activation='relu' is not defined for complex64",
        ),
    ],
)
def test_epilogue_errors(dtype, kwargs, error, message):
    with pytest.raises(error, match=message):
        bj.butterfly(np.ones((2, 12), dtype), FACTORS, **kwargs)


def test_bias_takes_no_part_in_the_promotion():
    x, factor = np.ones((1, 2), "bfloat16"), np.ones((1, 1, 2, 1), "bfloat16")
    bias = np.array([2.0**-10], "float32")
    assert bj.butterfly(x, [factor], bias=bias).dtype == "bfloat16"
    y = bj.butterfly(x, [factor], bias=bias, preferred_element_type="float32")
    assert y.dtype == "float32"
    assert y.item() == 2 + 2**-10


def test_default_differs_from_none_of_the_named_ones():
    x = reference.draw((3, 12))
    for axis, operand in [(-1, x), (0, x.T)]:
        y = bj.butterfly(operand, FACTORS, axis=axis)
        for name in ("bcsr", "bmm", "dense", "einsum", "elementwise"):
            other = bj.butterfly(operand, FACTORS, axis=axis, implementation=name)
            np.testing.assert_allclose(y, other, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["dense", "einsum", "bmm"])
def test_products_of_16_bit_operands_ask_for_float32_sums(name, dtype):
    # A CPU sums in float32 either way; not so every other device.
    factors = [factor.astype(dtype) for factor in FACTORS]
    jaxpr = jax.make_jaxpr(
        lambda x: bj.butterfly(x, factors, implementation=name),
    )(jnp.ones((2, 12), dtype))
    assert "preferred_element_type=float32" in str(jaxpr)
    assert f"preferred_element_type={dtype}" not in str(jaxpr)


@pytest.mark.parametrize("name", ["dense", "einsum", "bmm"])
def test_precision_reaches_every_product(name):
    jaxpr = jax.make_jaxpr(
        lambda x: bj.butterfly(x, FACTORS, implementation=name, precision="highest")
    )(jnp.ones((2, 12)))
    products = str(jaxpr).count("dot_general[")
    assert products == 2
    highest = "precision=(Precision.HIGHEST, Precision.HIGHEST)"
    assert str(jaxpr).count(highest) == products
