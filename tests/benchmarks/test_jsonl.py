import dataclasses
import json
import multiprocessing
import os
import pathlib
import signal
import time
from typing import Annotated, Literal

import pytest
from absl import logging

import butterjax as bj
from benchmarks import jsonl


@dataclasses.dataclass(frozen=True)
class Inner:
    times: tuple[float, float]
    label: Literal["a", "b"]


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    chain: bj.Chain
    inner: Inner | None
    sizes: dict[str, Annotated[int, "B"]]
    options: dict[str, str | bool]
    counts: tuple[int, ...]
    is_good: bool


CHAIN = bj.Chain.monarch(16, 36)
ROW = Outer("one", CHAIN, Inner((1.0, 2.5), "b"), {"x": 3}, {"o": True}, (1, 2), True)


@pytest.fixture
def warnings_of(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: lines.append(text % a))
    return lines


def test_round_trip(tmp_path):
    path = tmp_path / "rows.jsonl"
    other = dataclasses.replace(ROW, inner=None, counts=(), options={"o": "text"})
    jsonl.append(path, [ROW])
    jsonl.append(path, [other, ROW])
    assert jsonl.load(path, Outer) == [ROW, other, ROW]
    first = json.loads(path.read_text().splitlines()[0])
    assert first["chain"] == [list(shape) for shape in CHAIN.shapes]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, r"row\.name: 3 is no str"),
        ({"is_good": 1}, r"row\.is_good: 1 is no bool"),
        ({"counts": [1, 2.0]}, r"row\.counts\[1\]: 2.0 is no int"),
        ({"counts": [True]}, r"row\.counts\[0\]: True is no int"),
        ({"sizes": {"x": "y"}}, r"row\.sizes\['x'\]: 'y' is no int"),
        ({"inner": {"times": [1], "label": "a"}}, r"row\.inner\.times: 1 items"),
        ({"inner": {"times": [1, 2], "label": "c"}}, r"row\.inner\.label: 'c'"),
        ({"inner": {"times": [1, 2]}}, r"row\.inner\.label: is missing"),
        ({"chain": [[1, 2, 3]]}, r"row\.chain\[0\]: 3 items"),
        ({"chain": [[1, 2, 3, 0]]}, r"row\.chain: .*at least 1"),
        ({"surplus": 1}, r"row\.surplus: is no field of Outer"),
        ({"options": {"o": 1.5}}, r"row\.options\['o'\]"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    jsonl.append(path, [ROW])
    wrong = json.loads(path.read_text()) | change
    path.write_text(path.read_text() + json.dumps(wrong) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 2: .*{message}"):
        jsonl.load(path, Outer)


def test_a_line_in_the_middle_that_is_no_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": \n{}\n')
    with pytest.raises(ValueError, match="line 1"):
        jsonl.load(path, Outer)


def test_a_wrong_row_is_not_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    wrong = dataclasses.replace(ROW, inner=Inner((1.0, float("nan")), "b"))
    with pytest.raises(ValueError, match="JSON"):
        jsonl.append(path, [ROW, wrong])
    with pytest.raises(ValueError, match=r"row\.name"):
        jsonl.append(path, [ROW, dataclasses.replace(ROW, name=None)])
    assert not path.exists()


def test_a_write_that_was_cut_off_at_any_byte(tmp_path, warnings_of):
    path = tmp_path / "rows.jsonl"
    jsonl.append(path, [ROW, ROW])
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        is_whole = end >= len(whole) - 1
        is_torn = start < end and not is_whole
        warnings_of.clear()
        assert jsonl.load(path, Outer) == [ROW] * (1 + is_whole)
        assert len(warnings_of) == is_torn
        jsonl.append(path, [ROW])
        assert len(warnings_of) == 2 * is_torn
        assert jsonl.load(path, Outer) == [ROW] * (2 + is_whole)


def append_many(path: pathlib.Path, name: str, times: int) -> None:
    row = dataclasses.replace(ROW, name=name, counts=tuple(range(3000)))
    for _ in range(times):
        jsonl.append(path, [row, row])


def start(path, name, times):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=append_many, args=(path, name, times))
    process.start()
    return process


def test_two_processes_may_append(tmp_path):
    path = tmp_path / "rows.jsonl"
    processes = [start(path, name, 50) for name in "ab"]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    names = [row.name for row in jsonl.load(path, Outer)]
    assert sorted(names) == ["a"] * 100 + ["b"] * 100


def test_a_killed_writer_leaves_whole_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    num_rows = 0
    for kill_after in (0.003, 0.011):
        process = start(path, "killed", 10**6)
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < num_rows * 9000 + 10**5:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(kill_after)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        jsonl.append(path, [ROW])
        rows = jsonl.load(path, Outer)
        assert rows[-1] == ROW
        assert len(rows) > num_rows
        num_rows = len(rows)
