"""How `benchmarks.gpu_compile` judges what comes out, and shows it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.table import Table

from benchmarks import aot, ptx, results, sass, workloads
from benchmarks.environment import Environment
from benchmarks.gpu_cases import Case, Limits
from benchmarks.tables import plain

KERNELS = ("pallas", "pallas_chain")  # Implementations that are hand-written kernels.


def parse_options(options: Sequence[str]) -> dict[str, str | bool]:
    """Options NAME=VALUE as JAX takes them, which wants true and false as booleans."""
    words: dict[str, str | bool] = {"true": True, "false": False}
    pairs = (option.split("=", 1) for option in options)
    return {name: words.get(value.lower(), value) for name, value in pairs}


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation, compiled for one case in one direction.

    Attributes:
      environment: of the run; the device is the one that was compiled for.
      workload: what would be run.
      implementation: name in the registry, or "dense layer" for one product with a
        ready matrix of the same size.
      compiler_options: that XLA was given.
      facts: what came out, None where nothing did.
      unsupported: why the implementation refused, None where it did not.
      error: why it did not compile, None where it did.
      problems: what is wrong, in words; empty if all is well.
    """

    environment: Environment
    workload: workloads.Workload
    implementation: str
    compiler_options: dict[str, str | bool]
    facts: aot.Facts | None
    unsupported: str | None
    error: str | None
    problems: tuple[str, ...]

    @property
    def key(self) -> results.Key:
        """What is not compiled twice."""
        return results.key(
            self.environment, self.workload, self.implementation, self.compiler_options
        )


def compile_one(
    case: Case,
    direction: workloads.Direction,
    implementation: str,
    *,
    environment: Environment,
    options: dict[str, str | bool],
) -> Row:
    """Compiles one implementation and judges what comes out."""
    workload = case.workload(direction)
    return compile_program(
        workload,
        implementation,
        workloads.program(workload, implementation, workloads.shapes(workload)),
        functools.partial(judge, case, direction, implementation),
        environment=environment,
        options=options,
    )


def compile_program(
    workload: workloads.Workload,
    name: str,
    program: tuple[Callable[..., Any], tuple[Any, ...]],
    judge: Callable[[aot.Facts | None, str | None, str | None], tuple[str, ...]],
    *,
    environment: Environment,
    options: dict[str, str | bool],
) -> Row:
    """Compiles a function and judges what comes out.

    Args:
      workload: what it does.
      name: of what does it; stands for the implementation in the row.
      program: the function, and shapes to compile it for.
      judge: tells what is wrong with the facts, the refusal and the error.
      environment: of the run.
      options: of XLA's compiler.
    """
    facts = unsupported = error = None
    try:
        facts = aot.compile_for_gpu(*program, options=options)
    except NotImplementedError as refusal:
        unsupported = str(refusal)
    except aot.CompilationError as failure:
        error = str(failure)
    return Row(
        environment=environment,
        workload=workload,
        implementation=name,
        compiler_options=options,
        facts=facts,
        unsupported=unsupported,
        error=error,
        problems=judge(facts, unsupported, error),
    )


def judge(
    case: Case,
    direction: workloads.Direction,
    implementation: str,
    facts: aot.Facts | None,
    unsupported: str | None,
    error: str | None,
) -> tuple[str, ...]:
    """What is wrong with the outcome of a compilation; empty if all is well."""
    if error is not None:
        known = implementation in case.too_much_for
        return () if known else (f"it does not compile: {error}",)
    if unsupported is not None:
        must = case.launches is not None and implementation in KERNELS
        return (f"it refuses: {unsupported}",) if must else ()
    if facts is None or implementation not in KERNELS:
        return ()
    is_forward = direction == "forward"
    limits = case.limits if is_forward else case.backward_limits
    over = []
    if limits is not None and implementation == "pallas_chain":
        over = [line for kernel in facts.kernels for line in above(kernel, limits)]
    if not is_forward:  # XLA multiplies, or adds up, for those of the weights.
        others = aot.kernel_problems(facts, max_launches=None, weight_bytes=None)
        return (*others, *over)
    work = case.workload(direction)
    problems = aot.kernel_problems(
        facts,
        max_launches=(
            case.launches if implementation == "pallas_chain" else len(work.chain)
        ),
        weight_bytes=None if case.is_transposed else work.weight_bytes,
        alone=case.launches is not None and not case.is_arranged,
    )
    return (*problems, *over)


