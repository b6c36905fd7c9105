import json
import re
import signal
import subprocess
import sys
import time

import pytest

import butterjax as bj
from benchmarks import compare
from tests import programs

NAME = compare.__name__


def read(folder):
    lines = (folder / "compare.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def refusal(row):
    """Part of why an implementation must refuse on a CPU, None if it must not."""
    if row["implementation"] == "elementwise" and row["workload"]["chain"] == [
        [1, 4, 80, 1]
    ]:
        return "at most 64"
    return "" if row["implementation"].startswith("pallas") else None


def test_compares_every_implementation(tmp_path):
    tiny = ("--chain=square_dyadic:8", "--chain=(1,4,80,1)", "--batch=4")
    options = ("--time_limit=0.01", "--layout=feature_first")
    done = programs.run(NAME, *tiny, *options, f"--output_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = read(tmp_path)
    names = {"dense layer", *bj.implementations.names()}
    assert len(rows) == 2 * 2 * len(names)
    assert {row["implementation"] for row in rows} == names
    for row in rows:
        assert row["workload"]["layout"] == "feature_first"
        if (reason := refusal(row)) is not None:
            assert reason in row["unsupported"]
            assert row["measured"] is None
            continue
        assert row["unsupported"] is None
        low, middle, high = row["measured"]["seconds"]
        assert 0 < low <= middle <= high
        assert row["measured"]["num_samples"] >= 5
        assert row["measured"]["clock"] == "wall"
        assert row["measured"]["peak_bytes"] >= row["floor_bytes"]
        assert row["measured"]["joules"] is None
        assert row["measured"]["error"] <= row["tolerance"]
        if row["implementation"] == "dense layer":
            assert row["measured"]["ratio_to_dense_layer"] == [1, 1, 1]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "square_dyadic:8, feature_first, forward+backward" in done.stdout
    assert "elementwise *" in done.stdout
    assert str(tmp_path / "compare.png") in done.stdout.replace("\n", "")
    assert "÷ best" in done.stdout
    shown = " ".join(done.stdout.split())
    assert "pallas is unsupported in 4 of 4 workloads: " in shown
    assert "lowered for cpu" in shown


def test_a_second_run_goes_on(tmp_path):
    once = (
        "--chain=monarch:16x16",
        "--implementation=einsum",
        "--direction=forward",
        "--time_limit=0",
        "--dtype=bfloat16",
        f"--output_dir={tmp_path}",
    )
    assert programs.call(NAME, *once).returncode == 0
    first = read(tmp_path)
    # An implementation is added to the workload; its dense layer is only compared with.
    again = programs.call(NAME, *once, "--implementation=bmm")
    assert again.returncode == 0
    assert "2 rows are in" in again.stdout
    assert "einsum" in again.stdout
    assert read(tmp_path)[:2] == first
    assert [row["implementation"] for row in read(tmp_path)[2:]] == ["bmm"]
    assert read(tmp_path)[2]["measured"]["ratio_to_dense_layer"] is not None


def test_interrupt_leaves_valid_files(tmp_path):
    # Shells have what runs in the background ignore interrupts, and all that it starts.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        programs.command(
            NAME, "--time_limit=1", "--batch=16", f"--output_dir={tmp_path}"
        ),
        cwd=programs.ROOT,
        env=programs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, handler)
    deadline = time.monotonic() + 120
    while not (tmp_path / "compare.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)  # The first rows are written, the next are being measured.
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    rows = read(tmp_path)
    assert 0 < len(rows) < 20 * 6
    assert (tmp_path / "compare.png").read_bytes().endswith(b"IEND\xaeB`\x82")
    assert f"interrupted after {len(rows)} measurements" in output


WRONG = """
import sys
import butterjax as bj

@bj.implementations.register("wrong")
def wrong(x, factors, *, axis, precision, preferred_element_type):
    y = bj.butterfly(x, factors, axis=axis, implementation="bmm")
    return y.at[0, 0].add(1)

from benchmarks import compare, runs
compare.define_flags()
runs.start(compare.main)
"""


def test_new_implementations_are_in_the_results(tmp_path):
    text = (programs.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = subprocess.run(
        (
            *(sys.executable, "-c", example + WRONG, "--time_limit=0"),
            *("--implementation=vmap", "--implementation=wrong", "--direction=forward"),
            *("--chain=(2,3,4,5)(1,8,6,5)", "--batch=7", f"--output_dir={tmp_path}"),
            *("--layout=feature_last", "--layout=feature_first"),
        ),
        cwd=programs.ROOT,
        env=programs.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    # The one of the documents is right in both layouts, the other one is not.
    rows = read(tmp_path)
    good = [row for row in rows if row["implementation"] == "vmap"]
    assert len(good) == 2
    assert all(row["measured"]["error"] <= row["tolerance"] for row in good)
    assert done.returncode == 1
    failures = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert len(failures) == 2
    assert failures[0].startswith("FAILED: wrong, (2,3,4,5)(1,8,6,5)")
    assert "WRONG" in failures[0]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--chain=monarch:7x9", "in_features=7"),
        ("--chain=foo", "'foo' is no chain"),
        ("--batch=0", "batch"),
        ("--implementation=eimsum", "einsum"),
        ("surplus", "surplus"),
    ],
)
def test_flags_are_checked_first(tmp_path, flag, message):
    done = programs.call(NAME, flag, f"--output_dir={tmp_path / 'made'}")
    assert done.returncode == 1
    assert message in done.stdout + done.stderr
    assert not (tmp_path / "made").exists()


def test_output_dir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = programs.call(NAME, f"--output_dir={tmp_path / 'file'}")
    assert done.returncode == 1
    assert "error: --output_dir=" in done.stdout


def test_help_shows_examples_and_forms():
    shown = programs.call(NAME, "--help").stdout
    for words in ("--chain=monarch:768x3072", "square_dyadic:N", "--output_dir"):
        assert words in shown
    # Flags that another module defines for the program, and all programs have.
    for flag in ("--chain: ", "--batch: ", "--time_limit: ", "--[no]resume: "):
        assert f"  {flag}" in shown
