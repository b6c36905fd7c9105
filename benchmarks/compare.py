"""Compares butterfly chains with dense layers, and their implementations.

For each chain, in each layout and direction, every implementation is timed against a
dense layer of the same size, call by call in turn, on random input; outputs and
gradients are checked against float64.

  python -m benchmarks.compare
  python -m benchmarks.compare --chain=monarch:768x3072 --batch=4096 --dtype=bfloat16
  python -m benchmarks.compare --chain="(1,64,64,16)(16,64,256,1)" --batch=1

Prints a table, and writes into --output_dir one JSON line per measurement
(compare.jsonl, appended to as it goes) and a plot (compare.png).
"""

import concurrent.futures
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.progress import Progress

import butterjax as bj
from benchmarks import cases, figures, files, measure, results, tables, workloads
from butterjax.numerics import tolerance


def _check_chains(specs: Sequence[str]) -> bool:
    try:
        return cases.can_parse(specs)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from error


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_multi_string(
        "chain",
        list(cases.DEFAULT_SPECS),
        f"Chain to measure; may be given several times. {cases.SPEC_HELP}.",
    )
    flags.DEFINE_integer("batch", 512, "Rows of x.", lower_bound=1)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16", "float16"], "Type of all arrays."
    )
    flags.DEFINE_multi_enum(
        "layout",
        ["feature_last"],
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
        1.5,
        "Seconds to spend timing each chain in each direction.",
        lower_bound=0.0,
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random input.", lower_bound=0)
    flags.DEFINE_string(
        "output_dir", "results/compare", "Folder for the rows and the plot."
    )
    flags.register_validator("chain", _check_chains)


def planned() -> Iterator[workloads.Workload]:
    """The workloads that the flags ask for."""
    for case, layout, direction in itertools.product(
        flags.FLAGS.chain, flags.FLAGS.layout, flags.FLAGS.direction
    ):
        yield workloads.Workload(
            case=case,
            chain=cases.parse_chain(case),
            batch=flags.FLAGS.batch,
            dtype=flags.FLAGS.dtype,
            layout=layout,
            direction=direction,
        )


@dataclasses.dataclass(frozen=True)
class Built:
    """A compiled call, ready to run, and the seconds it took to trace and compile."""

    run: Callable[[], Any]
    seconds: float


def build(
    workload: workloads.Workload, implementation: str, inputs: workloads.Inputs
) -> Built | str:
    """The call to time, or the reason why the implementation refuses it."""
    function, arguments = workloads.call(
        workload, implementation, inputs, workload.dtype
    )
    start = time.perf_counter()
    try:
        lowered = jax.jit(function).lower(*arguments)
    except NotImplementedError as error:
        return str(error)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    return Built(functools.partial(compiled, *arguments), seconds)


def measure_all(
    workload: workloads.Workload,
    implementations: Sequence[str],
    *,
    environment: results.Environment,
    seed: int,
    time_limit: float,
) -> list[results.Row]:
    """Times the implementations against the dense layer on one workload."""
    names = [workloads.DENSE_LAYER, *implementations]
    inputs = workloads.draw(workload, seed)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = pool.map(lambda name: build(workload, name, inputs), names)
        built = dict(zip(names, made, strict=True))
    ready = {name: one for name, one in built.items() if isinstance(one, Built)}
    samples = measure.interleave(
        {name: one.run for name, one in ready.items()},
        time_limit=time_limit,
        seed=seed,
    )
    exact_layer = workloads.truth(workload, inputs, dense_layer=True)
    exact_chain = workloads.truth(workload, inputs, dense_layer=False)
    default = bj.planning.choose(
        workload.chain, batch=workload.batch, axis=workload.axis
    )
    rows = []
    for name, one in built.items():
        is_layer = name == workloads.DENSE_LAYER
        measured = None
        if isinstance(one, Built):
            measured = results.Measurement(
                seconds=samples[name].quartiles(),
                num_samples=len(samples[name].seconds),
                ratio_to_dense_layer=samples[name].ratio_to(
                    samples[workloads.DENSE_LAYER]
                ),
                compile_seconds=one.seconds,
                error=workloads.worst_error(
                    one.run(), exact_layer if is_layer else exact_chain
                ),
            )
        row = results.Row(
            environment=environment,
            case=workload.case,
            chain=workload.chain.shapes,
            batch=workload.batch,
            dtype=workload.dtype,
            layout=workload.layout,
            direction=workload.direction,
            implementation=name,
            is_default=name == default,
            tolerance=tolerance(
                workload.dtype,
                1 if is_layer else len(workload.chain),
                tf32=jax.default_backend() == "gpu",
            ),
            flops=workload.batch * workload.chain.flops,
            floor_bytes=workload.floor_bytes,
            measured=measured,
            unsupported=one if isinstance(one, str) else None,
        )
        rows.append(row)
    return rows


def main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    console = Console()
    output_dir = pathlib.Path(flags.FLAGS.output_dir)
    try:
        files.make_folder(output_dir)
    except OSError as error:
        console.print(f"error: --output_dir={output_dir}: {error}")
        return 1
    rows_file = output_dir / "compare.jsonl"
    environment = results.Environment.now()
    todo = list(planned())
    rows: list[results.Row] = []
    interrupted = False
    console.print(
        f"batch {flags.FLAGS.batch}, {flags.FLAGS.dtype}, on {environment.device}",
        style="bold",
    )
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("", total=len(todo))
            for workload in todo:
                progress.update(
                    bar, description=f"{workload.case}, {workload.direction}"
                )
                new = measure_all(
                    workload,
                    flags.FLAGS.implementation,
                    environment=environment,
                    seed=flags.FLAGS.seed,
                    time_limit=flags.FLAGS.time_limit,
                )
                results.append(rows_file, new)
                rows += new
                progress.advance(bar)
    except KeyboardInterrupt:
        interrupted = True
    if rows:
        console.print(tables.compare(rows))
        console.print(tables.summary(rows))
        figures.compare(rows, output_dir / "compare.png")
        console.print(f"rows: {rows_file}\nplot: {output_dir / 'compare.png'}")
    if interrupted:
        console.print(f"interrupted after {len(rows)} measurements; rows are kept")
        return 130
    wrong = [row for row in rows if row.is_wrong]
    for row in wrong:
        console.print(
            f"WRONG: {row.implementation}, {tables.title(row)}: an output is further "
            f"from float64 than {row.tolerance:.0e}"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    define_flags()
    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    app.run(main)
