"""Compares butterfly chains with dense layers, and their implementations.

For each chain, in each layout and direction, every implementation is timed against a
dense layer of the same size, call by call in turn, on random input; outputs and
gradients are checked against float64.

  python -m benchmarks.compare
  python -m benchmarks.compare --chain=monarch:768x3072 --batch=4096 --dtype=bfloat16
  python -m benchmarks.compare --chain="(1,64,64,16)(16,64,256,1)" --batch=1

Prints a table, and writes into --output_dir one JSON line per measurement
(compare.jsonl, added to as it goes) and a plot (compare.png). A run that was stopped
goes on where it was, if it is started again in the same way.
"""

from collections.abc import Sequence

from absl import flags
from rich.console import Console

from benchmarks import cases, figures, layers, runs, tables


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
    flags.register_validator("chain", _check_chains)
    layers.define_flags(batch=512, time_limit=1.5)
    runs.define_flags("results/compare")


def main() -> int:
    console = Console()
    chains = {spec: cases.parse_chain(spec) for spec in flags.FLAGS.chain}
    outcome = layers.carry_out(chains, "compare", console)
    if outcome is None:
        return runs.FAILED
    rows = outcome.rows
    if rows:
        console.print(tables.compare(rows))
        console.print(tables.summary(rows))
        plot = outcome.path.with_suffix(".png")
        figures.compare(rows, plot)
        console.print(f"plot: {plot}", soft_wrap=True)
    return runs.finish(outcome, tables.problems(rows), console)


if __name__ == "__main__":
    define_flags()
    runs.start(main)
