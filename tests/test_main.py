"""`python -m butterjax`, which a wheel has all of."""

import pathlib
import subprocess
import sys

import butterjax as bj
from butterjax import __main__ as program


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "butterjax", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=pathlib.Path(bj.__file__).parents[1],
    )


def test_says_what_is_possible_and_that_it_is_not_measured():
    done = run("--in=1024", "--out=4096", "--dtype=bf16", "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert f"bmm  {bj.Chain.monarch(1024, 4096)}" in done.stdout
    assert "not predictions" in done.stdout
    assert not done.stderr
    assert "in a checkout of the project" in done.stdout


def test_description():
    found = bj.planning.recommend(4096, 4096, batch=1024, dtype="float32", device="cpu")
    lines = program.describe(found).splitlines()
    assert len(lines) == len(found.options) + 3
    (dense,) = [line for line in lines if "dense layer" in line and " MiB" in line]
    # 2·1024·4096² FLOPs at 1e11 a second, and 4·4096² bytes.
    assert dense.startswith("at least")
    assert "344 ms" in dense
    assert "64 MiB" in dense
    assert repr(found.best.chain) in lines[-3]
    assert lines[-2] == found.source


def test_a_layer_that_stays_dense():
    found = bj.planning.recommend(7, 7, batch=8, dtype="float32", device="cpu")
    assert "Stay with a dense layer." in program.describe(found)


def test_errors():
    done = run("--in=64", "--out=64", "--device=Abacus")
    assert done.returncode == 1
    assert "error: rates_of: no rates are known for device='Abacus'" in done.stdout
