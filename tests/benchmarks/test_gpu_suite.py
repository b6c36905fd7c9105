"""The suite for GPUs, rehearsed on a CPU: the kernel runs in the interpreter."""

import json
import os
import pathlib
import subprocess
import sys

from benchmarks import gpu_suite, runs
from tests.benchmarks import rehearsal

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
FEW = ("--dtype=bfloat16", "--layout=feature_last", "--time_limit=0", "--factors=1")


def run(*arguments, module=rehearsal.__name__, broken=""):
    return subprocess.run(
        (sys.executable, "-W", "error", "-m", module, *arguments),
        cwd=ROOT,
        env={**ENVIRONMENT, "BROKEN": broken},
        capture_output=True,
        text=True,
        timeout=300,
    )


def rehearse(folder, *arguments, broken=""):
    return run("gpu_suite", *FEW, f"--output_dir={folder}", *arguments, broken=broken)


def read(folder, name):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_killed_then_stopped_then_done(tmp_path):
    killed = rehearse(tmp_path, broken="dead")
    assert killed.returncode == 9
    first = read(tmp_path, "attempts")[0]["task"]
    assert not (tmp_path / "checks.jsonl").exists()

    stopped = rehearse(tmp_path, "--part=correctness", "--minutes=0.0001")
    assert stopped.returncode == runs.UNFINISHED, stopped.stderr
    assert "tasks are left for the same command" in stopped.stdout

    done = rehearse(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    # What the first run did not come back from was checked last.
    checked = [row["task"] for row in read(tmp_path, "attempts") if row["is_over"]]
    checked = [task for task in checked if task.startswith("check ")]
    assert len(checked) > 5
    assert checked[-1] == first
    checks = read(tmp_path, "checks")
    assert {row["check"]["activation"] for row in checks} == {
        *(None, "relu", "gelu", "silu")
    }
    for row in checks:
        assert row["failed"] is row["unsupported"] is None
        assert 0 < row["error"] < 1e-2
    names = [row["name"] for row in read(tmp_path, "ceilings")]
    assert names == ["copy", "matmul"]
    rows = read(tmp_path, "gpu_suite")
    cases = [row["workload"]["case"] for row in rows]
    assert list(dict.fromkeys(cases)) == ["(2,16,16,1)", "(1,32,16,1)"]  # By weight.
    for case in set(cases):
        mine = [row for row in rows if row["workload"]["case"] == case]
        names = [row["implementation"] for row in mine if not row["configuration"]]
        assert names == ["dense layer", "dense", "einsum", "bmm", "pallas_chain"]
    tried = [row for row in rows if row["configuration"]]
    assert [row["configuration"]["rows"] for row in tried] == [16, 16]
    for row in rows:
        assert row["measured"]["error"] <= row["tolerance"]
        assert row["measured"]["num_samples"] >= 3
    whole = read(tmp_path, "networks")
    assert [row["implementation"] for row in whole] == ["dense layers", "einsum"]
    assert all(row["measured"]["error"] <= row["tolerance"] for row in whole)
    assert "one factor, memory-bound" in done.stdout
    assert "(2,16,16,1)/40/bfloat16" in done.stdout

    again = rehearse(tmp_path)
    assert again.returncode == 0
    assert read(tmp_path, "checks") == checks
    assert read(tmp_path, "gpu_suite") == rows
    assert len(read(tmp_path, "ceilings")) == 4  # Anew in each run.


def test_a_wrong_kernel_stops_it(tmp_path):
    done = rehearse(tmp_path, broken="wrong")
    assert done.returncode == 1
    assert "FAILED: chain (1,32,16,1)" in done.stdout
    assert "further from float64" in done.stdout
    forward = [
        row
        for row in read(tmp_path, "checks")
        if row["check"]["workload"]["direction"] == "forward"
    ]
    assert all(row["failed"] for row in forward)
    few = rehearse(tmp_path, "--check=*feature_last bias gelu", "--resume=false")
    assert few.returncode == 0, few.stdout
    assert "1 checks, 0 of them refused, 0 problems" in few.stdout
    assert not (tmp_path / "ceilings.jsonl").exists()
    assert not (tmp_path / "gpu_suite.jsonl").exists()


def test_without_a_gpu(tmp_path):
    done = run(f"--output_dir={tmp_path / 'made'}", module=gpu_suite.__name__)
    assert done.returncode == 1
    assert "error: gpu_suite needs an NVIDIA GPU, from Hopper on" in done.stdout
    assert not (tmp_path / "made").exists()


def test_flags_are_checked_first(tmp_path):
    done = rehearse(tmp_path, "--part=speed")
    assert done.returncode == 1
    assert "correctness" in done.stderr
    done = rehearse(tmp_path, "--check=no such")
    assert done.returncode == 1
    assert "no check is written so" in done.stdout


def test_help_tells_what_is_needed():
    shown = run("--help", module=gpu_suite.__name__).stdout
    for words in ("python -m benchmarks.gpu_suite --part=", "flax", "status 75"):
        assert words in shown
