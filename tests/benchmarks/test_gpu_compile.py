import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from rich.console import Console

import butterjax as bj
from benchmarks import aot, gpu_compile, hlo, ptx, results, workloads

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = results.Environment("2026-01-01T00:00:00+00:00", "a device", {}, None)

KERNEL = ptx.Kernel(
    name="body_0",
    registers=40,
    stack_bytes=0,
    spill_store_bytes=0,
    spill_load_bytes=0,
    shared_bytes=131072,
    operations={"mma.sync": 8},
    accesses={"shared load, 16 bytes": 3},
    warnings=(),
)


def make_facts(launches=1, moved_bytes=0, kernels=(KERNEL,)):
    launch = hlo.Launch("kernel.1", "mosaic_gpu_v2", launches, moved_bytes)
    memory = aot.Memory(argument=8, output=8, temporary=2_500_000, peak=7_500_000)
    return aot.Facts((launch,), memory, kernels)


def make_row(**changes):
    row = gpu_compile.Row(
        environment=ENVIRONMENT,
        case="monarch:16x16/8/float32/feature_last",
        chain=((1, 4, 4, 4), (4, 4, 4, 1)),
        batch=8,
        dtype="float32",
        layout="feature_last",
        direction="forward",
        implementation="pallas",
        compiler_options={},
        facts=make_facts(),
        unsupported=None,
        error=None,
        problems=(),
    )
    return dataclasses.replace(row, **changes)


def test_cases():
    names = [case.name for case in gpu_compile.CASES]
    assert len(set(names)) == len(names)
    for case in gpu_compile.CASES:
        workload = case.workload("forward")
        assert workload.layout in workloads.LAYOUTS
        assert len(workload.chain) >= 1
    sizes = {
        (workload.chain.in_features, workload.chain.out_features)
        for workload in (case.workload("forward") for case in gpu_compile.CASES)
    }
    assert sizes >= {(n, n) for n in (512, 768, 1024, 2048, 4096)}
    assert sizes >= {(768, 3072), (3072, 768)}


def test_select():
    every = list(gpu_compile.CASES)
    assert gpu_compile.select(["*"]) == every
    assert gpu_compile.select(["no such case"]) == []
    chosen = gpu_compile.select(["monarch:1024", "*/float16/*"])
    assert chosen == [
        case
        for case in every
        if case.chain.startswith("monarch:1024") or case.dtype == "float16"
    ]
    assert 0 < len(chosen) < len(every)


def test_parse_options():
    options = ["xla_a=false", "xla_b=True", "xla_c=x=1"]
    expected = {"xla_a": False, "xla_b": True, "xla_c": "x=1"}
    assert gpu_compile.parse_options(options) == expected


CASE = gpu_compile.Case("monarch:16x16", kernels=("pallas",), too_much_for=("bcsr",))


@pytest.mark.parametrize(
    ("implementation", "direction", "outcome", "problems"),
    [
        ("bmm", "forward", {"facts": make_facts(9, 99, ())}, []),
        ("bmm", "forward", {"unsupported": "too wide"}, []),
        ("bmm", "forward", {"error": "crash"}, ["it does not compile: crash"]),
        ("bcsr", "forward", {"error": "crash"}, []),
        # Two factors: two launches of one kernel, or one of the other.
        ("pallas", "forward", {"facts": make_facts(2)}, []),
        ("pallas", "forward", {"facts": make_facts(3)}, ["3 launches, more than 2"]),
        ("pallas", "forward", {"unsupported": "too wide"}, ["it refuses: too wide"]),
        ("pallas_chain", "forward", {"facts": make_facts(1)}, []),
        ("pallas_chain", "forward", {"facts": make_facts(2)}, ["2 launches, more"]),
        ("pallas_chain", "forward+backward", {"facts": make_facts(5)}, []),
        ("pallas_chain", "forward", {"facts": make_facts(1, 4)}, ["only transposes"]),
        ("pallas_chain", "forward", {"facts": make_facts(1, 0, ())}, ["no Mosaic GPU"]),
        ("pallas_chain", "forward", {"unsupported": "too wide"}, []),
    ],
)
def test_judge(implementation, direction, outcome, problems):
    outcome = {"facts": None, "unsupported": None, "error": None} | outcome
    found = gpu_compile.judge(CASE, direction, implementation, **outcome)
    assert len(found) == len(problems)
    for problem, words in zip(found, problems, strict=True):
        assert words in problem


