"""Compiles butterfly chains for an NVIDIA H200, on a machine that needs no GPU.

For each case and direction, every implementation and a dense layer of the same size
is compiled. The tables tell how many launches come out, how many bytes transposes and
copies rewrite, what memory is taken, and what the hand-written kernels need: registers,
spills, shared memory, the instructions they use, and what their main loops consist of
in machine code. They tell nothing about speed.

  make gpu-compile
  make gpu-compile ARGS="--case=monarch:1024* --implementation=bmm"
  make gpu-compile ARGS="--case=(2,48,192,4)/25088/float16/feature_first"
  make gpu-compile ARGS="--suite --case=monarch:1024 --minutes=10"
  make gpu-compile ARGS=--compiler_option=xla_gpu_enable_triton_gemm=false

The last one has products done by cuBLAS, as XLA may choose to when it finds a device.

Writes one JSON line per compilation into --output_dir (gpu_compile.jsonl, added to as
it goes); a run that was stopped goes on where it was, if it is started again. Fails if
anything does not compile, or if a kernel spills, takes more launches than it should, or
comes with transposes or copies of x or y, or with anything at all, where kernels should
read the factors as they are; if its clusters do not all run at once, or its main loop
has more instructions, wavefronts or barriers than the limits of the case
(`benchmarks/gpu_cases.py`).
"""

import os

if __name__ == "__main__":  # JAX reads these when it is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # A kernel that comes from the cache is not dumped.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "false"

import functools
from collections.abc import Mapping
from typing import Any

from absl import flags
from rich.console import Console

import butterjax as bj
from benchmarks import (
    aot,
    cases,
    gpu_cases,
    gpu_programs,
    results,
    runs,
    suite_programs,
    workloads,
)
from benchmarks.environment import Environment


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    names = [workloads.DENSE_LAYER, *bj.implementations.names()]
    flags.DEFINE_multi_string(
        "case",
        ["*"],
        "Cases to compile, CHAIN/BATCH/DTYPE/LAYOUT or the start of that; * stands for "
        f"anything. There are: {', '.join(case.name for case in gpu_cases.CASES)}. "
        f"One that is none of these is a new one; its CHAIN is {cases.SPEC_HELP}.",
    )
    flags.DEFINE_bool(
        "suite",
        False,
        "Compile what `benchmarks.gpu_suite` checks and measures of kernels instead. "
        "--case then chooses among these by the start of CHAIN/BATCH/DTYPE/LAYOUT.",
    )
    flags.DEFINE_multi_enum(
        "direction",
        list(workloads.DIRECTIONS),
        list(workloads.DIRECTIONS),
        "What is compiled.",
    )
    flags.DEFINE_multi_enum(
        "implementation", names, names, "Implementation; may be given several times."
    )
    flags.DEFINE_multi_string(
        "compiler_option", [], "Option of XLA's compiler, NAME=VALUE."
    )
    flags.register_multi_flags_validator(["case", "suite"], _check_cases)
    flags.register_validator(
        "compiler_option",
        lambda options: all("=" in option for option in options),
        message="must be NAME=VALUE",
    )
    runs.define_flags("results/gpu_compile")


def _check_cases(values: Mapping[str, Any]) -> bool:
    try:
        return values["suite"] or bool(gpu_cases.select(values["case"]))
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error


def main() -> int:
    console = Console()
    if missing := aot.missing_wheels():
        console.print(
            f"error: {', '.join(missing)} not installed here; run `make gpu-compile`, "
            "which makes an environment that has the compiler",
            soft_wrap=True,
        )
        return runs.FAILED
    environment = gpu_programs.compiled_for(Environment.now())
    options = gpu_programs.parse_options(flags.FLAGS.compiler_option)

    def task(
        case: gpu_cases.Case, direction: workloads.Direction, implementation: str
    ) -> runs.Task[gpu_programs.Row]:
        workload = case.workload(direction)
        compile_one = functools.partial(
            gpu_programs.compile_one,
            case,
            direction,
            implementation,
            environment=environment,
            options=options,
        )
        return runs.Task(
            description=f"{workload.name}, {implementation}",
            keys=(results.key(environment, workload, implementation, options),),
            run=lambda _: [compile_one()],
        )

    if flags.FLAGS.suite:
        tasks = suite_programs.tasks(flags.FLAGS.case, environment, options)
    else:
        tasks = [
            task(case, direction, implementation)
            for case in gpu_cases.select(flags.FLAGS.case)
            for direction in flags.FLAGS.direction
            for implementation in flags.FLAGS.implementation
        ]
    outcome = runs.carry_out(tasks, gpu_programs.Row, "gpu_compile", console)
    if outcome is None:
        return runs.FAILED
    rows = outcome.rows
    console.print(f"compiled for {environment.device}; nothing was run", style="bold")
    if flags.FLAGS.suite:
        console.print(suite_programs.summary(rows))
    else:
        console.print(*gpu_programs.tables(rows))
        console.print(gpu_programs.LEGEND, soft_wrap=True)
        if any(row.facts and row.facts.kernels for row in rows):
            console.print(gpu_programs.instructions(rows))
            console.print(gpu_programs.loops(rows))
    problems = [
        f"{row.implementation}, {row.workload.name}: {problem}"
        for row in rows
        for problem in row.problems
    ]
    return runs.finish(outcome, problems, console)


if __name__ == "__main__":
    define_flags()
    runs.start(main)
