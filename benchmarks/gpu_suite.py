"""Checks the hand-written kernels on an NVIDIA GPU, then measures them.

In this order, each part only if all before it are done:

  correctness   every kernel against float64, each dtype and layout, ragged batches,
                bias and activations, gradients; if anything is wrong, nothing is
                measured
  ceilings      bytes copied and multiply-adds done per second, anew in every run
  fused         chains of two factors, n = 1024, 2048, 4096, bfloat16
  training      these and some others, forward and backward
  factors       single factors: patterns of arXiv 2405.15013, float16
  radix         radix-2 chains
  chains        other chains, n = 256 to 16384, other dtypes and smaller batches
  more_factors  single factors in bfloat16 and float32
  networks      a transformer's MLP block and a whole one, inference and training

Kernels are compared with XLA's implementations and with a dense layer of the same size.

  python -m benchmarks.gpu_suite
  python -m benchmarks.gpu_suite --part=correctness --kernel=chain
  python -m benchmarks.gpu_suite --check="chain monarch:1024x1024 1000 bfloat16*"
  python -m benchmarks.gpu_suite --part=factors --factors=904 --layout=feature_last

It stops after --minutes, with exit status 75 if anything is left. The same command then
goes on from there: what has been checked or measured is in --output_dir (checks.jsonl,
ceilings.jsonl, gpu_suite.jsonl, networks.jsonl), a row for each, added as it comes. So
it does after it was killed; what it was at then comes last, in case that is what killed
it. The status is 1 if a kernel is wrong, or something failed when all is done. Flags
narrow what is checked and what is measured alike.

Needs JAX with CUDA, absl-py, flax, numpy, optax and rich; a GPU from Hopper on.
"""

import fnmatch
import functools
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import (
    attempts,
    ceilings,
    devices,
    jsonl,
    kernel_checks,
    kernel_rows,
    kernels,
    network_rows,
    networks,
    results,
    runs,
    suite_cases,
    tables,
    targets,
    workloads,
)
from benchmarks.environment import Environment

_MINUTES = 8.0
_CONTESTANT = 4  # Where in a row's key what comes next tells who was measured.
_TASK_SECONDS = 120.0  # A workload or a check takes a few.


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_multi_enum(
        "part",
        list(suite_cases.PARTS),
        list(suite_cases.PARTS),
        "What to do. Correctness always comes first, and what was checked before with "
        "the same sources counts.",
    )
    flags.DEFINE_string(
        "check",
        "*",
        "Make only the checks that are written so, * standing for anything, and "
        "nothing else; their names are the words that tell of a failure.",
    )
    flags.DEFINE_multi_enum(
        "kernel", list(kernels.KERNELS), list(kernels.KERNELS), "Kernels to look at."
    )
    flags.DEFINE_multi_enum(
        "dtype", list(suite_cases.DTYPES), list(suite_cases.DTYPES), "Types to look at."
    )
    flags.DEFINE_multi_enum(
        "layout",
        list(workloads.LAYOUTS),
        list(workloads.LAYOUTS),
        "Layouts to look at.",
    )
    flags.DEFINE_integer(
        "factors",
        suite_cases.NUM_FACTORS,
        "How many of the 904 patterns of arXiv 2405.15013, spread over all sizes.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "configurations",
        suite_cases.NUM_CONFIGURATIONS,
        "How many configurations of each kernel to try on each chain, beside its own "
        "choice; `python -m benchmarks.autotune` tries more.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "time_limit", 1.0, "Seconds to spend timing each workload.", lower_bound=0.0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random input.", lower_bound=0)
    runs.define_flags("results/gpu_suite")
    flags.FLAGS.set_default("minutes", _MINUTES)


def main() -> int:
    console = Console()
    if (problem := devices.problem()) is not None:
        console.print(f"error: gpu_suite {problem}", soft_wrap=True)
        return runs.FAILED
    environment = Environment.now()
    console.print(f"on {environment.device}", style="bold")
    until = runs.deadline()
    attempted = pathlib.Path(flags.FLAGS.output_dir) / "attempts.jsonl"
    guard = functools.partial(attempts.guard, path=attempted, seconds=_TASK_SECONDS)
    to_check = check_tasks(environment)
    if not to_check:
        console.print("error: no check is written so, of these kernels and types")
        return runs.FAILED
    checked = runs.carry_out(
        guard(to_check), kernel_checks.Row, "checks", console, until
    )
    if checked is None:
        return runs.FAILED
    problems = kernel_checks.summary(checked.rows)
    num_refused = sum(row.unsupported is not None for row in checked.rows)
    console.print(
        f"correctness: {len(checked.rows)} checks, {num_refused} of them refused, "
        f"{len(problems)} problems"
    )
    parts = [part for part in suite_cases.PARTS if part in flags.FLAGS.part]
    if flags.FLAGS.check != "*":
        parts = ["correctness"]
    if not checked.is_complete or problems or parts == ["correctness"]:
        return runs.finish(checked, problems, console)
    ceiling = runs.carry_out(
        [
            ceilings.task(
                list(dict.fromkeys(flags.FLAGS.dtype)),
                environment,
                sizes=ceilings.SIZES,
                time_limit=flags.FLAGS.time_limit,
            )
        ],
        ceilings.Row,
        "ceilings",
        console,
        until,
    )
    if ceiling is None:
        return runs.FAILED
    if not ceiling.is_complete or parts == ["ceilings"]:
        return runs.finish(ceiling, (), console)
    tasks = [task for part in parts for task in row_tasks(part, environment)]
    measured = runs.carry_out(guard(tasks), results.Row, "gpu_suite", console, until)
    if measured is None:
        return runs.FAILED
    problems = []
    if measured.path.exists():
        rows = of_tasks(tasks, jsonl.load(measured.path, results.Row))
        report(rows, jsonl.load(ceiling.path, ceilings.Row), console)
        problems = tables.problems(rows)
    status = runs.finish(measured, problems, console)
    if status == runs.INTERRUPTED:
        return status
    if measured.num_left:  # What failed is told again when all is done.
        return runs.UNFINISHED
    if "networks" not in parts:
        return status
    whole = runs.carry_out(
        guard(network_tasks(environment)), network_rows.Row, "networks", console, until
    )
    if whole is None:
        return runs.FAILED
    console.print(networks.table(whole.rows))
    return runs.finish(whole, networks.problems(whole.rows), console) or status


