import io
import re
import types

import pytest
from absl import flags
from rich.console import Console

from benchmarks import results, runs
from tests.benchmarks.test_results import row


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs tasks with flags; gives the outcome and what was printed."""

    def carry_out(tasks, *, output_dir=tmp_path, resume=True, minutes=None):
        values = types.SimpleNamespace(
            output_dir=str(output_dir), resume=resume, minutes=minutes
        )
        monkeypatch.setattr(flags, "FLAGS", values)
        console = Console(file=io.StringIO(), width=200)
        outcome = runs.carry_out(tasks, results.Row, "rows", console)
        status = None
        if outcome is not None:
            status = runs.finish(outcome, [], console)
        return outcome, status, console.file.getvalue()

    return carry_out


class Tasks:
    """A task for each group of names, which logs what it is asked for."""

    def __init__(self, *groups, before=lambda group: None):
        self.log = []
        self.before = before
        self.tasks = [self.task(group) for group in groups]

    def task(self, group):
        def measure(wanted):
            self.before(group)
            names = "".join(name for name in group if row(name).key in wanted)
            self.log.append(names)
            return [row(name) for name in names]

        return runs.Task(group, tuple(row(name).key for name in group), measure)


def names(outcome):
    return "".join(row.implementation for row in outcome.rows)


def test_rows_are_written_as_they_come(run, tmp_path):
    def look(group):
        path = tmp_path / "rows.jsonl"
        so_far = len(results.load(path)) if path.exists() else 0
        assert so_far == {"ab": 0, "c": 2}[group]

    tasks = Tasks("ab", "c", before=look)
    outcome, status, text = run(tasks.tasks)
    assert (names(outcome), outcome.num_new, outcome.num_left, status) == (
        *("abc", 3, 0),
        0,
    )
    assert results.load(outcome.path) == list(outcome.rows)
    assert "already" not in text


def test_rows_that_are_there_are_not_measured_again(run):
    run(Tasks("ab").tasks)
    tasks = Tasks("c", "abd", "b")
    outcome, _, text = run(tasks.tasks)
    assert tasks.log == ["c", "d"]
    assert names(outcome) == "cabdb"
    assert outcome.num_new == 2
    assert "3 rows are in" in text
    anew = Tasks("ab")
    outcome, _, _ = run(anew.tasks, resume=False)
    assert anew.log == ["ab"]
    assert len(results.load(outcome.path)) == 6


def test_a_task_that_fails_does_not_stop_the_others(run, capsys):
    def fail(group):
        if group == "b":
            raise RuntimeError("out of [memory]")

    tasks = Tasks("a", "b", "c", before=fail)
    outcome, status, text = run(tasks.tasks)
    assert names(outcome) == "ac"
    assert status == 1
    assert "FAILED: b: RuntimeError: out of [memory]" in text
    assert "Traceback" in capsys.readouterr().err
    again = Tasks("a", "b", "c")
    assert run(again.tasks)[1] == 0
    assert again.log == ["b"]


def test_interrupt_keeps_what_is_done(run):
    def interrupt(group):
        if group == "c":
            raise KeyboardInterrupt

    tasks = Tasks("ab", "c", "d", before=interrupt)
    outcome, status, text = run(tasks.tasks)
    assert (names(outcome), outcome.num_left, status) == ("ab", 2, 130)
    assert "interrupted after 2 measurements" in text


def test_time_that_is_up(run):
    outcome, status, text = run(Tasks("a", "b").tasks, minutes=0.0)
    assert (names(outcome), outcome.num_left, status) == ("", 2, 75)
    assert "2 tasks are left" in text
    assert run(Tasks("a", "b").tasks, minutes=5.0)[1] == 0
    # Nothing is left: no time is needed.
    assert run(Tasks("a", "b").tasks, minutes=0.0)[1] == 0


def test_a_file_of_another_kind(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"case": "of old"}\n')
    outcome, _, text = run(Tasks("a").tasks)
    assert outcome is None
    assert "rows.jsonl, line 1: row.environment: is missing" in text
    assert "give another --output_dir" in text
    assert (tmp_path / "rows.jsonl").read_text() == '{"case": "of old"}\n'


def test_a_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    outcome, _, text = run(Tasks("a").tasks, output_dir=tmp_path / "file")
    assert outcome is None
    assert "error: --output_dir=" in text


def test_time_left_is_shown_without_a_terminal(run, monkeypatch):
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LINES", 0.0)
    _, _, text = run(Tasks("a", "b", "c").tasks)
    assert "1 of 3 tasks" in text
    assert re.search(r"2 of 3 tasks, 0:00:0\d left", text)
