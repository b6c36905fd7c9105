"""Measures workloads of `benchmarks.gpu_suite`, in a process that may be lost."""

import dataclasses
import functools
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from benchmarks import (
    ceilings,
    kernel_rows,
    launched,
    layers,
    measure,
    results,
    suite_cases,
    workloads,
)
from benchmarks.environment import Environment
from benchmarks.kernel_checks import Form
from benchmarks.side_by_side import Outcome
from benchmarks.workers import Lost, Tell
from benchmarks.workloads import Workload

_MAX_CHECKED = 512  # Vectors: enough of each tile's, and few enough for float64.

# Seconds that a step may take.
_TO_PREPARE = 120.0
_TO_BUILD = 90.0
_TO_RUN = 20.0
_TO_TIME = 60.0
TIMING = "timing"


class Job:
    """Something to measure."""


@dataclasses.dataclass(frozen=True)
class Ceilings(Job):
    """To measure what the device can do at best, in these dtypes."""

    dtypes: tuple[str, ...]
    environment: Environment
    time_limit: float


@dataclasses.dataclass(frozen=True)
class Task(Job):
    """To measure a workload.

    Attributes:
      workload: the case.
      environment: of the run.
      lost: what became of implementations that are not to be tried again.
      excluded: forms that a process was lost to.
      ahead: what is measured next, if anything.
      seed: of the random numbers.
      time_limit: seconds for the timing.
    """

    workload: Workload
    environment: Environment
    lost: Mapping[str, str]
    excluded: tuple[Form, ...]
    ahead: Workload | None
    seed: int
    time_limit: float

    @property
    def keys(self) -> tuple[results.Key, ...]:
        """Of the rows that come out."""
        return tuple(
            results.key(self.environment, self.workload, name, None)
            for name in suite_cases.implementations(self.workload)
        )


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """An implementation with kernels, compiled, and which they are."""

    built: measure.Built
    names: tuple[str, ...]


class Measurer:
    """Measures one task after the other; compiles kernels of the next one meanwhile.

    Kernels alone: while XLA compiles products of its own it tries them on the device.
    """

    def __init__(self) -> None:
        self._ahead: dict[Workload, Future[dict[str, _Kernels]]] = {}

    def __call__(self, task: Job, tell: Tell) -> Sequence[results.Row | ceilings.Row]:
        """The rows of a task."""
        if isinstance(task, Ceilings):
            tell("ceilings", _TO_PREPARE)
            return ceilings.measure_all(
                task.dtypes,
                environment=task.environment,
                sizes=ceilings.SIZES,
                time_limit=task.time_limit,
            )
        assert isinstance(task, Task)
        tell("compiling kernels", _TO_BUILD)
        work = task.workload
        lost = dict(task.lost)
        coming = self._ahead.pop(work, None)
        built = coming.result() if coming else compiled(work, lost)
        for name, kernels in built.items():
            form = Form.of(work, kernels.names)
            if (words := form.excluded_by(task.excluded)) is not None:
                lost.setdefault(name, words)
        self._begin(task.ahead)

        def tell_next(name: str) -> None:
            ours = name in suite_cases.OURS
            seconds = _TO_RUN if ours and name in built else _TO_BUILD
            tell(name or TIMING, seconds if name else _TO_TIME + task.time_limit)

        tell("drawing", _TO_PREPARE)
        names = suite_cases.implementations(work)
        rows = kernel_rows.measure_all(
            work,
            [kernel_rows.Contestant(name) for name in names if name not in lost],
            environment=task.environment,
            seed=task.seed,
            time_limit=task.time_limit,
            built={name: kernels.built for name, kernels in built.items()},
            max_checked=_MAX_CHECKED,
            tell=tell_next,
        )
        return [*rows, *lost_rows(task, lost)]

    def _begin(self, ahead: Workload | None) -> None:
        """Compiles what comes next in another thread, where XLA has no part in it."""
        if ahead is None or ahead.direction != "forward" or (os.cpu_count() or 1) < 4:
            return
        with_one = ThreadPoolExecutor(1)
        self._ahead[ahead] = with_one.submit(compiled, ahead, ())
        with_one.shutdown(wait=False)


def compiled(work: Workload, lost: Collection[str]) -> dict[str, _Kernels]:
    """The implementations with kernels that are not lost, and do not refuse or fail."""
    found = {}
    for name in suite_cases.implementations(work):
        if name not in suite_cases.OURS or name in lost:
            continue
        start = time.perf_counter()
        function, shapes = workloads.program(work, name, workloads.shapes(work))
        try:
            traced = jax.jit(function).trace(*shapes)
            built = traced.lower().compile()
        except Exception:  # It fails again where that is written down.
            continue
        seconds = time.perf_counter() - start
        found[name] = _Kernels(measure.Built(built, seconds), launched.kernels(traced))
    return found


def lost_rows(task: Task, lost: Mapping[str, str]) -> list[results.Row]:
    """Rows of what was not measured, by what became of it."""
    make = functools.partial(layers.to_row, task.workload, environment=task.environment)
    return [make(name, Outcome(failed=words)) for name, words in lost.items()]


def after(task: Task, lost: Lost) -> tuple[Task | None, list[results.Row]]:
    """What to do when a process was lost.

    Returns:
      The task without the implementation that was tried, or without those that have
      kernels where that is not known; or None, and the rows, where none is left.
    """
    names = suite_cases.implementations(task.workload)
    words = f"{lost.reason}, {lost.doing}"
    blamed = [lost.doing] if lost.doing in names else suite_cases.OURS
    known = {**{name: words for name in blamed if name in names}, **task.lost}
    if len(known) > len(task.lost):
        return dataclasses.replace(task, lost=known), []
    return None, lost_rows(task, {**dict.fromkeys(names, words), **known})
