"""Measures single factors: the grid of patterns of arXiv 2405.15013.

Each pattern (a, b, c, d) is a layer of one factor. Every implementation is timed on it
against a dense layer of the same size, forward, and forward with its gradients.

  python -m benchmarks.ks_grid
  python -m benchmarks.ks_grid --patterns="(1,*,*,4)" --layout=feature_first
  python -m benchmarks.ks_grid --subset=tuned --batch=25088 --dtype=float32 \\
      --dtype=float16 --layout=feature_last --layout=feature_first

The first takes a few minutes on a CPU. The last is the whole grid, for a GPU. A run
that was stopped goes on where it was, if it is started again in the same way.

Prints who is fastest where, and writes into --output_dir one JSON line per measurement
(ks_grid.jsonl, added to as it goes).
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

import butterjax as bj
from benchmarks import layers, patterns, runs, tables


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_enum(
        "subset",
        "quick",
        list(patterns.SUBSETS),
        "Patterns to measure: "
        + "; ".join(
            f"{name} ({len(subset())}): {subset.__doc__}"
            for name, subset in patterns.SUBSETS.items()
        ),
    )
    flags.DEFINE_multi_string(
        "patterns",
        ["*"],
        "Of those, only the ones written so, as (a,b,c,d); * stands for anything. May "
        "be given several times.",
    )
    flags.register_multi_flags_validator(["subset", "patterns"], _check_patterns)
    layers.define_flags(
        batch=512,
        time_limit=1.0,
        layouts=("feature_last", "feature_first"),
    )
    runs.define_flags("results/ks_grid")


def _check_patterns(values: Mapping[str, Any]) -> bool:
    for wanted in values["patterns"]:
        if not select(values["subset"], [wanted]):
            raise flags.ValidationError(
                f"--patterns={wanted}: no pattern of --subset={values['subset']} is "
                "written so"
            )
    return True


def select(subset: str, wanted: Sequence[str]) -> dict[str, bj.Chain]:
    """Chains of one factor, by how their pattern is written.

    Args:
      subset: one of `benchmarks.patterns.SUBSETS`.
      wanted: patterns as "(a,b,c,d)", with * for anything.
    """
    names = {
        "({},{},{},{})".format(*pattern): pattern
        for pattern in patterns.SUBSETS[subset]()
    }
    globs = [one.replace(" ", "") for one in wanted]
    return {
        name: bj.Chain([pattern])
        for name, pattern in names.items()
        if any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    }


def main() -> int:
    chains = select(flags.FLAGS.subset, flags.FLAGS.patterns)
    return layers.main(chains, "ks_grid", (tables.overview,))


if __name__ == "__main__":
    define_flags()
    runs.start(main)
