"""Layers measured side by side: flags, tasks and rows of the programs that do so."""

import itertools
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import jax
from absl import flags
from rich.console import Console

import butterjax as bj
from benchmarks import results, runs, tables, workloads
from benchmarks.environment import Environment, memory_bytes
from benchmarks.side_by_side import Candidate, Outcome, measure_candidates
from butterjax.numerics import tolerance

# What a workload may take of the memory. Copies in float64, for the check, and what an
# implementation needs for itself come on top.
_SHARE_OF_MEMORY = 1 / 16


def define_flags(
    *,
    batch: int,
    time_limit: float,
    layouts: Sequence[workloads.Layout] = ("feature_last",),
) -> None:
    """Defines the flags that say how chains are measured, with these defaults."""
    flags.DEFINE_multi_integer(
        "batch", [batch], "Rows of x; may be given several times.", lower_bound=1
    )
    flags.DEFINE_multi_enum(
        "dtype",
        ["float32"],
        list(workloads.DTYPES),
        "Type of all arrays; may be given several times.",
    )
    flags.DEFINE_multi_enum(
        "layout",
        list(layouts),
        list(workloads.LAYOUTS),
        "feature_last for x of shape (batch, features), feature_first for the other.",
    )
    flags.DEFINE_multi_enum(
        "direction",
        list(workloads.DIRECTIONS),
        list(workloads.DIRECTIONS),
        "What is run.",
    )
    flags.DEFINE_multi_enum(
        "implementation",
        list(bj.implementations.names()),
        list(bj.implementations.names()),
        "Implementation to measure; may be given several times.",
    )
    flags.DEFINE_float(
        "time_limit",
        time_limit,
        "Seconds to spend timing each chain in each direction.",
        lower_bound=0.0,
    )
    flags.DEFINE_integer(
        "max_bytes",
        None,
        "Leave out what is larger: workloads by x, factors and y together, the dense "
        "layer and the implementation that multiplies out by the dense matrix. The "
        f"default is {_SHARE_OF_MEMORY:.0%} of the device's memory.",
        lower_bound=1,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random input.", lower_bound=0)


def planned(chains: Mapping[str, bj.Chain]) -> Iterator[workloads.Workload]:
    """The workloads that the flags ask for, for chains by the name of their case."""
    for (case, chain), batch, dtype, layout, direction in itertools.product(
        chains.items(),
        dict.fromkeys(flags.FLAGS.batch),
        dict.fromkeys(flags.FLAGS.dtype),
        dict.fromkeys(flags.FLAGS.layout),
        dict.fromkeys(flags.FLAGS.direction),
    ):
        yield workloads.Workload(case, chain, batch, dtype, layout, direction)


def main(
    chains: Mapping[str, bj.Chain],
    name: str,
    summaries: Sequence[Callable[[Sequence[results.Row]], object]],
    plot: Callable[[Sequence[results.Row], pathlib.Path], None] | None = None,
) -> int:
    """Measures chains as the flags say, and shows what came out.

    Args:
      chains: by how a flag would spell them.
      name: of the file of rows, and of the plot beside it.
      summaries: what is printed of the rows.
      plot: draws the rows into a file, if that is wanted.

    Returns:
      The exit status.
    """
    console = Console()
    outcome = _carry_out(chains, name, console)
    if outcome is None:
        return runs.FAILED
    if outcome.rows:
        for summary in summaries:
            console.print(summary(outcome.rows))
        if plot is not None:
            path = outcome.path.with_suffix(".png")
            plot(outcome.rows, path)
            console.print(f"plot: {path}", soft_wrap=True)
    return runs.finish(outcome, tables.problems(outcome.rows), console)


def _carry_out(
    chains: Mapping[str, bj.Chain], name: str, console: Console
) -> runs.Outcome[results.Row] | None:
    environment = Environment.now()
    console.print(f"on {environment.device}", style="bold")
    limit = flags.FLAGS.max_bytes or int(memory_bytes() * _SHARE_OF_MEMORY)
    todo = list(planned(chains))
    fitting = [workload for workload in todo if workload.floor_bytes <= limit]
    if len(fitting) < len(todo):
        console.print(
            f"{len(todo) - len(fitting)} of {len(todo)} workloads are left out: they "
            f"take more than --max_bytes={limit}"
        )
    tasks = [task(workload, environment, max_bytes=limit) for workload in fitting]
    return runs.carry_out(tasks, results.Row, name, console)


def task(
    workload: workloads.Workload, environment: Environment, *, max_bytes: int
) -> runs.Task[results.Row]:
    """Measures the dense layer and the implementations that the flags name.

    Args:
      workload: the case.
      environment: of the run.
      max_bytes: a dense matrix that is larger is not made.
    """
    implementations = list(dict.fromkeys(flags.FLAGS.implementation))
    has_dense_layer = workload.matrix_bytes <= max_bytes
    if not has_dense_layer:
        implementations = [name for name in implementations if name != "dense"]
    layer = [workloads.DENSE_LAYER] if has_dense_layer else []
    keys = {
        name: results.key(environment, workload, name, None)
        for name in (*layer, *implementations)
    }

    def run(wanted: Collection[results.Key]) -> list[results.Row]:
        found = rows(
            workload,
            [name for name in implementations if keys[name] in wanted],
            environment=environment,
            seed=flags.FLAGS.seed,
            time_limit=flags.FLAGS.time_limit,
            has_dense_layer=has_dense_layer,
        )
        # Where rows are added to a workload, its dense layer is only compared with.
        return [row for row in found if row.key in wanted]

    return runs.Task(workload.name, tuple(keys.values()), run)


def rows(
    workload: workloads.Workload,
    implementations: Sequence[str],
    *,
    environment: Environment,
    seed: int,
    time_limit: float,
    has_dense_layer: bool = True,
) -> list[results.Row]:
    """Measures implementations against the dense layer of the same size.

    Args:
      workload: the case.
      implementations: names in the registry.
      environment: of the run.
      seed: of the input and the order of calls.
      time_limit: seconds for the timing of all of them.
      has_dense_layer: whether to measure that at all; it may be too large.

    Returns:
      A row for the dense layer, then one for each implementation.
    """
    inputs = workloads.draw(workload, seed, has_kernel=has_dense_layer)
    layer = [workloads.DENSE_LAYER] if has_dense_layer else []
    names = [*layer, *implementations]
    exact = {
        is_layer: workloads.truth(workload, inputs, dense_layer=is_layer)
        for is_layer in {name == workloads.DENSE_LAYER for name in names}
    }
    candidates = {
        name: Candidate(
            *workloads.program(workload, name, inputs),
            expected=exact[name == workloads.DENSE_LAYER],
        )
        for name in names
    }
    outcomes = measure_candidates(
        candidates,
        reference=workloads.DENSE_LAYER,
        time_limit=time_limit,
        seed=seed,
        cache_bytes=environment.cache_bytes,
    )
    return [
        to_row(workload, name, outcome, environment=environment)
        for name, outcome in outcomes.items()
    ]


def to_row(
    workload: workloads.Workload,
    implementation: str,
    outcome: Outcome,
    *,
    environment: Environment,
    configuration: dict[str, int | bool | str | None] | None = None,
) -> results.Row:
    """The row of one implementation, in one configuration of its kernel."""
    default = bj.planning.choose(
        workload.chain, batch=workload.batch, axis=workload.axis
    )
    return results.Row(
        environment=environment,
        workload=workload,
        implementation=implementation,
        configuration=configuration,
        is_default=configuration is None and implementation == default,
        tolerance=tolerance(
            workload.dtype,
            1 if implementation == workloads.DENSE_LAYER else len(workload.chain),
            tf32=jax.default_backend() == "gpu",
        ),
        flops=workload.batch * workload.chain.flops,
        floor_bytes=workload.floor_bytes,
        measured=outcome.measured,
        unsupported=outcome.unsupported,
        failed=outcome.failed,
    )
