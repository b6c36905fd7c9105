"""Runs code that compiles for a GPU, where XLA's CUDA compiler is installed."""

import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import aot

ROOT = pathlib.Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(
    bool(aot.missing_wheels()),
    reason="XLA's CUDA compiler is not installed here; `make gpu-test` runs this",
)


def run(code, *arguments, timeout=240):
    """A process of its own that has run code, as JAX reads its settings once."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "false",
        },
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done
