import json
import subprocess
import sys

import pytest

from benchmarks import aot, gpu_cases
from tests import programs
from tests.benchmarks.gpu_compiler import needs_compiler


def run(*arguments, code=None):
    """In a process of its own, as JAX reads its settings once."""
    if code is None:
        return programs.run("benchmarks.gpu_compile", *arguments)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=programs.ROOT,
        env=programs.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_the_compiler(tmp_path):
    code = (
        "from benchmarks import aot, gpu_compile, runs\n"
        "aot.WHEELS = ('no-such-wheel',)\n"
        "gpu_compile.define_flags()\n"
        "runs.start(gpu_compile.main)\n"
    )
    done = run(f"--output_dir={tmp_path}", code=code)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "no-such-wheel" in line
    assert "make gpu-compile" in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--case=no_such", "no case is named 'no_such'"),
        ("--implementation=no_such", "--implementation=no_such"),
        ("--compiler_option=xla_a", "must be NAME=VALUE"),
    ],
)
def test_wrong_flags(argument, words):
    done = programs.call("benchmarks.gpu_compile", argument)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_an_example():
    text = programs.call("benchmarks.gpu_compile", "--help").stdout
    assert 'make gpu-compile ARGS="--case=' in text
    assert gpu_cases.CASES[0].name in text


@needs_compiler
def test_compiles_for_real(tmp_path):
    options = ("--case=(1,48,48,1)", "--implementation=bmm", "--direction=forward")
    done = run(*options, f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "gpu_compile.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row["environment"]["device"] == aot.DEVICE
    assert "jax-cuda13-plugin" in row["environment"]["versions"]
    assert row["facts"]["memory"]["argument"] == 2 * (25088 * 48 + 48 * 48)
    assert row["facts"]["memory"]["output"] == 2 * 25088 * 48
    assert "(1,48,48,1)/25088/float16/feature_last/forward" in done.stdout


@needs_compiler
def test_machine_code_is_within_its_limits(tmp_path):
    (case, *_) = gpu_cases.CASES
    options = (f"--case={case.name}", "--implementation=pallas_chain")
    done = run(*options, "--direction=forward", f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    (line,) = (tmp_path / "gpu_compile.jsonl").read_text().splitlines()
    (kernel,) = json.loads(line)["facts"]["kernels"]
    assert kernel["operations"]["mma.sync"] >= kernel["loop"]["products"] > 0
    assert kernel["loop"]["copies"] > 0
    assert kernel["grid"]["ctas"] >= 100
