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

from absl import flags

from benchmarks import cases, figures, layers, runs, tables


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    cases.define_flag(
        cases.DEFAULT_SPECS,
        "Chain to measure; may be given several times.",
    )
    layers.define_flags(batch=512, time_limit=1.5)
    runs.define_flags("results/compare")


def main() -> int:
    chains = {spec: cases.parse_chain(spec) for spec in flags.FLAGS.chain}
    return layers.main(
        chains, "compare", (tables.compare, tables.summary), figures.compare
    )


if __name__ == "__main__":
    define_flags()
    runs.start(main)
