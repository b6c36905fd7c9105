"""Lets a program get past tasks that crash the device, hang, or are killed.

What is about to be tried is written down, so that the next run knows what the last one
did not come back from, and tries that after all else.
"""

import collections
import dataclasses
import os
import pathlib
import sys
import threading
from collections.abc import Collection, Sequence

import jax
import jax.numpy as jnp

from benchmarks import files, jsonl, runs
from benchmarks.results import Key


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A task that was begun, or ended.

    Attributes:
      task: its description.
      is_over: False when it began, True when it ended, well or not.
    """

    task: str
    is_over: bool


def guard[R: "runs.Row"](
    tasks: Sequence[runs.Task[R]], path: pathlib.Path, *, seconds: float
) -> list[runs.Task[R]]:
    """The same tasks, those last that this or another process did not come back from.

    A task that takes too long, or after which the device no longer works, ends the
    process, as nothing after it would be worth anything.

    Args:
      tasks: to guard.
      path: the file in which attempts are written down.
      seconds: how long a task may take.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it does not hold attempts.
    """
    open_ends: collections.Counter[str] = collections.Counter()
    for attempt in jsonl.load(path, Attempt) if path.exists() else []:
        if attempt.is_over:
            del open_ends[attempt.task]
        else:
            open_ends[attempt.task] += 1
    ordered = sorted(tasks, key=lambda task: open_ends[task.description])
    return [_guarded(task, path, seconds) for task in ordered]


def _guarded[R: "runs.Row"](
    task: runs.Task[R], path: pathlib.Path, seconds: float
) -> runs.Task[R]:
    def run(wanted: Collection[Key]) -> Sequence[R]:
        files.make_folder(path.parent)
        jsonl.append(path, [Attempt(task.description, is_over=False)])
        watch = threading.Timer(seconds, _give_up, [task.description, seconds])
        watch.daemon = True
        watch.start()
        try:
            rows = task.run(wanted)
        except Exception as error:
            if not _device_works():
                raise SystemExit(
                    f"error: {task.description}: the device no longer works after "
                    f"{type(error).__name__}: {error}"
                ) from error
            jsonl.append(path, [Attempt(task.description, is_over=True)])
            raise
        finally:
            watch.cancel()
        jsonl.append(path, [Attempt(task.description, is_over=True)])
        return rows

    return dataclasses.replace(task, run=run)


def _give_up(description: str, seconds: float) -> None:
    print(
        f"error: {description}: no end after {seconds:g} s; the process is ended",
        file=sys.stderr,
        flush=True,
    )
    os._exit(runs.FAILED)  # Nothing gentler ends a call that the device never does.


def _device_works() -> bool:
    try:
        jax.block_until_ready(jnp.arange(8) + 1)
    except Exception:
        return False
    return True
