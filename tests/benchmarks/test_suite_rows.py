import dataclasses

import pytest

from benchmarks import kernel_checks, measure, suite_cases, suite_rows
from benchmarks.cases import parse_chain
from benchmarks.workers import Lost
from benchmarks.workloads import Workload
from tests.benchmarks.test_results import ENVIRONMENT

WORK = Workload(
    *("(1,4,4,2)", parse_chain("(1,4,4,2)"), 16),
    *("float32", "feature_last", "forward"),
)
TASK = suite_rows.Task(WORK, ENVIRONMENT, {}, (), None, 0, 0.0)
FORM = kernel_checks.Form(("radix",), "float32", "feature_last", "forward")


@pytest.fixture
def few(monkeypatch):
    """XLA's alone can run here; a kernel that is lost is not tried."""
    names = ["dense layer", "bmm", "pallas"]
    monkeypatch.setattr(suite_cases, "implementations", lambda workload: names)


def test_what_is_lost_is_not_tried(few):
    told = []
    task = dataclasses.replace(TASK, lost={"pallas": "it died"})
    rows = suite_rows.Measurer()(task, lambda doing, seconds: told.append(doing))
    assert [row.implementation for row in rows] == ["dense layer", "bmm", "pallas"]
    assert all(row.measured.error < row.tolerance for row in rows[:2])
    assert rows[2].failed == "it died"
    assert {row.key for row in rows} == set(task.keys)
    assert told[-3:] == ["dense layer", "bmm", suite_rows.TIMING]


def test_what_launches_a_lost_form_is_not_tried(few, monkeypatch):
    built = suite_rows._Kernels(measure.Built(None, 1.0), ("factor", "radix"))
    monkeypatch.setattr(suite_rows, "compiled", lambda work, lost: {"pallas": built})
    task = dataclasses.replace(TASK, excluded=(FORM,))
    *_, last = suite_rows.Measurer()(task, lambda doing, seconds: None)
    assert "a process was lost to radix float32 feature_last" in last.failed


def test_who_is_to_blame(few):
    again, rows = suite_rows.after(TASK, Lost("pallas", "it died"))
    assert (dict(again.lost), rows) == ({"pallas": "it died, pallas"}, [])
    again, rows = suite_rows.after(TASK, Lost("compiling kernels", "it died"))
    assert (list(again.lost), rows) == (["pallas"], [])
    last, rows = suite_rows.after(again, Lost(suite_rows.TIMING, "no end"))
    assert last is None
    assert [row.failed for row in rows] == [
        *["no end, timing"] * 2,
        "it died, compiling kernels",
    ]
    assert {row.key for row in rows} == set(TASK.keys)
