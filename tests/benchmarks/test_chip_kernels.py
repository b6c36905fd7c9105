"""Kernels that keep one part of a chip busy do what they say, and lower for a GPU."""

import functools

import jax
import jax.export
import numpy as np
import pytest

from benchmarks import chip_kernels
from tests import gpu_interpreter, reference


@pytest.mark.parametrize("run", [16, 128])
def test_copy(run):
    x = reference.draw((24, 64 * run // 2), "bfloat16")
    copy = functools.partial(chip_kernels.copy_runs, run=run, times=1, ctas=2)
    np.testing.assert_array_equal(gpu_interpreter.run(copy, x), x)


def test_strided_loads():
    x = reference.draw((128, 16), "float32")
    load = functools.partial(chip_kernels.strided_loads, times=2, ctas=1)
    expected = 2 * np.asarray(x).reshape(128, 4, 4).sum(axis=1)
    np.testing.assert_allclose(gpu_interpreter.run(load, x), expected, atol=1e-5)


def test_meet():
    meet = functools.partial(chip_kernels.meet, times=3, ctas=1)
    np.testing.assert_array_equal(gpu_interpreter.run(meet), np.zeros((1, 128)))


def test_multiply():
    a, b = reference.draw((64, 16), "bfloat16"), reference.draw((16, 32), "bfloat16")
    multiply = functools.partial(chip_kernels.multiply, times=3, ctas=1)
    expected = 3 * np.asarray(a, float) @ np.asarray(b, float)
    found = gpu_interpreter.run(multiply, a, b)
    np.testing.assert_allclose(found[0], expected, rtol=1e-2, atol=1e-3)


def shape(*sizes, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    ("kernel", "call"),
    [
        *(
            (
                functools.partial(chip_kernels.copy_runs, run=run, times=4, ctas=132),
                [shape(2048, 4096)],
            )
            for run in (16, 32, 64, 128)
        ),
        (
            functools.partial(chip_kernels.strided_loads, times=4, ctas=264),
            [shape(264 * 128, 64, dtype="float32")],
        ),
        (functools.partial(chip_kernels.meet, times=9, ctas=132), []),
        (
            functools.partial(chip_kernels.multiply, times=9, ctas=132),
            [shape(64, 16), shape(16, 32)],
        ),
    ],
    ids=lambda value: value.func.__name__ if callable(value) else "",
)
def test_lowers_for_a_gpu(kernel, call):
    exported = jax.export.export(jax.jit(kernel), platforms=["cuda"])(*call)
    assert "mosaic_gpu" in exported.mlir_module()
