import pathlib
import subprocess
import sys

import pytest

from benchmarks import attempts, jsonl, runs

ROOT = pathlib.Path(__file__).parents[2]


def task(name, run=lambda wanted: []):
    return runs.Task(name, ((name,),), run)


def guard(names, path, **kwargs):
    tasks = [task(name, **kwargs) for name in names]
    return attempts.guard(tasks, path, seconds=60.0)


def begin(path, name):
    jsonl.append(path, [attempts.Attempt(name, is_over=False)])


def test_what_was_not_come_back_from_is_last(tmp_path):
    path = tmp_path / "attempts.jsonl"
    assert [one.description for one in guard("abcd", path)] == list("abcd")
    begin(path, "b")
    begin(path, "a")
    begin(path, "b")
    again = guard("abcd", path)
    assert [one.description for one in again] == list("cdab")
    for one in again:
        assert one.run(()) == []
    assert [one.description for one in guard("abcd", path)] == list("abcd")


def test_an_error_is_an_end_as_long_as_the_device_works(tmp_path, monkeypatch):
    path = tmp_path / "attempts.jsonl"

    def fail(wanted):
        raise RuntimeError("out of memory")

    (one,) = guard("a", path, run=fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        one.run(())
    assert [row.is_over for row in jsonl.load(path, attempts.Attempt)] == [False, True]
    monkeypatch.setattr(attempts, "_device_works", lambda: False)
    with pytest.raises(SystemExit, match="a: the device no longer works after Runtime"):
        one.run(())
    (*_, last) = jsonl.load(path, attempts.Attempt)
    assert not last.is_over


HANGING = """
import pathlib, time
from benchmarks import attempts, runs
task = runs.Task("slow", (("slow",),), lambda wanted: time.sleep(60))
(guarded,) = attempts.guard([task], pathlib.Path("{path}"), seconds=0.3)
guarded.run(())
"""


def test_what_hangs_ends_the_process(tmp_path):
    path = tmp_path / "attempts.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", HANGING.format(path=path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert done.stderr == "error: slow: no end after 0.3 s; the process is ended\n"
    assert not jsonl.load(path, attempts.Attempt)[-1].is_over