def of_tasks(
    tasks: Sequence[runs.Task[results.Row]], rows: Sequence[results.Row]
) -> list[results.Row]:
    """Those rows of a file that belong to tasks, other configurations too."""
    wanted = {key[:_CONTESTANT] for task in tasks for key in task.keys}
    latest = results.latest(rows)
    return [row for key, row in latest.items() if key[:_CONTESTANT] in wanted]


def check_tasks(environment: Environment) -> list[runs.Task[kernel_checks.Row]]:
    """The checks that the flags ask for, one task each."""
    chosen = [kernels.KERNELS[name] for name in dict.fromkeys(flags.FLAGS.kernel)]
    wanted = [
        check
        for check in kernel_checks.checks(chosen, flags.FLAGS.dtype, flags.FLAGS.layout)
        if fnmatch.fnmatchcase(check.name, flags.FLAGS.check)
    ]
    return kernel_checks.tasks(wanted, environment, seed=flags.FLAGS.seed)


def row_tasks(
    part: suite_cases.Part, environment: Environment
) -> Iterator[runs.Task[results.Row]]:
    """The measurements of a part, one task for each workload."""
    for workload in suite_cases.workloads_of(
        part, flags.FLAGS.dtype, flags.FLAGS.layout, num_factors=flags.FLAGS.factors
    ):
        yield row_task(workload, environment)


def row_task(
    workload: workloads.Workload, environment: Environment
) -> runs.Task[results.Row]:
    """Measures a workload; all of it, as only what ran side by side is compared."""
    names = list(dict.fromkeys(flags.FLAGS.kernel))

    def run(_: Collection[results.Key]) -> list[results.Row]:
        return kernel_rows.measure_all(
            workload,
            suite_cases.contestants(workload, names, flags.FLAGS.configurations),
            environment=environment,
            seed=flags.FLAGS.seed,
            time_limit=flags.FLAGS.time_limit,
        )

    # Which other configurations there are is found out when it runs.
    keys = tuple(
        one.key(environment, workload)
        for one in suite_cases.implementations(workload, names)
    )
    return runs.Task(workload.name, keys, run)


def network_tasks(environment: Environment) -> list[runs.Task[network_rows.Row]]:
    """Whole networks with dense layers, with XLA's implementations and with kernels."""
    names = suite_cases.network_implementations(flags.FLAGS.kernel)
    return [
        networks.task(
            workload,
            environment,
            names,
            seed=flags.FLAGS.seed,
            time_limit=4 * flags.FLAGS.time_limit,
        )
        for workload in suite_cases.networks_of(flags.FLAGS.dtype)
    ]


def report(
    rows: Sequence[results.Row],
    ceiling_rows: Sequence[ceilings.Row],
    console: Console,
) -> None:
    """Prints what was measured, the ceilings, and which targets are met."""
    of_run = targets.rates(ceiling_rows)
    console.print(overview(rows, of_run))
    for run, rates in list(of_run.items())[-1:]:
        products = ", ".join(
            f"{dtype} {rate / 1e12:.0f}" for dtype, rate in rates.matmul.items()
        )
        console.print(
            f"{run}: copies {rates.copy / 1e12:.2f} TB/s, read and written; "
            f"products {products} TFLOP/s",
            soft_wrap=True,
        )
    table = tables.plain()
    for heading in ("target", "at least", "", "measured"):
        table.add_column(heading)
    wanted = targets.targets(flags.FLAGS.factors)
    for judgement in targets.judge(wanted, rows, ceiling_rows):
        target = judgement.target
        share = "" if target.share == 1 else f" on {target.share:.0%}"
        table.add_row(
            *(target.text, f"{target.threshold:g}{share}"),
            *(judgement.verdict, judgement.found),
        )
    console.print(table)


def overview(rows: Sequence[results.Row], of_run: Mapping[str, targets.Rates]) -> Table:
    """The best kernel on each workload, against XLA's best and the ceilings."""
    table = tables.plain(
        caption="µs: median of the best kernel; copy, products: the share of the time "
        "that the floor's bytes, and the chain's operations, take at the ceilings",
    )
    table.add_column("")
    for heading in ("kernel", "µs", "XLA's best ÷", "copy", "products"):
        table.add_column(heading, justify="right")
    faster = targets.faster_than(suite_cases.XLA)
    for workload, group in targets.by_workload(rows).items():
        best = targets.best_kernel(group)
        rates = of_run.get(group[0].environment.run)
        if best is None or rates is None:
            table.add_row(workload.name, "none" if best is None else "")
            continue
        ratio = faster(group, rates)
        shares = [rates.memory_seconds(best) / best.median]
        if workload.dtype in rates.matmul:
            shares.append(rates.compute_seconds(best) / best.median)
        table.add_row(
            *(workload.name, best.implementation, f"{1e6 * best.median:.1f}"),
            "" if ratio is None else f"{ratio:.2f}",
            *(f"{share:.0%}" for share in shares),
        )
    return table


if __name__ == "__main__":
    define_flags()
    runs.start(main)
