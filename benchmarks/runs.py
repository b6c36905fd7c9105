"""What the benchmark programs share: flags, resuming, progress, interrupts, status.

A program makes a list of tasks, each of which measures a few rows. `carry_out` runs
them one by one and adds their rows to a file as it goes. Rows that are there already
are taken as they are, so a program that was killed goes on where it was, if it is
started again in the same way.
"""

import dataclasses
import datetime
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from absl import app, flags, logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from benchmarks import files, jsonl, results
from benchmarks.results import Key

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class Row(results.Keyed, DataclassInstance, Protocol):
        """A dataclass with a key."""


# Exit statuses, as shells and BSD's sysexits have them.
FAILED = 1
UNFINISHED = 75
INTERRUPTED = 130

_SECONDS_BETWEEN_LINES = 30.0


def define_flags(output_dir: str) -> None:
    """Defines the flags that all programs have.

    Args:
      output_dir: default folder for what the program writes.
    """
    flags.DEFINE_string("output_dir", output_dir, "Folder for what is written.")
    flags.DEFINE_bool(
        "resume",
        True,
        "Whether rows that are in --output_dir already, from the same device, versions "
        "and commit, are taken from there rather than measured again.",
    )
    flags.DEFINE_float(
        "minutes",
        None,
        "Stop after this time, though not in the middle of a task, with exit status "
        f"{UNFINISHED} if anything is left; the same command then goes on.",
        lower_bound=0.0,
    )


def start(main: Callable[[], int]) -> None:
    """Runs a program, whose flags have been defined, and exits with its status."""

    def checked(argv: Sequence[str]) -> int:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        return main()

    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    show_flags()
    app.run(checked)


def show_flags() -> None:
    """Has --help show the flags that other modules here defined for this program."""
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("benchmarks."):
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


@dataclasses.dataclass(frozen=True)
class Task[R: "Row"]:
    """A few rows that are measured together.

    Attributes:
      description: shown while it runs.
      keys: of the rows.
      run: measures; is given the keys of the rows that are wanted, and returns those
        rows.
    """

    description: str
    keys: tuple[Key, ...]
    run: Callable[[Collection[Key]], Sequence[R]]


@dataclasses.dataclass(frozen=True)
class Outcome[R: "Row"]:
    """What a run came to.

    Attributes:
      path: the file with the rows.
      rows: of all tasks, in their order, measured now or found in the file.
      num_new: how many of them were measured now.
      num_left: tasks that were not finished.
      is_interrupted: whether someone stopped the run.
      failures: what went wrong in tasks, a line each.
    """

    path: pathlib.Path
    rows: tuple[R, ...]
    num_new: int
    num_left: int
    is_interrupted: bool
    failures: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all tasks were finished, and none failed."""
        return not (self.num_left or self.is_interrupted or self.failures)


def deadline() -> float | None:
    """When --minutes will be over, by `time.monotonic`; None for never."""
    minutes = flags.FLAGS.minutes
    return None if minutes is None else time.monotonic() + 60 * minutes


def open_rows[R: "Row"](
    row_type: type[R], name: str, console: Console
) -> tuple[pathlib.Path, dict[Key, R]] | None:
    """A file of rows in --output_dir, and the rows in it that --resume goes on from.

    Args:
      row_type: class of the rows.
      name: of the file, without ".jsonl".
      console: to print to.

    Returns:
      The path and the rows by key; None if nothing can be written or resumed there, a
      message is printed then.
    """
    folder = pathlib.Path(flags.FLAGS.output_dir)
    path = folder / f"{name}.jsonl"
    try:
        files.make_folder(folder)
        found = jsonl.load(path, row_type) if path.exists() else []
    except OSError as error:
        console.print(f"error: --output_dir={folder}: {error}", soft_wrap=True)
        return None
    except ValueError as error:
        console.print(
            f"error: {error}\nIt cannot be added to: give another --output_dir, or "
            "move the file away.",
            markup=False,
            soft_wrap=True,
        )
        return None
    return path, results.latest(found) if flags.FLAGS.resume else {}


def carry_out[R: "Row"](
    tasks: Sequence[Task[R]],
    row_type: type[R],
    name: str,
    console: Console,
    until: float | None = None,
) -> Outcome[R] | None:
    """Runs tasks, as the flags say, showing how far it is.

    Args:
      tasks: what to do.
      row_type: class of the rows.
      name: of the file in --output_dir, without ".jsonl".
      console: to print to.
      until: when to stop, as `deadline` has it; None for --minutes from now.

    Returns:
      What came out, None if nothing can be written or resumed there; a message is
      printed then.
    """
    opened = open_rows(row_type, name, console)
    if opened is None:
        return None
    path, known = opened
    wanted = {
        index: [key for key in task.keys if key not in known]
        for index, task in enumerate(tasks)
    }
    todo = [index for index, keys in wanted.items() if keys]
    num_known = sum(len(task.keys) for task in tasks) - sum(map(len, wanted.values()))
    if num_known:
        console.print(f"{num_known} rows are in {path} already", soft_wrap=True)
    until = until or deadline()
    failures: list[str] = []
    num_new, is_interrupted = 0, False
    try:
        with Bar(console, len(todo)) as progress:
            for index in list(todo):
                if until is not None and time.monotonic() >= until:
                    break
                task = tasks[index]
                progress.describe(task.description)
                try:
                    new = list(task.run(frozenset(wanted[index])))
                except Exception as error:  # The others go on; it is told at the end.
                    traceback.print_exc()
                    failures.append(
                        f"{task.description}: {type(error).__name__}: {error}"
                    )
                    new = []
                jsonl.append(path, new)
                known |= results.latest(new)
                num_new += len(new)
                todo.remove(index)
                progress.advance()
    except KeyboardInterrupt:
        is_interrupted = True
    return Outcome(
        path=path,
        rows=tuple(known[key] for task in tasks for key in task.keys if key in known),
        num_new=num_new,
        num_left=len(todo),
        is_interrupted=is_interrupted,
        failures=tuple(failures),
    )


def finish[R: "Row"](
    outcome: Outcome[R], problems: Sequence[str], console: Console
) -> int:
    """Says how a run ended, and returns the exit status.

    Args:
      outcome: of the run.
      problems: what is wrong with the rows, a line each.
      console: to print to.
    """
    console.print(f"rows: {outcome.path}", soft_wrap=True)
    if outcome.is_interrupted:
        console.print(
            f"interrupted after {outcome.num_new} measurements; the rows are kept, and "
            "the same command goes on from here"
        )
        return INTERRUPTED
    failed = [*outcome.failures, *problems]
    for line in failed:
        console.print(f"FAILED: {line}", markup=False, soft_wrap=True)
    if outcome.num_left:
        console.print(f"{outcome.num_left} tasks are left for the same command")
    if failed:
        return FAILED
    return UNFINISHED if outcome.num_left else 0


class Bar:
    """A bar with the time left; on what is no terminal, a line now and then.

    Args:
      console: to print to.
      total: how many tasks there are.
    """

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            speed_estimate_period=3600.0,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)
        self._last_line = time.monotonic()

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def describe(self, text: str) -> None:
        self._bar.update(self._task, description=text)

    def advance(self) -> None:
        self._bar.advance(self._task)
        if self._console.is_terminal:
            return
        if time.monotonic() - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = time.monotonic()
        task = self._bar.tasks[self._task]
        left = task.time_remaining
        console_text = f"{task.completed:.0f} of {task.total:.0f} tasks"
        if left is not None:
            console_text += f", {datetime.timedelta(seconds=round(left))} left"
        self._console.print(console_text)
