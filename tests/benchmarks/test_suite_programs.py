import pytest

from benchmarks import aot, gpu_programs, suite_programs
from tests.benchmarks.test_gpu_programs import ENVIRONMENT, make_facts, make_row


@pytest.fixture
def few(monkeypatch):
    """The suite's programs, cut down to the checks of one chain and some chains."""
    monkeypatch.setattr(suite_programs.suite_cases, "PARTS", ("chains",))


def test_programs_are_those_of_the_suite(few):
    found = list(suite_programs.programs(["*/1000/", "monarch:1024"]))
    names = [(workload.name, name) for workload, name, _ in found]
    assert len(set(names)) == len(names)
    checks = [name for _, name in names if " " in name]
    assert any("gelu" in name for name in checks)
    mine = [name for work, name in names if work.startswith("monarch:1024x1024/25088")]
    assert {"pallas_chain", "pallas"} == set(mine)


def test_cases_choose(few, monkeypatch):
    case = "monarch:2048x2048/25088/bfloat16/feature_first"
    tasks = suite_programs.tasks([case], ENVIRONMENT, {})
    assert len(tasks) == 2
    assert all(task.description.startswith(case) for task in tasks)

    def fail(function, arguments, *, options):
        raise aot.CompilationError("crash")

    monkeypatch.setattr(aot, "compile_for_gpu", fail)
    (row,) = tasks[0].run(tasks[0].keys)
    assert row.key == tasks[0].keys[0]
    assert row.problems == ("it does not compile: crash",)


def test_judge():
    assert suite_programs.judge(make_facts(3), None, None) == ()
    assert suite_programs.judge(None, "too wide", None) == ()
    (problem,) = suite_programs.judge(make_facts(1, 0, ()), None, None)
    assert "no Mosaic GPU kernel" in problem


def test_summary():
    rows = [make_row(), make_row(facts=None, unsupported="too wide")]
    assert suite_programs.summary(rows) == (
        "2 programs, 1 of them refused; a kernel takes at most 40 registers and "
        "131,072 bytes of shared memory"
    )
    assert gpu_programs.Row is type(rows[0])
