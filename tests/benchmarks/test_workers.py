import os
import time

from benchmarks import workers
from benchmarks.workers import Lost


class Job:
    """Does what a word says, and counts its tasks."""

    def __init__(self):
        self.count = 0

    def __call__(self, word, tell):
        self.count += 1
        tell(f"at {word}", 60.0)
        match word:
            case "die":
                os._exit(3)
            case "raise":
                raise ValueError("no good")
            case "hang":
                tell("hanging", 0.2)
                time.sleep(600)
            case "slow":
                for _ in range(4):
                    tell("at it", 0.5)
                    time.sleep(0.2)
        return word, self.count


def run(words, processes=1):
    left = list(words)
    return list(
        workers.run_all(
            Job(), lambda: left.pop(0) if left else None, processes=processes
        )
    )


def test_what_is_lost_takes_nothing_along():
    found = run(["good", "die", "slow", "raise", "hang", "good", "good"])
    assert found == [
        ("good", ("good", 1)),
        ("die", Lost("at die", "the process died, exit status 3")),
        ("slow", ("slow", 1)),
        ("raise", Lost("at raise", "ValueError: no good")),
        ("hang", Lost("hanging", "no end after 0.2 s")),
        ("good", ("good", 1)),
        ("good", ("good", 2)),
    ]


def test_tasks_may_follow_from_outcomes():
    left, found = ["die"], []

    def next_task():
        return left.pop() if left else None

    for task, outcome in workers.run_all(Job(), next_task, processes=2):
        found.append(task)
        if len(found) == 1:
            assert isinstance(outcome, Lost)
            left += ["good", "good"]
    assert found == ["die", "good", "good"]


def test_processes_run_side_by_side():
    found = dict(run(["slow", "good", "raise"], processes=3))
    assert (found["slow"], found["good"]) == (("slow", 1), ("good", 1))
