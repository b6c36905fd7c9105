"""What `benchmarks.gpu_compile` compiles, how it judges what comes out and shows it."""

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.table import Table

from benchmarks import aot, results, workloads
from benchmarks.cases import parse_chain
from benchmarks.environment import Environment
from benchmarks.tables import plain

KERNELS = ("pallas", "pallas_chain")  # Implementations that are hand-written kernels.


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer to compile.

    Attributes:
      chain: as `benchmarks.cases.parse_chain` reads it.
      batch: rows of x.
      dtype: of all arrays.
      layout: one of `benchmarks.workloads.LAYOUTS`.
      launches: kernels that `pallas_chain` may start, one for all factors that should
        share a launch; None where that is not known, and kernels may refuse the case.
      too_much_for: implementations that XLA is known not to compile here.
      reordered: kernels that have XLA put weights in order before them, or multiply
        small blocks out: with `pallas` those of large blocks, features first, with
        `pallas_chain` those that do not stay in shared memory; see
        `pallas_kernels.factor.arrangement`.
      has_fused_gradients: whether all gradients of `pallas_chain` should come from one
        more launch.
    """

    chain: str
    batch: int = 4096
    dtype: str = "bfloat16"
    layout: workloads.Layout = "feature_last"
    launches: int | None = None
    too_much_for: tuple[str, ...] = ()
    reordered: tuple[str, ...] = ()
    has_fused_gradients: bool = False

    @property
    def name(self) -> str:
        """All that tells cases apart, in one word."""
        chain = self.chain.replace(" ", "")
        return f"{chain}/{self.batch}/{self.dtype}/{self.layout}"

    def workload(self, direction: workloads.Direction) -> workloads.Workload:
        """The case in a direction."""
        return workloads.Workload(
            case=self.chain,
            chain=parse_chain(self.chain),
            batch=self.batch,
            dtype=self.dtype,
            layout=self.layout,
            direction=direction,
        )


# The last ones are patterns of arXiv 2405.15013, in its batch and half precision: the
# smallest, and those with the widest layer and with the most weights.
CASES = (
    Case("monarch:512x512", launches=1, has_fused_gradients=True),
    Case("monarch:512x512", dtype="float32", launches=1),
    Case("monarch:768x768", launches=1, reordered=("pallas_chain",)),  # 24 × 32.
    Case("monarch:1024x1024", launches=1, has_fused_gradients=True),
    Case(
        "monarch:1024x1024",
        dtype="float32",
        launches=1,
        reordered=("pallas_chain",),  # Twice two pieces leave no room for the tile.
    ),
    Case(
        "monarch:1024x1024",
        layout="feature_first",
        launches=1,
        has_fused_gradients=True,
    ),
    Case("monarch:2048x2048", launches=1),
    Case(
        "monarch:2048x2048",
        layout="feature_first",
        launches=1,
        has_fused_gradients=True,
    ),
    Case("monarch:768x3072", launches=2),  # In one it should take longer.
    Case("monarch:768x3072", layout="feature_first", launches=1),
    Case("monarch:3072x768", launches=1),
    Case(
        "square_dyadic:1024",
        launches=1,
        reordered=("pallas_chain",),
        has_fused_gradients=True,
    ),
    # More than one CTA has room for: over a cluster, the last one over none either.
    Case("square_dyadic:4096", launches=1, reordered=("pallas_chain",)),
    # Small blocks, without tensor cores: in parts along d, and along a.
    Case("(1,2,2,4096)", launches=1),
    Case("(64,8,8,1)", batch=25088, layout="feature_first", launches=1),
    Case(
        "monarch:4096x4096",
        batch=25088,
        launches=1,
        reordered=("pallas_chain",),  # Fetched anew for each tile should be faster.
    ),
    Case("monarch:4096x4096", batch=25088, layout="feature_first", launches=1),
    Case("(1,16,16,512)(16,16,16,32)(256,32,32,1)", batch=25088, launches=1),
    Case("monarch:16384x16384", launches=2),
    Case("(1,48,48,1)", batch=25088, dtype="float16", launches=1),
    Case("(96,192,192,4)", batch=25088, dtype="float16", launches=1),
    Case(
        "(96,192,192,4)",
        batch=25088,
        dtype="float16",
        layout="feature_first",
        launches=1,
    ),
    Case("(96,192,192,4)", batch=25088, dtype="float32", launches=1),
    Case("(1,96,96,6)", batch=25088, dtype="float16", launches=1),
    Case(
        "(4,256,256,4)",
        batch=25088,
        dtype="float16",
        layout="feature_first",
        launches=1,
        reordered=KERNELS,  # Of large blocks a copy of w is predicted to be faster.
    ),
    Case("(3,264,520,1)", launches=1),  # wgmma, in tiles beyond the ends of blocks.
    # A scatter takes more blocks than a launch can have.
    Case(
        "(4,1024,1024,16)",
        batch=25088,
        dtype="float16",
        launches=1,
        too_much_for=("bcsr",),
    ),
)


def select(patterns: Sequence[str]) -> list[Case]:
    """Those of `CASES` whose name begins with one of the patterns, and new ones.

    Raises:
      ValueError: if a pattern is the start of none of them, nor the whole name of a
        case, CHAIN/BATCH/DTYPE/LAYOUT.
    """
    chosen: dict[str, Case] = {}
    for pattern in patterns:
        globs = f"{pattern}*"
        found = [case for case in CASES if fnmatch.fnmatchcase(case.name, globs)]
        chosen |= {case.name: case for case in found or [new_case(pattern)]}
    return list(chosen.values())


def new_case(name: str) -> Case:
    """The case CHAIN/BATCH/DTYPE/LAYOUT.

    Raises:
      ValueError: if it is none.
    """
    chain, *rest = name.split("/")
    if len(rest) != 3:
        raise ValueError(f"no case is named {name!r}; see --help")
    batch, dtype, layout = rest
    parse_chain(chain)
    if not batch.isdecimal() or int(batch) < 1:
        raise ValueError(f"{name!r}: the batch must be a number above 0, got {batch!r}")
    if dtype not in workloads.DTYPES:
        known = ", ".join(workloads.DTYPES)
        raise ValueError(f"{name!r}: the dtype must be one of {known}; got {dtype!r}")
    for known_layout in workloads.LAYOUTS:
        if layout == known_layout:
            return Case(chain, int(batch), dtype, known_layout)
    known = ", ".join(workloads.LAYOUTS)
    raise ValueError(f"{name!r}: the layout must be one of {known}; got {layout!r}")


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
    if direction != "forward":  # XLA multiplies, or adds up, for those of the weights.
        is_fused = implementation == "pallas_chain" and case.has_fused_gradients
        return aot.kernel_problems(
            facts, max_launches=2 if is_fused else None, weight_bytes=None
        )
    work = case.workload(direction)
    return aot.kernel_problems(
        facts,
        max_launches=(
            case.launches if implementation == "pallas_chain" else len(work.chain)
        ),
        weight_bytes=work.weight_bytes,
        alone=case.launches is not None and implementation not in case.reordered,
    )


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


def compiled_for(environment: Environment) -> Environment:
    """This process's environment, with the chip and the compiler put in."""
    return dataclasses.replace(
        environment,
        device=aot.DEVICE,
        versions={**environment.versions, **aot.wheel_versions()},
    )
