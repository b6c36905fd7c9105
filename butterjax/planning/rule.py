"""The rule behind `implementation=None`, until there is a planner."""

from jax.typing import DTypeLike

from butterjax.pattern import Chain


def choose(chain: Chain, dtype: DTypeLike) -> str:
    """Name of the implementation to use where none is named.

    Blocks of at most 8 × 8 leave a matrix product little to do: multiply-adds are
    faster there, and a batched product elsewhere. By the rows that
    `python -m benchmarks.compare` wrote into benchmarks/results/compare_cpu.jsonl
    (a CPU, batch 512, float32) that is never more than a fifth slower than the best
    implementation; no other kind of device has been measured.

    Args:
      chain: the patterns.
      dtype: of the operands.

    Returns:
      A name in `butterjax.implementations.names()`.
    """
    largest = max(max(pattern.b, pattern.c) for pattern in chain)
    return "elementwise" if largest <= 8 else "bmm"
