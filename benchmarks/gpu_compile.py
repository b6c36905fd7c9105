"""Compiles butterfly chains for an NVIDIA H200, on a machine that needs no GPU.

For each case and direction, every implementation and a dense layer of the same size
is compiled. The table tells how many launches come out, how many bytes transposes and
copies rewrite, what memory is taken, and what the hand-written kernels need: registers,
spills, shared memory, and the instructions they use. It tells nothing about speed.

  make gpu-compile
  make gpu-compile ARGS="--case=monarch:1024* --implementation=bmm"
  make gpu-compile ARGS=--compiler_option=xla_gpu_enable_triton_gemm=false

The last one has products done by cuBLAS, as XLA may choose to when it finds a device.

Writes one JSON line per compilation into --output_dir (gpu_compile.jsonl, appended to
as it goes). Fails if anything does not compile, or if a kernel spills, takes more
launches than it should, or comes with transposes or copies of x or y.
"""

import os

if __name__ == "__main__":  # JAX reads these when it is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # A kernel that comes from the cache is not dumped.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import pathlib
from collections.abc import Sequence

from absl import app, flags, logging
from rich.console import Console
from rich.progress import Progress

import butterjax as bj
from benchmarks import aot, files, gpu_programs, results, workloads

_CASE = flags.DEFINE_multi_string(
    "case",
    ["*"],
    "Cases to compile, CHAIN/BATCH/DTYPE/LAYOUT or the start of that; * stands for "
    f"anything. There are: {', '.join(case.name for case in gpu_programs.CASES)}",
)
_DIRECTION = flags.DEFINE_multi_enum(
    "direction",
    list(workloads.DIRECTIONS),
    list(workloads.DIRECTIONS),
    "What is compiled.",
)
_NAMES = [workloads.DENSE_LAYER, *bj.implementations.names()]
_IMPLEMENTATION = flags.DEFINE_multi_enum(
    "implementation", _NAMES, _NAMES, "Implementation; may be given several times."
)
_COMPILER_OPTION = flags.DEFINE_multi_string(
    "compiler_option", [], "Option of XLA's compiler, NAME=VALUE."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "results/gpu_compile", "Folder for the rows."
)


@flags.validator("case")
def _check_cases(patterns: Sequence[str]) -> bool:
    for pattern in patterns:
        if not gpu_programs.select([pattern]):
            raise flags.ValidationError(f"no case is named {pattern!r}; see --help")
    return True


@flags.validator("compiler_option", message="must be NAME=VALUE")
def _check_options(options: Sequence[str]) -> bool:
    return all("=" in option for option in options)


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    console = Console()
    if missing := aot.missing_wheels():
        console.print(
            f"error: {', '.join(missing)} not installed here; run `make gpu-compile`, "
            "which makes an environment that has the compiler",
            soft_wrap=True,
        )
        return 1
    output_dir = pathlib.Path(_OUTPUT_DIR.value)
    try:
        files.make_folder(output_dir)
    except OSError as error:
        console.print(f"error: --output_dir={output_dir}: {error}")
        return 1
    rows_file = output_dir / "gpu_compile.jsonl"
    environment = gpu_programs.compiled_for(results.Environment.now())
    options = gpu_programs.parse_options(_COMPILER_OPTION.value)
    todo = [
        (case, direction, implementation)
        for case in gpu_programs.select(_CASE.value)
        for direction in _DIRECTION.value
        for implementation in _IMPLEMENTATION.value
    ]
    rows: list[gpu_programs.Row] = []
    interrupted = False
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("", total=len(todo))
            for case, direction, implementation in todo:
                progress.update(bar, description=f"{case.name}, {implementation}")
                row = gpu_programs.compile_one(
                    case,
                    direction,
                    implementation,
                    environment=environment,
                    options=options,
                )
                results.append(rows_file, [row])
                rows.append(row)
                progress.advance(bar)
    except KeyboardInterrupt:
        interrupted = True
    console.print(f"compiled for {environment.device}; nothing was run", style="bold")
    console.print(*gpu_programs.tables(rows))
    console.print(gpu_programs.LEGEND, soft_wrap=True)
    if any(row.facts and row.facts.kernels for row in rows):
        console.print(gpu_programs.instructions(rows))
    console.print(f"rows: {rows_file}")
    if interrupted:
        console.print(f"interrupted after {len(rows)} compilations; rows are kept")
        return 130
    for row in rows:
        for problem in row.problems:
            console.print(
                f"FAILED: {row.implementation}, {row.case}, {row.direction}: {problem}",
                markup=False,
            )
    return 1 if any(row.problems for row in rows) else 0


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    app.run(main)
