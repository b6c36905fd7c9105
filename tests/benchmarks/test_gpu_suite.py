"""The suite for GPUs, rehearsed on a CPU: the kernel runs in the interpreter."""

import json

from benchmarks import gpu_suite, runs
from tests import programs
from tests.benchmarks import rehearsal

FEW = (
    *("--dtype=bfloat16", "--dtype=float16", "--layout=feature_last"),
    *("--time_limit=0", "--processes=1"),
)


def rehearse(folder, *arguments, broken=""):
    return programs.run(
        *(rehearsal.__name__, "gpu_suite", *FEW, f"--output_dir={folder}"),
        *arguments,
        BROKEN=broken,
    )


def read(folder, name):
    lines = (folder / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_kernel_that_crashes_excludes_itself_alone(tmp_path):
    stopped = rehearse(tmp_path, "--minutes=0.0001")
    assert stopped.returncode == runs.UNFINISHED, stopped.stderr
    assert "tasks are left for the same command" in stopped.stdout

    done = rehearse(tmp_path, broken="dead")
    assert done.returncode == 1
    assert done.stderr == ""
    checks = read(tmp_path, "checks")
    assert len(checks) == 5
    assert all(row["kernels"] == ["factor"] for row in checks)
    for row in checks:
        work = row["check"]["workload"]
        if work["dtype"] == "bfloat16":
            assert 0 < row["error"] < row["tolerance"], row
        elif row["is_lost"]:
            assert row["failed"] == "the process died, exit status 9, running factor"
        else:
            assert "lost to factor float16 feature_last" in row["failed"]
    assert [row["is_lost"] for row in checks].count(True) == 1
    assert [row["name"] for row in read(tmp_path, "ceilings")] == [
        *("copy", "matmul", "matmul")
    ]
    rows = read(tmp_path, "gpu_suite")
    assert [(row["workload"]["dtype"], row["implementation"]) for row in rows] == [
        (dtype, name)
        for dtype in ("bfloat16", "float16")
        for name in ("dense layer", "bmm", "pallas")
    ]
    for row in rows[:-1]:
        assert row["measured"]["error"] <= row["tolerance"]
        assert row["measured"]["num_samples"] >= 3
    assert "lost to factor float16 feature_last" in rows[-1]["failed"]
    for words in (
        "factor, backward",
        "never run on a device",
        "(1,32,16,1) last",
        "the paper's patterns",
    ):
        assert words in done.stdout

    again = rehearse(tmp_path)  # Nothing is done twice, and nothing forgotten.
    assert again.returncode == 1
    assert read(tmp_path, "checks") == checks
    assert read(tmp_path, "gpu_suite") == rows
    assert len(list(tmp_path.iterdir())) <= 8


def test_without_a_gpu(tmp_path):
    done = programs.call(gpu_suite.__name__, f"--output_dir={tmp_path / 'made'}")
    assert done.returncode == 1
    assert "error: gpu_suite needs an NVIDIA GPU, from Hopper on" in done.stdout
    assert not (tmp_path / "made").exists()


def test_help_tells_what_is_needed():
    shown = programs.call(gpu_suite.__name__, "--help").stdout
    for words in ("python -m benchmarks.gpu_suite --minutes=9", "flax", "status is 75"):
        assert words in shown
