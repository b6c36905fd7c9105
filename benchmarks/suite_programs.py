"""What `benchmarks.gpu_suite` runs of kernels, compiled for a GPU that is not there."""

import fnmatch
import functools
from collections.abc import Iterator, Sequence

from benchmarks import (
    aot,
    gpu_programs,
    kernel_checks,
    results,
    runs,
    suite_cases,
    workloads,
)
from benchmarks.builds import Program
from benchmarks.environment import Environment
from benchmarks.workloads import Workload


def programs(cases: Sequence[str]) -> Iterator[tuple[Workload, str, Program]]:
    """What is run: on which workload, what by, and the function with its arguments.

    Args:
      cases: what a workload's name has to begin with; * stands for anything.
    """

    def is_wanted(workload: Workload) -> bool:
        return any(fnmatch.fnmatchcase(workload.name, f"{case}*") for case in cases)

    for check in kernel_checks.checks(workloads.DTYPES, list(workloads.LAYOUTS)):
        if is_wanted(check.workload):
            program = (kernel_checks.function(check), kernel_checks.abstract(check))
            yield check.workload, check.name, program
    for part in suite_cases.PARTS:
        for workload in suite_cases.workloads_of(
            part, list(workloads.LAYOUTS), num_patterns=suite_cases.NUM_PATTERNS
        ):
            if not is_wanted(workload):
                continue
            for name in suite_cases.implementations(workload):
                if name in suite_cases.OURS:
                    shapes = workloads.shapes(workload)
                    yield workload, name, workloads.program(workload, name, shapes)


def tasks(
    cases: Sequence[str], environment: Environment, options: dict[str, str | bool]
) -> list[runs.Task[gpu_programs.Row]]:
    """A task for each program."""

    def task(
        workload: Workload, name: str, program: Program
    ) -> runs.Task[gpu_programs.Row]:
        compile_one = functools.partial(
            gpu_programs.compile_program,
            *(workload, name, program, judge),
            environment=environment,
            options=options,
        )
        return runs.Task(
            description=f"{workload.name}, {name}",
            keys=(results.key(environment, workload, name, options),),
            run=lambda _: [compile_one()],
        )

    return [task(*one) for one in programs(cases)]


def judge(
    facts: aot.Facts | None, unsupported: str | None, error: str | None
) -> tuple[str, ...]:
    """What is wrong with the outcome of a compilation; a refusal is not."""
    if error is not None:
        return (f"it does not compile: {error}",)
    if unsupported is not None or facts is None:
        return ()
    return aot.kernel_problems(facts, max_launches=None, weight_bytes=None)


def summary(rows: Sequence[gpu_programs.Row]) -> str:
    """How many programs compiled, and what the kernels in them need at most."""
    found = [kernel for row in rows if row.facts for kernel in row.facts.kernels]
    refused = sum(row.unsupported is not None for row in rows)
    needs = ""
    if found:
        needs = (
            f"; a kernel takes at most {max(one.registers for one in found)} registers "
            f"and {max(one.shared_bytes for one in found):,} bytes of shared memory"
        )
    return f"{len(rows)} programs, {refused} of them refused{needs}"
