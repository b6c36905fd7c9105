import pytest

from butterjax.numerics import accumulation_dtype, tolerance


@pytest.mark.parametrize(
    ("dtype", "out_dtype", "expected"),
    [
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float32", "float64"),
        ("bfloat16", "float64", "float64"),
        ("complex64", "complex64", "complex64"),
        ("float32", "complex128", "complex128"),
    ],
)
def test_accumulation_dtype(dtype, out_dtype, expected):
    assert accumulation_dtype(dtype, out_dtype) == expected


def test_tolerance_grows_with_the_chain():
    assert tolerance("bfloat16", 12) == pytest.approx(12e-2)
    assert tolerance("float32", 2) == pytest.approx(2e-6)
    assert tolerance("float32", 2, tf32=True) == pytest.approx(2e-3)
    assert tolerance("float16", 2, tf32=True) == pytest.approx(4e-3)
