"""Checks the hand-written kernels on an NVIDIA GPU, then measures them.

In this order, within --minutes:

  correctness  what the library launches against float64: each kernel, dtype and
               layout, ragged batches, bias and activation, gradients
  ceilings     bytes copied and multiply-adds done per second, anew in every run
  chains       chains of two factors, n = 1024, 2048, 4096
  training     the smaller two, forward and backward
  factors      single factors that should be bound by memory
  radix        radix-2 chains
  paper        patterns of arXiv 2405.15013, float16

Kernels are compared with XLA's implementations and with a dense layer of the same size,
all in turn. Each check and each workload has a process of its own: a kernel that
crashes, or does not come to an end, excludes what launches it, and all else goes on.

  python -m benchmarks.gpu_suite --minutes=9
  python -m benchmarks.gpu_suite --part=chains --layout=feature_last
  python -m benchmarks.gpu_suite --check="pallas_chain monarch:1024x1024 *"
  python -m benchmarks.gpu_suite --profile=monarch:1024x1024/25088/bfloat16/feature_last

The same command goes on where it was stopped or killed: what has been checked or
measured is in --output_dir (checks.jsonl, ceilings.jsonl, gpu_suite.jsonl), a row for
each, added as it comes. The exit status is 75 while anything is left, then 1 if a
kernel is wrong or was lost, or something failed.

The last command runs Nsight Compute (ncu) on what the library launches for the cases
named, CHAIN/BATCH/DTYPE/LAYOUT, and /forward+backward for training, and nothing else;
it writes nsight_details.txt and nsight_stalls.txt.

Needs JAX with CUDA, absl-py, numpy, optax, flax and rich; a GPU from Hopper on.
"""

import collections
import dataclasses
import fnmatch
import os
import pathlib
import time
from collections.abc import Callable, Sequence

from absl import flags
from rich.console import Console

from benchmarks import (
    ceilings,
    devices,
    jsonl,
    kernel_checks,
    nsight,
    results,
    runs,
    suite_cases,
    suite_report,
    suite_rows,
    tables,
    targets,
    workers,
    workloads,
)
from benchmarks.environment import Environment
from benchmarks.kernel_checks import Form
from benchmarks.workers import Lost

