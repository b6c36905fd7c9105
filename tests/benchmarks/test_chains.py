import functools

import pytest

import butterjax as bj
from benchmarks import chains, results
from tests import programs

run = functools.partial(programs.call, chains.__name__)


def test_select():
    found = chains.select([1024, 64], ["monarch", "collapsed"])
    assert found == {
        "monarch:1024x1024": bj.Chain.monarch(1024, 1024),
        "square_dyadic:1024/3": bj.Chain.square_dyadic(1024).fuse((4, 3, 3)),
        "square_dyadic:1024/4": bj.Chain.square_dyadic(1024).fuse((3, 3, 2, 2)),
        "monarch:64x64": bj.Chain.monarch(64, 64),
        "square_dyadic:64/3": bj.Chain.square_dyadic(64).fuse((2, 2, 2)),
        "square_dyadic:64/4": bj.Chain.square_dyadic(64).fuse((2, 2, 1, 1)),
    }
    (largest,) = chains.select([16384], ["radix2"]).values()
    assert len(largest) == 14


def test_program(tmp_path):
    done = run(
        *(
            "--n=32",
            "--family=monarch",
            "--time_limit=0",
            "--batch=4",
            "--implementation=einsum",
        ),
        *("--direction=forward", f"--output_dir={tmp_path}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = results.load(tmp_path / "chains.jsonl")
    assert [row.workload.case for row in rows] == ["monarch:32x32"] * 2
    assert (tmp_path / "chains.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flag", ["--n=48", "--family=monarchs"])
def test_flags_are_checked_first(tmp_path, flag):
    done = run(flag, f"--output_dir={tmp_path / 'made'}")
    assert done.returncode == 1
    assert flag.split("=")[1] in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


def test_help_shows_an_example():
    assert "python -m benchmarks.chains --n=512" in run("--help").stdout
