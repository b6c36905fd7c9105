"""Runs tasks in processes of their own, which may crash or hang and harm nothing else.

A crash of a kernel takes its process along, and one that never ends can only be ended
with its process.
"""

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any, Protocol


class Tell(Protocol):
    """Tells what a task is at, and for how many seconds it may be at most."""

    def __call__(self, doing: str, seconds: float) -> None: ...


@dataclasses.dataclass(frozen=True)
class Lost:
    """A task that did not come to its end.

    Attributes:
      doing: what it told last.
      reason: what became of it.
    """

    doing: str
    reason: str


@dataclasses.dataclass(frozen=True)
class _Told:
    doing: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Done:
    outcome: Any


_SECONDS_TO_START = 120.0  # Imports, on as many processors as there are processes.


def run_all[T, R](
    function: Callable[[T, Tell], R],
    next_task: Callable[[], T | None],
    *,
    processes: int,
) -> Iterator[tuple[T, R | Lost]]:
    """Runs tasks side by side, and gives what comes out as it comes.

    Args:
      function: of a task; it, tasks and what it returns can be pickled. A process keeps
        its copy for all of its tasks.
      next_task: what to do next, asked for when a process is free; None for nothing at
        the moment. It may depend on all outcomes that were given before.
      processes: how many may run at a time.

    Yields:
      Each task and its outcome. A task that raises, is lost, as is one whose process
      ends or that takes longer than it told; its process is replaced.
    """
    free: list[_Worker] = []
    busy: list[_Worker] = []
    try:
        while True:
            while len(busy) < processes and (task := next_task()) is not None:
                worker = free.pop() if free else _Worker(function)
                worker.begin(task)
                busy.append(worker)
            if not busy:
                return
            seconds = min(worker.until for worker in busy) - time.monotonic()
            multiprocessing.connection.wait(
                [worker.connection for worker in busy], max(0.0, seconds)
            )
            for worker in list(busy):
                outcome = worker.poll()
                if outcome is None:
                    continue
                busy.remove(worker)
                if isinstance(outcome, Lost):
                    worker.end()
                else:
                    free.append(worker)
                    outcome = outcome.outcome
                yield worker.task, outcome
    finally:
        for worker in [*free, *busy]:
            worker.end()


class _Worker:
    """A process and the task that it is at."""

    def __init__(self, function: Callable[[Any, Tell], Any]) -> None:
        context = multiprocessing.get_context("spawn")  # JAX does not survive a fork.
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(function, theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._told = _Told("starting", _SECONDS_TO_START)
        self.task: Any = None
        self.until = 0.0

    def begin(self, task: Any) -> None:
        self.task = task
        self._heard(_Told("starting", _SECONDS_TO_START))
        with contextlib.suppress(BrokenPipeError):  # `poll` tells.
            self.connection.send(task)

    def _heard(self, told: _Told) -> None:
        self._told, self.until = told, time.monotonic() + told.seconds

    def poll(self) -> _Done | Lost | None:
        """The outcome of the task, None if it goes on."""
        try:
            while self.connection.poll():
                match self.connection.recv():
                    case _Told() as told:
                        self._heard(told)
                    case outcome:
                        assert isinstance(outcome, _Done | Lost)
                        return outcome
        except (EOFError, ConnectionResetError):
            self._process.join()
            status = self._process.exitcode
            return Lost(self._told.doing, f"the process died, exit status {status}")
        if time.monotonic() < self.until:
            return None
        return Lost(self._told.doing, f"no end after {self._told.seconds:g} s")

    def end(self) -> None:
        """Kills the process: nothing gentler ends a call that the device never does."""
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(
    function: Callable[[Any, Tell], Any],
    connection: multiprocessing.connection.Connection,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent ends this process.
    now = "starting"

    def tell(doing: str, seconds: float) -> None:
        nonlocal now
        now = doing
        connection.send(_Told(doing, seconds))

    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            connection.send(_Done(function(task, tell)))
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            connection.send(Lost(now, text[:500]))
            return