def above(kernel: ptx.Kernel, limits: Limits) -> Iterator[str]:
    """What of a kernel's main loop is more than it may be, in words."""
    loop = kernel.loop
    if loop is None:
        yield f"kernel {kernel.name} has no loop with products of tensor cores"
        return
    for found, most, what in (
        (
            loop.instructions_per_product,
            limits.instructions,
            "instructions for a product",
        ),
        (loop.wavefronts_per_product, limits.wavefronts, "wavefronts for a product"),
        (loop.barriers, limits.barriers, "barriers in its main loop"),
    ):
        if found > most:
            yield f"kernel {kernel.name} has {found:.3g} {what}, more than {most:g}"


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """What was compiled: a table per case and direction, a line per implementation."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.workload.name, []).append(row)
    width = max((len(_label(row)) for row in rows), default=0)
    for title, group in groups.items():
        shown = plain(
            show_edge=False,
            title=title,
            title_justify="left",
        )
        shown.add_column("", min_width=width, no_wrap=True)
        for heading, at_least in HEADINGS.items():
            shown.add_column(heading, justify="right", min_width=at_least)
        for row in group:
            shown.add_row(_label(row), *(_cells(row.facts) if row.facts else ()))
        yield shown


# With the widths that make all tables alike, and fit a terminal.
HEADINGS = {
    "laun-\nches": 5,
    "moved\nMB": 7,
    "of\nall": 4,
    "temp\nMB": 7,
    "peak\nMB": 7,
    "regs": 4,
    "spill\nB": 5,
    "smem\nKiB": 4,
}
LEGEND = (
    "moved: written by transposes and copies, and its share of all that is written;\n"
    "temp: memory beside arguments and results; peak: all memory; the last columns\n"
    "are of hand-written kernels, the largest of each: registers, bytes that a thread\n"
    "stores and loads in spills, shared memory"
)


def _label(row: Row) -> str:
    if row.facts:
        return row.implementation
    why = "refused" if row.unsupported else "failed"
    return f"{row.implementation}: {why}"


def _cells(facts: aot.Facts) -> Iterator[str]:
    memory, kernels = facts.memory, facts.kernels
    yield str(facts.num_launches)
    yield f"{facts.moved_bytes / 1e6:.1f}"
    written = facts.written_bytes
    yield f"{facts.moved_bytes / written:.0%}" if written else ""
    for size in (memory.temporary, memory.peak):
        yield f"{size / 1e6:.1f}"
    if kernels:
        yield str(max(kernel.registers for kernel in kernels))
        yield str(max(k.spill_store_bytes + k.spill_load_bytes for k in kernels))
        yield f"{max(kernel.shared_bytes for kernel in kernels) / 1024:.0f}"


def instructions(rows: Sequence[Row]) -> Table:
    """Of each hand-written kernel, which instructions it has, and how many."""
    shown = plain()
    for heading in ("kernel", "instructions", "loads and stores of a thread"):
        shown.add_column(heading)
    for row in rows:
        for kernel in row.facts.kernels if row.facts else ():
            shown.add_row(
                f"{row.workload.name}\n  {row.implementation}: {kernel.name}",
                *(
                    "\n".join(f"{times} × {what}" for what, times in counts.items())
                    for counts in (kernel.operations, kernel.accesses)
                ),
            )
    return shown


def loops(rows: Sequence[Row]) -> Table:
    """Of each hand-written kernel, how it is launched and what its main loop has."""
    shown = plain(
        caption="of the main loop, for each product of tensor cores: instructions, and "
        "wavefronts of shared memory; then barriers, waits for transfers, TMA copies "
        "and sums that products are added to"
    )
    shown.add_column("kernel", overflow="fold")
    for heading in (
        *("CTAs /\ncluster", "instr", "wave-\nfronts"),
        *("bar-\nriers", "waits", "TMA", "sums"),
    ):
        shown.add_column(heading, justify="right")
    for row in rows:
        for kernel in row.facts.kernels if row.facts else ():
            grid = kernel.grid
            shown.add_row(
                f"{row.workload.name}\n  {row.implementation}: {kernel.name}",
                f"{grid.ctas} / {grid.cluster}" if grid else "",
                *_of_loop(kernel.loop),
            )
    return shown


def _of_loop(loop: sass.Loop | None) -> Iterator[str]:
    if loop is None:
        return
    yield f"{loop.instructions_per_product:.2f}"
    yield f"{loop.wavefronts_per_product:.2f}"
    for count in (loop.barriers, loop.waits, loop.copies, loop.sums):
        yield str(count)


def compiled_for(environment: Environment) -> Environment:
    """This process's environment, with the chip and the compiler put in."""
    return dataclasses.replace(
        environment,
        device=aot.DEVICE,
        versions={**environment.versions, **aot.wheel_versions()},
    )
