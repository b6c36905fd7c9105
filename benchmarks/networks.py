"""Measures whole networks, with dense layers and with butterfly layers in their places.

ViT-S/16 and GPT-2 medium, with the chains of arXiv 2405.15013 where that has them, and
MLPs as in Llama; inference and one training step (AdamW), end to end by the wall clock.
Outputs, losses and gradients are checked against float64.

  python -m benchmarks.networks
  python -m benchmarks.networks --network=vit_s16 --batch=1 --batch=64 --mode=inference
  python -m benchmarks.networks --sizes=full --dtype=bfloat16 --batch=1 --batch=32 \\
      --implementation=pallas_chain --implementation=bmm

The first is of networks cut down to two blocks, and takes a few minutes on a CPU; the
last is for a GPU. A run that was stopped goes on where it was, if it is started again
in the same way.

Prints a table, and writes into --output_dir one JSON line per measurement
(networks.jsonl, added to as it goes).
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

import butterjax as bj
from benchmarks import models, network_rows, results, runs, tables, workloads
from benchmarks.environment import Environment
from benchmarks.network_rows import DEFAULT, DENSE_LAYERS, MODES, Row, Workload

# What differs where --sizes=small; a CPU is done with these soon.
_SMALL = {
    "vit_s16": {"depth": 2},
    "gpt2_medium": {"depth": 2, "tokens": 128, "classes": 8192},
    "llama_mlp": {"width": 1024, "hidden": 2816, "tokens": 128},
}
_OWN_SIZES = {
    "depth": "Number of blocks",
    "tokens": "Tokens of a sequence of text (images have 197)",
    "classes": "Size of the vocabulary, or number of classes of images",
}


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    networks = list(models.NETWORKS)
    flags.DEFINE_multi_enum("network", networks, networks, "Network to measure.")
    flags.DEFINE_enum(
        "sizes",
        "small",
        ["small", "full"],
        "full for the networks as they are, small for fewer blocks, tokens and words.",
    )
    for name, text in _OWN_SIZES.items():
        flags.DEFINE_integer(
            name, None, f"{text}, if not as --sizes says.", lower_bound=1
        )
    flags.DEFINE_multi_integer(
        "batch", [1, 4], "Images or sequences at once.", lower_bound=1
    )
    flags.DEFINE_enum("dtype", "float32", list(workloads.DTYPES), "Type to compute in.")
    flags.DEFINE_multi_enum("mode", list(MODES), list(MODES), "What is run.")
    flags.DEFINE_multi_enum(
        "implementation",
        [DEFAULT],
        [DEFAULT, *bj.implementations.names()],
        f"Implementation of the butterfly layers; {DEFAULT} for the one that is taken "
        "where none is named. May be given several times.",
    )
    flags.DEFINE_float(
        "time_limit", 4.0, "Seconds to spend timing each workload.", lower_bound=0.0
    )
    flags.DEFINE_integer("seed", 0, "Seed of the random input.", lower_bound=0)
    runs.define_flags("results/networks")


def planned() -> Iterator[Workload]:
    """The workloads that the flags ask for."""
    for network, mode, batch in itertools.product(
        dict.fromkeys(flags.FLAGS.network),
        dict.fromkeys(flags.FLAGS.mode),
        dict.fromkeys(flags.FLAGS.batch),
    ):
        yield Workload(network, _sizes(network), batch, flags.FLAGS.dtype, mode)


def _sizes(network: str) -> models.Sizes:
    sizes = models.NETWORKS[network].sizes
    if flags.FLAGS.sizes == "small":
        sizes = dataclasses.replace(sizes, **_SMALL[network])
    own = {name: flags.FLAGS[name].value for name in _OWN_SIZES}
    if network == "vit_s16":
        del own["tokens"]
    if not sizes.classes:
        del own["classes"]
    return dataclasses.replace(sizes, **{n: v for n, v in own.items() if v is not None})


def task(
    workload: Workload,
    environment: Environment,
    implementations: Sequence[str],
    *,
    seed: int,
    time_limit: float,
) -> runs.Task[Row]:
    """Measures the network with dense layers, and with butterfly layers.

    Arguments are those of `benchmarks.network_rows.rows`.
    """
    keys = {
        name: results.key(environment, workload, name, None)
        for name in (DENSE_LAYERS, *implementations)
    }

    def run(wanted: Collection[results.Key]) -> list[Row]:
        found = network_rows.rows(
            workload,
            [name for name in implementations if keys[name] in wanted],
            environment=environment,
            seed=seed,
            time_limit=time_limit,
        )
        # Where rows are added to a workload, its dense layers are only compared with.
        return [row for row in found if row.key in wanted]

    return runs.Task(workload.name, tuple(keys.values()), run)


def table(rows: Sequence[Row]) -> Table:
    """Latency, throughput, size and memory of each network."""
    shown = tables.plain(
        caption="ms: median; ±: half the interquartile range, ~ where noisy; peak: "
        "memory, by XLA's analysis; error: against float64",
    )
    shown.add_column("", no_wrap=True)
    for heading in ("ms", "±", "÷ dense", "per s", "M weights", "peak MB", "error"):
        shown.add_column(heading, justify="right")
    for workload, group in itertools.groupby(rows, lambda row: row.workload):
        shown.add_row(workload.name, style="bold")
        for row in group:
            if (measured := row.measured) is None:
                why = "failed" if row.failed else "unsupported"
                shown.add_row(f"  {row.implementation}: {why}")
                continue
            low, middle, high = measured.seconds
            ratio, error = measured.ratio_to_dense_layer, measured.error
            peak = measured.peak_bytes
            shown.add_row(
                f"  {row.implementation}",
                f"{1e3 * middle:.2f}",
                f"{(high - low) / 2 / middle:.0%}" + "~" * measured.is_noisy,
                f"{ratio[1]:.2f}" if ratio else "",
                f"{workload.batch / middle:.1f}",
                f"{row.num_weights / 1e6:.1f}",
                "" if peak is None else f"{peak / 1e6:.0f}",
                ("not finite" if error is None else f"{error:.0e}")
                + " WRONG" * row.is_wrong,
            )
        shown.add_section()
    return shown


def problems(rows: Sequence[Row]) -> list[str]:
    """What is wrong with rows, a line each."""
    found = []
    for row in rows:
        name = f"{row.implementation}, {row.workload.name}"
        if row.failed:
            found.append(f"{name}: {row.failed}")
        if row.is_wrong:
            found.append(
                f"{name}: WRONG, further from float64 than {row.tolerance:.0e}"
            )
    return found


def main() -> int:
    console = Console()
    environment = Environment.now()
    console.print(f"on {environment.device}", style="bold")
    tasks = [
        task(
            workload,
            environment,
            list(dict.fromkeys(flags.FLAGS.implementation)),
            seed=flags.FLAGS.seed,
            time_limit=flags.FLAGS.time_limit,
        )
        for workload in planned()
    ]
    outcome = runs.carry_out(tasks, Row, "networks", console)
    if outcome is None:
        return runs.FAILED
    if outcome.rows:
        console.print(table(outcome.rows))
    return runs.finish(outcome, problems(outcome.rows), console)


if __name__ == "__main__":
    define_flags()
    runs.start(main)