_MINUTES = 9.0
_SECONDS_OF_CHECKS = 150.0  # What is left then, the next run makes first.
_PARTS = ("correctness", *suite_cases.PARTS)


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_multi_enum(
        "part", list(_PARTS), list(_PARTS), "What to do; may be given several times."
    )
    flags.DEFINE_string(
        "check",
        "*",
        "Make only the checks that are written so, * standing for anything; their "
        "names are the words that tell of a failure.",
    )
    flags.DEFINE_multi_enum(
        "dtype",
        list(workloads.DTYPES),
        list(workloads.DTYPES),
        "Types to look at.",
    )
    flags.DEFINE_multi_enum(
        "layout",
        list(workloads.LAYOUTS),
        list(workloads.LAYOUTS),
        "Layouts to look at.",
    )
    flags.DEFINE_integer(
        "patterns",
        suite_cases.NUM_PATTERNS,
        "How many of the 904 patterns of arXiv 2405.15013, spread over all sizes.",
        lower_bound=1,
    )
    flags.DEFINE_list("profile", [], "Cases to profile, and do nothing else.")
    flags.DEFINE_integer(
        "processes",
        max(1, (os.cpu_count() or 1) - 2),
        "How many make checks at a time.",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "time_limit", 1.0, "Seconds to spend timing each workload.", lower_bound=0.0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random input.", lower_bound=0)
    runs.define_flags("results/gpu_suite")
    flags.FLAGS.set_default("minutes", _MINUTES)


def main() -> int:
    # Several processes are to share the device's memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    console = Console()
    until = runs.deadline()
    if flags.FLAGS.profile:
        return nsight.main(flags.FLAGS.profile, console)
    if (problem := devices.problem()) is not None:
        console.print(f"error: gpu_suite {problem}", soft_wrap=True)
        return runs.FAILED
    environment = Environment.now()
    console.print(f"on {environment.device}", style="bold")
    checked = check_all(environment, console, until)
    if checked is None:
        return runs.FAILED
    lost = tuple(row.form for row in checked.rows if row.is_lost and row.form)
    measured = None
    if not checked.is_interrupted and set(flags.FLAGS.part) != {"correctness"}:
        measured = measure_all(environment, console, until, lost)
        if measured is None:
            return runs.FAILED
    report(checked.rows, measured.rows if measured else (), console)
    problems = kernel_checks.summary(checked.rows)
    statuses = [runs.finish(checked, problems, console)]
    if measured is not None:
        wrong = tables.problems(measured.rows)
        statuses.append(runs.finish(measured, wrong, console))
    if runs.INTERRUPTED in statuses:
        return runs.INTERRUPTED
    if checked.num_left or (measured is not None and measured.num_left):
        return runs.UNFINISHED  # What failed is told again when all is done.
    return max(statuses)


def checks() -> list[kernel_checks.Check]:
    """The checks that the flags ask for."""
    if "correctness" not in flags.FLAGS.part:
        return []
    every = kernel_checks.checks(flags.FLAGS.dtype, flags.FLAGS.layout)
    return [one for one in every if fnmatch.fnmatchcase(one.name, flags.FLAGS.check)]


def check_all(
    environment: Environment, console: Console, until: float | None
) -> runs.Outcome[kernel_checks.Row] | None:
    """Makes the checks, side by side; None if nothing can be written."""
    opened = runs.open_rows(kernel_checks.Row, "checks", console)
    if opened is None:
        return None
    path, known = opened
    keys = [
        kernel_checks.key(environment, kernel_checks.sources(), one) for one in checks()
    ]
    todo = collections.deque(
        one for one, key in zip(checks(), keys, strict=True) if key not in known
    )
    excluded = [row.form for row in known.values() if row.is_lost and row.form]
    end = time.monotonic() + _SECONDS_OF_CHECKS
    end = end if until is None else min(end, until)

    def next_task() -> kernel_checks.Task | None:
        if not todo or time.monotonic() >= end:
            return None
        lost = tuple(excluded)
        return kernel_checks.Task(todo.popleft(), environment, lost, flags.FLAGS.seed)

    num_new, is_interrupted = 0, False
    try:
        with runs.Bar(console, len(todo)) as bar:
            for task, outcome in workers.run_all(
                kernel_checks.run, next_task, processes=flags.FLAGS.processes
            ):
                row = outcome
                if isinstance(row, Lost):
                    row = kernel_checks.lost_row(task, row)
                if row.is_lost and row.form:
                    excluded.append(row.form)
                jsonl.append(path, [row])
                known[row.key] = row
                num_new += 1
                bar.advance()
    except KeyboardInterrupt:
        is_interrupted = True
    return runs.Outcome(
        path=path,
        rows=tuple(known[key] for key in keys if key in known),
        num_new=num_new,
        num_left=sum(key not in known for key in keys),
        is_interrupted=is_interrupted,
        failures=(),
    )


def row_tasks(environment: Environment, lost: Sequence[Form]) -> list[suite_rows.Task]:
    """The measurements that the flags ask for."""
    works = [
        work
        for part in suite_cases.PARTS
        if part in flags.FLAGS.part
        for work in suite_cases.workloads_of(
            part, flags.FLAGS.layout, num_patterns=flags.FLAGS.patterns
        )
        if work.dtype in flags.FLAGS.dtype
    ]
    return [
        suite_rows.Task(
            workload=work,
            environment=environment,
            lost={},
            excluded=tuple(lost),
            ahead=None,
            seed=flags.FLAGS.seed,
            time_limit=flags.FLAGS.time_limit,
        )
        for work in works
    ]


def measure_all(
    environment: Environment,
    console: Console,
    until: float | None,
    lost: Sequence[Form],
) -> runs.Outcome[results.Row] | None:
    """Measures the ceilings, then the workloads; None if nothing can be written."""
    opened = runs.open_rows(results.Row, "gpu_suite", console)
    of_ceilings = runs.open_rows(ceilings.Row, "ceilings", console)
    if opened is None or of_ceilings is None:
        return None
    (path, known), (ceilings_path, _) = opened, of_ceilings
    tasks = row_tasks(environment, lost)
    left = [task for task in tasks if not all(key in known for key in task.keys)]
    dtypes = tuple(dict.fromkeys(task.workload.dtype for task in tasks))
    todo: collections.deque[suite_rows.Job]
    todo = collections.deque(left)
    if left:
        limit = flags.FLAGS.time_limit
        todo.appendleft(suite_rows.Ceilings(dtypes, environment, limit))

    def next_task() -> suite_rows.Job | None:
        if not todo or (until is not None and time.monotonic() >= until):
            return None
        task = todo.popleft()
        following = todo[0] if todo else None
        if isinstance(task, suite_rows.Task) and isinstance(following, suite_rows.Task):
            return dataclasses.replace(task, ahead=following.workload)
        return task

    measure: Callable[
        [suite_rows.Job, workers.Tell],
        Sequence[results.Row | ceilings.Row],
    ] = suite_rows.Measurer()
    num_new, is_interrupted = 0, False
    failures: list[str] = []
    try:
        with runs.Bar(console, len(todo)) as bar:
            for task, outcome in workers.run_all(measure, next_task, processes=1):
                rows: Sequence[results.Row | ceilings.Row]
                if not isinstance(outcome, Lost):
                    rows = outcome
                elif not isinstance(task, suite_rows.Task):
                    failures.append(f"{outcome.doing}: {outcome.reason}")
                    rows = []
                else:
                    again, rows = suite_rows.after(task, outcome)
                    if again is not None:
                        todo.appendleft(again)
                        continue
                found = [row for row in rows if isinstance(row, results.Row)]
                jsonl.append(path, found)
                jsonl.append(
                    ceilings_path, [r for r in rows if isinstance(r, ceilings.Row)]
                )
                known |= results.latest(found)
                num_new += len(found)
                bar.advance()
    except KeyboardInterrupt:
        is_interrupted = True
    return runs.Outcome(
        path=path,
        rows=tuple(known[key] for task in tasks for key in task.keys if key in known),
        num_new=num_new,
        num_left=sum(any(key not in known for key in task.keys) for task in tasks),
        is_interrupted=is_interrupted,
        failures=tuple(failures),
    )


def report(
    checked: Sequence[kernel_checks.Row],
    measured: Sequence[results.Row],
    console: Console,
) -> None:
    """Prints what was found: checks, cases and targets."""
    console.print(suite_report.checks(checked))
    kept = suite_report.committed()
    console.print(suite_report.never_run([*kept, *checked]))
    if not measured:
        return
    path = pathlib.Path(flags.FLAGS.output_dir) / "ceilings.jsonl"
    rows = jsonl.load(path, ceilings.Row)
    wanted = targets.targets(flags.FLAGS.patterns)
    console.print(suite_report.cases(measured, rows, wanted))
    console.print(suite_report.rates(rows), soft_wrap=True)
    console.print(suite_report.judgements(targets.judge(wanted, measured, rows)))


if __name__ == "__main__":
    define_flags()
    runs.start(main)
