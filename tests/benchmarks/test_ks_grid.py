import signal
import subprocess
import time

import pytest

from benchmarks import ks_grid, patterns, results
from tests import programs

NAME = ks_grid.__name__
SMALL = (
    *(
        "--patterns=(*,48,48,1)",
        "--patterns=(4,48,48,4)",
        "--batch=4",
        "--time_limit=0",
    ),
    *("--implementation=bmm", "--implementation=einsum"),
)


def test_select():
    for name, subset in patterns.SUBSETS.items():
        chains = ks_grid.select(name, ["*"])
        assert [chain.shapes for chain in chains.values()] == [
            (pattern.shape,) for pattern in subset()
        ]
    chains = ks_grid.select("tuned", ["(1, *, *, 4)", "(128,48,48,1)"])
    assert chains["(128,48,48,1)"].shapes == ((128, 48, 48, 1),)
    assert len(chains) == 1 + 22
    assert ks_grid.select("quick", ["(1,48,48"]) == {}


def test_killed_at_any_point_it_goes_on(tmp_path):
    path = tmp_path / "ks_grid.jsonl"
    num_killed, before = 0, b""
    for num_rows in (1, 19):
        process = subprocess.Popen(
            programs.command(NAME, *SMALL, f"--output_dir={tmp_path}"),
            cwd=programs.ROOT,
            env=programs.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None:
            assert time.monotonic() < deadline
            if path.exists() and path.read_bytes().count(b"\n") >= num_rows:
                process.kill()
                num_killed += 1
                break
            time.sleep(0.001)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
        # What was written before stays as it is.
        assert path.read_bytes().startswith(before)
        before = path.read_bytes()[: path.read_bytes().rindex(b"\n") + 1]
    done = programs.call(NAME, *SMALL, f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows are in" in done.stdout
    assert path.read_bytes().startswith(before)
    rows = results.load(path)
    assert num_killed == 2
    # Three patterns, two layouts, two directions; the dense layer and two more.
    assert len(rows) == len({row.key for row in rows}) == 3 * 2 * 2 * 3
    assert not any(row.is_wrong for row in rows)
    assert len({row.environment.run for row in rows}) == 3


def test_large_workloads_are_left_out(tmp_path):
    # With batch 4, x and y of (1,48,48,4) take 4·4·(192 + 192) bytes, its factor
    # 4·48·48·4, its dense matrix 4·192·192; those of (4,48,48,4) four times as much.
    options = (*SMALL, "--patterns=(1,48,48,4)", "--direction=forward")
    done = programs.call(
        NAME, *options, "--max_bytes=43008", f"--output_dir={tmp_path}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 8 workloads are left out" in done.stdout
    rows = results.load(tmp_path / "ks_grid.jsonl")
    found = [(row.workload.case, row.implementation) for row in rows]
    small = [("(1,48,48,1)", name) for name in ("dense layer", "bmm", "einsum")]
    large = [("(1,48,48,4)", name) for name in ("bmm", "einsum")]
    assert sorted(found) == sorted(2 * (small + large))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--patterns=(5,48,48,1)", "no pattern of --subset=quick is written so"),
        ("--max_bytes=0", "max_bytes"),
    ],
)
def test_flags_are_checked_first(tmp_path, flag, message):
    done = programs.call(NAME, flag, f"--output_dir={tmp_path / 'made'}")
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


def test_help_shows_an_example():
    shown = programs.call(NAME, "--help").stdout
    assert 'python -m benchmarks.ks_grid --patterns="(1,*,*,4)"' in shown
    assert "tuned (904)" in shown
