"""Compares chains of one size: radix-2, Monarch, and radix-2 multiplied out.

For each n, the chains n -> n of each family are timed in every implementation against
a dense layer, forward, and forward with the gradients.

  python -m benchmarks.chains
  python -m benchmarks.chains --n=512 --family=monarch --family=radix2 --batch=1
  python -m benchmarks.chains --n=256 --n=512 --n=1024 --n=2048 --n=4096 --n=8192 \\
      --n=16384 --batch=25088 --dtype=bfloat16 --layout=feature_last \\
      --layout=feature_first

The first takes a few minutes on a CPU; the last is for a GPU. A run that was stopped
goes on where it was, if it is started again in the same way.

Prints tables, and writes into --output_dir one JSON line per measurement (chains.jsonl,
added to as it goes) and a plot (chains.png).
"""

from collections.abc import Sequence

from absl import flags

import butterjax as bj
from benchmarks import cases, figures, layers, runs, tables

# Specs of `benchmarks.cases`. Into two factors, the radix-2 chain would be Monarch's.
FAMILIES = {
    "radix2": ("square_dyadic:{n}",),
    "monarch": ("monarch:{n}x{n}",),
    "collapsed": ("square_dyadic:{n}/3", "square_dyadic:{n}/4"),
}


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_multi_integer(
        "n",
        [256, 1024, 4096],
        "Features in and out, a power of two from 32 on; may be given several times.",
    )
    flags.DEFINE_multi_enum(
        "family",
        list(FAMILIES),
        list(FAMILIES),
        "radix2: log2 n factors of 2 x 2 blocks; monarch: two factors; collapsed: the "
        "radix-2 chain multiplied out into three and into four factors.",
    )
    flags.register_validator("n", _check_sizes)
    layers.define_flags(batch=256, time_limit=1.0)
    runs.define_flags("results/chains")


def _check_sizes(sizes: Sequence[int]) -> bool:
    for n in sizes:
        if n < 32 or n & (n - 1):
            raise flags.ValidationError(
                f"--n={n}: must be a power of two, and at least 32"
            )
    return True


def select(sizes: Sequence[int], families: Sequence[str]) -> dict[str, bj.Chain]:
    """The chains of some sizes and families, by their specs."""
    specs = [
        spec.format(n=n)
        for n in sizes
        for family in FAMILIES
        if family in families
        for spec in FAMILIES[family]
    ]
    return {spec: cases.parse_chain(spec) for spec in specs}


def main() -> int:
    chains = select(flags.FLAGS.n, flags.FLAGS.family)
    return layers.main(
        chains, "chains", (tables.compare, tables.overview), figures.compare
    )


if __name__ == "__main__":
    define_flags()
    runs.start(main)
