"""Which kernel launches apply a chain: what is multiplied out, what shares a launch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from butterjax.implementations.registry import FeatureAxis
from butterjax.pattern import Chain
from pallas_kernels.chain import default_config

# Blocks up to which neighbours are multiplied out, in the order of preference: larger
# ones mean fewer passes over the tile, and more weights to fetch for each tile.
_BLOCKS = (64, 32, 16)

Shapes = tuple[tuple[int, int, int, int], ...]
_Check = Callable[..., Literal["chain"]]


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel.

    Attributes:
      kernel: name of the module in `pallas_kernels` that has it.
      partition: lengths of the runs of factors that are multiplied out beforehand, in
        the order of the matrix product, one for each factor of the launch.
      chain: patterns of the factors that are launched.
    """

    kernel: Literal["chain"]
    partition: tuple[int, ...]
    chain: Chain

    def __str__(self) -> str:
        given = sum(self.partition)
        patterns = "".join(
            f"({', '.join(map(str, shape))})" for shape in self.chain.shapes
        )
        return f"{self.kernel}: {given} factors as {patterns}"


def plan_launches(
    chain: Chain,
    *,
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: FeatureAxis = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Launch, ...]:
    """The launches that `pallas_chain` makes for a chain.

    Neighbours with small blocks are multiplied out, and all factors share one launch if
    they fit in shared memory; if they do not, then the longest runs that do.

    Args:
      chain: the patterns.
      dtype: of x and the factors.
      batch: vectors in x.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: as in `jax.lax.dot_general`.

    Returns:
      The launches in the order of the matrix product: the last one touches x first.

    Raises:
      NotImplementedError: if no kernel takes one of the factors; the message says why.
    """
    check = functools.partial(
        _check, dtype=dtype, batch=batch, axis=axis, precision=precision
    )
    result = jnp.dtype(dtype if out_dtype is None else out_dtype)
    plans, reasons = [], []
    for partition in dict.fromkeys(collapse(chain, size) for size in _BLOCKS):
        try:
            plans.append(_longest_runs(chain, partition, check, result))
        except NotImplementedError as error:
            reasons.append(error)
    if not plans:
        raise reasons[-1]
    return min(plans, key=len)


def _longest_runs(
    chain: Chain, partition: tuple[int, ...], check: _Check, out_dtype: jnp.dtype
) -> tuple[Launch, ...]:
    """Launches for one partition, each as long as a kernel takes."""
    whole = chain.fuse(partition)
    made: list[Launch] = []
    stop = len(whole)
    while stop:
        # The last launch, that of the first factors, makes the result.
        for start in range(stop):
            run = Chain(whole.patterns[start:stop])
            try:
                kernel = check(run.shapes, out_dtype=None if start else out_dtype)
            except NotImplementedError:
                if start == stop - 1:
                    raise
            else:
                made.append(Launch(kernel, partition[start:stop], run))
                stop = start
                break
    return tuple(reversed(made))


def _check(shapes: Shapes, **kwargs: Any) -> Literal["chain"]:
    """The kernel that takes the factors in one launch; raises if there is none."""
    default_config(shapes, **kwargs)
    return "chain"


def collapse(chain: Chain, max_block: int) -> tuple[int, ...]:
    """The shortest partition with products whose blocks are no larger than that.

    Of several, the one with the fewest weights. A factor whose own blocks are larger
    stays as it is.

    Args:
      chain: the patterns.
      max_block: the largest b and c that a product may have.

    Returns:
      Lengths of the runs, in the order of the matrix product.
    """
    # Of the factors from each index on: number of runs, weights, and the partition.
    best: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
    for start in reversed(range(len(chain))):
        ways = []
        product = None
        for length, pattern in enumerate(chain.patterns[start:], 1):
            if product is None:
                product = pattern
            elif product.is_chainable(pattern):
                product = product @ pattern
            else:
                break
            if length > 1 and max(product.b, product.c) > max_block:
                break
            runs, weights, partition = best[len(chain) - start - length]
            ways.append((runs + 1, weights + product.num_weights, (length, *partition)))
        best.append(min(ways))
    return best[-1][2]
