"""Finds the fastest configuration of each kernel on this GPU, for the library to use.

For each chain, dtype, layout and batch, configurations that fit the GPU are compiled,
checked against float64 and timed side by side: the one that the kernel's rule takes,
and those most like it. The fastest goes into the GPU's table in pallas_kernels/tuned;
the rule's, unless another is faster beyond the spread.

  python -m benchmarks.autotune
  python -m benchmarks.autotune --chain=monarch:1024x1024 --batch=4096 --dtype=bfloat16
  python -m benchmarks.autotune --kernel=chain --configurations=64 --minutes=30

Writes a row for each configuration into --output_dir (autotune.jsonl, added to as it
goes), and in the end the table, from the rows. A run that was stopped goes on where it
was, if it is started again in the same way. The status is 1 if a configuration is wrong
or failed; such a one never comes into the table.

Needs an NVIDIA GPU from Hopper on.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Collection, Sequence

from absl import flags
from rich.console import Console

from benchmarks import (
    attempts,
    cases,
    devices,
    files,
    kernel_rows,
    kernels,
    results,
    runs,
    suite_cases,
    tables,
    workloads,
)
from benchmarks.environment import Environment
from benchmarks.kernel_rows import Contestant
from benchmarks.kernels import Kernel
from benchmarks.workloads import Workload
from pallas_kernels.common import pieces, tuned

_TASK_SECONDS = 600.0


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    cases.define_flag(
        suite_cases.CHAINS,
        "Chain to tune for; may be given several times.",
    )
    flags.DEFINE_multi_enum(
        "kernel", list(kernels.KERNELS), list(kernels.KERNELS), "Kernels to tune."
    )
    flags.DEFINE_multi_enum(
        "dtype", ["bfloat16"], list(workloads.DTYPES), "Types of all arrays."
    )
    flags.DEFINE_multi_enum(
        "layout", list(workloads.LAYOUTS), list(workloads.LAYOUTS), "Layouts of x."
    )
    flags.DEFINE_multi_integer(
        "batch",
        [suite_cases.BATCH, 1024],
        "Rows of x; the library takes the nearest.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "precision",
        "default",
        ["default", "highest"],
        "Of products of float32; other types have but one.",
    )
    flags.DEFINE_integer(
        "configurations", 24, "How many to try for each chain.", lower_bound=1
    )
    flags.DEFINE_float(
        "time_limit", 3.0, "Seconds to spend timing each chain.", lower_bound=0.0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random input.", lower_bound=0)
    flags.DEFINE_string(
        "table_dir", str(tuned.FOLDER), "Folder of the tables that the library reads."
    )
    runs.define_flags("results/autotune")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What one entry of a table is for."""

    kernel: Kernel
    workload: Workload
    precision: str | None

    @property
    def name(self) -> str:
        """All that tells problems apart."""
        return f"{self.kernel.name} {self.workload.name} {self.precision or ''}".strip()

    def contestants(self, limit: int) -> list[Contestant]:
        """The configurations to try, the rule's first; empty if the kernel refuses."""
        try:
            found = kernels.candidates(
                self.kernel, self.workload, limit, precision=self.precision
            )
        except NotImplementedError:
            return []
        return [
            Contestant(self.kernel.implementation, self.kernel, config, self.precision)
            for config in found
        ]


def problems() -> list[Problem]:
    """What the flags ask for: the chains that kernels are launched on, each once."""
    precision = None if flags.FLAGS.precision == "default" else flags.FLAGS.precision
    found: dict[str, Problem] = {}
    for name, spec, dtype, layout, batch in itertools.product(
        dict.fromkeys(flags.FLAGS.kernel),
        dict.fromkeys(flags.FLAGS.chain),
        dict.fromkeys(flags.FLAGS.dtype),
        dict.fromkeys(flags.FLAGS.layout),
        dict.fromkeys(flags.FLAGS.batch),
    ):
        kernel = kernels.KERNELS[name]
        given = Workload(spec, cases.parse_chain(spec), batch, dtype, layout, "forward")
        try:
            launched = kernel.is_launched_on(given, precision)
        except NotImplementedError:
            continue
        for chain in launched:
            words = "".join("({},{},{},{})".format(*pattern) for pattern in chain)
            workload = dataclasses.replace(given, case=words, chain=chain)
            problem = Problem(kernel, workload, precision)
            found.setdefault(problem.name, problem)
    return list(found.values())


