"""The rule behind `implementation=None`, until there is a planner."""

from typing import Literal

from butterjax import array_checks, checks
from butterjax.pattern import Chain

# By the rows that `python -m benchmarks.compare` wrote into
# benchmarks/results/compare_cpu.jsonl (a CPU, batch 512, float32), the rule is never
# more than a fifth slower than the best implementation, forward or backward. No other
# kind of device has been measured.
_SMALL_BLOCK = 8
_PASS = 45  # Cost of one output of one factor, in multiply-adds of a dense product.
_LARGE = 4096  # Rows of which forming the dense matrix is a small part.
_FORMING = 400  # Cost of forming the dense matrix, in rows of its product.


def choose(chain: Chain, *, batch: int | None, axis: Literal[0, -1]) -> str:
    """Name of the implementation to use where none is named.

    Large blocks keep a batched matrix product busy. Small ones do not: there one pass
    of multiply-adds per factor is faster; or, features last, a dense product where the
    chain is long for its width and the batch repays forming the matrix.

    Args:
      chain: the patterns.
      batch: rows of x; None where nobody knows yet, and a large one is assumed.
      axis: the feature axis of x: -1 for feature-last, 0 for feature-first.

    Returns:
      A name in `butterjax.implementations.names()`.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if the batch is negative, or axis is neither 0 nor -1.
    """
    array_checks.chain("choose", "chain", chain)
    if batch is not None:
        checks.integer("choose", "batch", batch, least=0)
    checks.axis("choose", axis)
    if max(max(pattern.b, pattern.c) for pattern in chain) > _SMALL_BLOCK:
        return "bmm"
    batch = _LARGE if batch is None else batch
    passes = batch * _PASS * sum(pattern.out_features for pattern in chain)
    product = (batch + _FORMING) * chain.in_features * chain.out_features
    return "dense" if axis == -1 and product < passes else "elementwise"
