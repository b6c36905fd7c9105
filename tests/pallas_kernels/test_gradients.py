"""The kernel for the gradients of one factor, in the interpreter, against float64."""

import jax
import numpy as np
import pytest

from butterjax.numerics import tolerance
from pallas_kernels.gradients import Config, default_config, gradients
from tests import gpu_interpreter, reference
from tests.alignment import check_alignment

SMALL = Config(stages=2, out_stages=1, ctas=2)


def check(shape, axis, batch, dtype="bfloat16", config=SMALL):
    a, b, c, d = shape
    x = reference.draw((batch, a * c * d), dtype, seed=1)
    dy = reference.draw((batch, a * b * d), dtype, seed=2)
    w = reference.draw(shape, dtype, seed=3)
    turn = np.asarray if axis == -1 else np.transpose
    dx, dw = gpu_interpreter.run(
        lambda x, w, dy: gradients(x, w, dy, axis=axis, config=config),
        *(turn(x), w, turn(dy)),
    )
    expected_dx, (expected_dw,) = reference.gradients(x, (w,), dy)
    assert (dx.dtype, dw.dtype) == (dtype, "float32")
    bound = tolerance(dtype, 1)
    assert reference.relative_error(turn(dx), expected_dx) < bound
    assert reference.relative_error(dw, expected_dw) < bound


@pytest.mark.parametrize(
    ("shape", "axis", "batch"),
    [
        # A block alone, two, or four in a unit; more steps than stages + 2.
        ((1, 64, 64, 1), -1, 328),
        ((2, 32, 32, 1), -1, 72),
        ((4, 16, 16, 1), 0, 72),
        # b ≠ c, two panels of one or of both, and neighbours along d.
        ((2, 32, 64, 1), -1, 72),
        ((1, 128, 64, 1), 0, 136),
        ((1, 64, 128, 3), 0, 72),
        ((2, 32, 32, 4), 0, 72),
        ((1, 128, 128, 1), -1, 72),
    ],
)
def test_gradients(shape, axis, batch):
    check(shape, axis, batch)


def test_float16_in_more_slots():
    check((2, 32, 32, 1), -1, 200, "float16", Config(stages=3, out_stages=2, ctas=1))


@pytest.mark.parametrize(
    ("shape", "dtype", "axis", "reason"),
    [
        ((1, 64, 64, 2), "bfloat16", -1, "blocks of d = 1 alone"),
        ((1, 48, 48, 1), "bfloat16", -1, "must be 64 or 128"),
        ((1, 32, 32, 1), "bfloat16", -1, "must be 64 or 128"),
        ((1, 256, 64, 1), "bfloat16", -1, "must be 64 or 128"),
        ((1, 64, 64, 1), "float32", -1, "bfloat16, float16"),
    ],
)
def test_what_is_refused(shape, dtype, axis, reason):
    with pytest.raises(NotImplementedError, match=reason):
        default_config(shape, dtype, 512, axis=axis)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 32, 32, 1), -1), ((1, 64, 64, 1), -1), ((1, 32, 32, 8), 0)],
)
def test_accesses_are_aligned(shape, axis):
    a, b, c, d = shape
    sizes = [(25_088, a * c * d), (25_088, a * b * d)]
    x, dy = (
        jax.ShapeDtypeStruct(one if axis == -1 else one[::-1], "bfloat16")
        for one in sizes
    )
    w = jax.ShapeDtypeStruct(shape, "bfloat16")
    check_alignment(lambda x, w, dy: gradients(x, w, dy, axis=axis), x, w, dy)


def test_a_gradient_of_another_shape():
    x, w = jax.ShapeDtypeStruct((8, 64), "bfloat16"), (1, 64, 64, 1)
    dy = jax.ShapeDtypeStruct((8, 32), "bfloat16")
    with pytest.raises(ValueError, match=r"dy must be bfloat16\[8, 64\]"):
        jax.eval_shape(gradients, x, jax.ShapeDtypeStruct(w, "bfloat16"), dy)