def fastest(rows: Sequence[results.Row]) -> results.Row | None:
    """The row to put into the table: the rule's, unless another is clearly faster.

    Args:
      rows: measured side by side, that of the rule's configuration first.

    Returns:
      One that is right; None if none is.
    """
    right = [row for row in rows if row.measured and not row.is_wrong]
    if not right:
        return None
    best, by_rule = min(right, key=lambda row: row.median), rows[0]
    if by_rule.measured is None or by_rule.is_wrong or best.measured is None:
        return best
    overlap = best.measured.seconds[2] >= by_rule.measured.seconds[0]
    return by_rule if overlap else best


def entry(problem: Problem, row: results.Row) -> tuned.Entry:
    """The table's entry for a problem."""
    work = problem.workload
    assert row.configuration is not None
    fields = dataclasses.fields(problem.kernel.config)
    values = {field.name: row.configuration[field.name] for field in fields}
    return tuned.Entry(
        kernel=problem.kernel.name,
        shapes=work.chain.shapes,
        dtype=work.dtype,
        axis=work.axis,
        pieces=pieces.count(work.dtype, problem.precision),
        batch=work.batch,
        config={n: value for n, value in values.items() if value is not None},
    )


def record(entries: Sequence[tuned.Entry], device: str, path: pathlib.Path) -> None:
    """Puts entries into the device's table, which is written whole or not at all."""
    text = path.read_text(encoding="utf-8") if path.exists() else None
    table = tuned.Table(device) if text is None else tuned.loads(text)
    for one in entries:
        table = table.with_entry(one)
    changed = table.dumps()
    if changed != text:
        files.write_whole(path, lambda part: part.write_text(changed, encoding="utf-8"))


def task(
    problem: Problem, found: Sequence[Contestant], environment: Environment
) -> runs.Task[results.Row]:
    """Measures the configurations for a problem, all of them, side by side."""

    def run(_: Collection[results.Key]) -> list[results.Row]:
        return kernel_rows.measure_all(
            problem.workload,
            found,
            environment=environment,
            seed=flags.FLAGS.seed,
            time_limit=flags.FLAGS.time_limit,
        )

    keys = tuple(one.key(environment, problem.workload) for one in found)
    return runs.Task(problem.name, keys, run)


def main() -> int:
    console = Console()
    if (reason := devices.problem()) is not None:
        console.print(f"error: autotune {reason}", soft_wrap=True)
        return runs.FAILED
    environment = Environment.now()
    table_file = tuned.path(environment.device, pathlib.Path(flags.FLAGS.table_dir))
    try:
        files.make_folder(table_file.parent)
        tuned.load(table_file)
    except (OSError, ValueError) as error:
        console.print(f"error: --table_dir: {error}", markup=False, soft_wrap=True)
        return runs.FAILED
    console.print(f"on {environment.device}", style="bold")
    todo = [
        (problem, found)
        for problem in problems()
        if (found := problem.contestants(flags.FLAGS.configurations))
    ]
    if not todo:
        console.print("error: no kernel takes any of these chains")
        return runs.FAILED
    outcome = runs.carry_out(
        attempts.guard(
            [task(problem, found, environment) for problem, found in todo],
            pathlib.Path(flags.FLAGS.output_dir) / "attempts.jsonl",
            seconds=_TASK_SECONDS,
        ),
        results.Row,
        "autotune",
        console,
    )
    if outcome is None:
        return runs.FAILED
    by_key = results.latest(outcome.rows)
    best: list[tuned.Entry] = []
    table = tables.plain()
    for heading in ("", "tried", "µs", "rule ÷ best", "fastest"):
        table.add_column(heading)
    for problem, found in todo:
        keys = [one.key(environment, problem.workload) for one in found]
        rows = [by_key[key] for key in keys if key in by_key]
        row = fastest(rows) if len(rows) == len(keys) else None
        if row is None:
            continue
        best.append(entry(problem, row))
        table.add_row(
            problem.name,
            str(len(rows)),
            f"{1e6 * row.median:.1f}",
            f"{rows[0].median / row.median:.2f}",
            ", ".join(f"{name}={value}" for name, value in best[-1].config.items()),
        )
    if best:
        console.print(table)
        record(best, environment.device, table_file)
        console.print(f"table: {table_file}", soft_wrap=True)
    return runs.finish(outcome, tables.problems(outcome.rows), console)


if __name__ == "__main__":
    define_flags()
    runs.start(main)