def test_a_refusal_is_a_row(monkeypatch):
    def refuse(function, arguments, *, options):
        assert options == {"xla_a": True}
        assert jax.tree.map(lambda a: a.shape, arguments) == (
            (4096, 16),
            ((1, 4, 4, 4), (4, 4, 4, 1)),
        )
        raise NotImplementedError("not this")

    monkeypatch.setattr(aot, "compile_for_gpu", refuse)
    row = gpu_compile.compile_one(
        CASE, "forward", "bmm", environment=ENVIRONMENT, options={"xla_a": True}
    )
    assert row.unsupported == "not this"
    assert row.facts is row.error is None
    assert row.problems == ()


def test_a_failure_is_a_row(monkeypatch):
    def fail(function, arguments, *, options):
        raise aot.CompilationError("crash")

    monkeypatch.setattr(aot, "compile_for_gpu", fail)
    row = gpu_compile.compile_one(
        CASE, "forward", "bmm", environment=ENVIRONMENT, options={}
    )
    assert row.error == "crash"
    assert row.problems == ("it does not compile: crash",)


def shown(*what):
    text = io.StringIO()
    Console(width=80, file=text).print(*what)
    return text.getvalue()


def test_tables():
    rows = [
        make_row(implementation="dense layer", facts=make_facts(3, 2_000_000, ())),
        make_row(),
        make_row(implementation="elementwise", facts=None, unsupported="too wide"),
        make_row(implementation="bcsr", facts=None, error="crash"),
        make_row(direction="forward+backward"),
    ]
    text = shown(*gpu_compile.tables(rows))
    assert "…" not in text
    assert text.count(rows[0].case) == 2
    cells = [line.split() for line in text.splitlines()]
    assert ["dense", "layer", "3", "6.0", "2.5", "7.5"] in cells
    assert cells.count(["pallas", "1", "0.0", "2.5", "7.5", "40", "0", "128"]) == 2
    assert ["elementwise:", "refused"] in cells
    assert ["bcsr:", "failed"] in cells
    text = shown(gpu_compile.instructions(rows))
    assert text.count("8 × mma.sync") == text.count("3 × shared load, 16 bytes") == 2


def test_rows_are_kept(tmp_path):
    results.append(tmp_path / "rows.jsonl", [make_row()])
    results.append(tmp_path / "rows.jsonl", [make_row(facts=None, error="crash")])
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first["facts"]["kernels"][0]["registers"] == 40
    assert first["facts"]["launches"][0]["times"] == 1
    assert second["error"] == "crash"


@pytest.mark.parametrize("layout", workloads.LAYOUTS)
@pytest.mark.parametrize("direction", workloads.DIRECTIONS)
@pytest.mark.parametrize("name", [workloads.DENSE_LAYER, "bmm"])
def test_abstract_call_has_the_shapes_of_a_call(layout, direction, name):
    chain = bj.Chain.monarch(16, 36)
    workload = workloads.Workload("16x36", chain, 5, "float16", layout, direction)
    inputs = workloads.draw(workload, seed=0)
    function, arguments = workloads.call(workload, name, inputs, workload.dtype)
    abstract_function, abstract = workloads.abstract_call(workload, name)

    def kinds(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert kinds(abstract) == kinds(arguments)
    outcome = jax.eval_shape(abstract_function, *abstract)
    assert kinds(outcome) == kinds(function(*arguments))


def test_shapes_take_no_memory():
    huge = bj.Chain([(1, 2**16, 2**16, 1)])
    workload = workloads.Workload("", huge, 2**40, "float16", "feature_last", "forward")
    inputs = workloads.shapes(workload)
    assert inputs.x.shape == (2**40, 2**16)
    for array in (inputs.x, inputs.dy, inputs.kernel, *inputs.factors):
        assert not np.any(array.strides)


def run(*arguments, code=None):
    how = ["-c", code] if code else ["-m", "benchmarks.gpu_compile"]
    return subprocess.run(
        [sys.executable, "-W", "error", *how, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_the_compiler(tmp_path):
    code = (
        "from absl import app\n"
        "from benchmarks import aot, gpu_compile\n"
        "aot.WHEELS = ('no-such-wheel',)\n"
        "app.run(gpu_compile.main)\n"
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
    done = run(argument)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_an_example():
    text = run("--help").stdout
    assert 'make gpu-compile ARGS="--case=' in text
    assert gpu_compile.CASES[0].name in text


def test_chip_is_the_one_that_is_named():
    assert f'device_description_str: "{aot.DEVICE}"' in aot.CHIP.read_text()


@pytest.mark.skipif(
    bool(aot.missing_wheels()),
    reason="XLA's CUDA compiler is not installed here; `make gpu-test` runs this",
)
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
    assert "(1,48,48,1)/25088/float16/feature_last, forward" in done.stdout
