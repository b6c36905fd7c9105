"""Which kernel launches apply a chain, and what they should take."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from butterjax import array_checks
from butterjax.implementations.registry import FeatureAxis
from butterjax.pattern import Chain, Pattern
from pallas_kernels import factor, fused, radix, strided
from pallas_kernels.common import arguments, chip, compat
from pallas_kernels.factor.plan import embed

# Blocks up to which neighbours are multiplied out: larger ones mean fewer launches,
# each of which reads and writes all features, and more products.
_BLOCKS = (128, 64, 32, 16)

_SMALL_BLOCK = 8

_MOST_TOGETHER = 2  # Factors of a launch, but for those of `radix`.

_TRANSPOSE_SHARE = 0.8  # Of the rate of a copy, that XLA's transposes of blocks reach.

Kernel = Literal["factor", "fused", "radix", "strided"]
Config = factor.Config | fused.Config | radix.Config | strided.Config


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel.

    Attributes:
      kernel: name of the package in `pallas_kernels` that has it.
      partition: lengths of the runs of factors that are multiplied out beforehand, in
        the order of the matrix product, one for each factor of the launch.
      chain: patterns of the factors that are launched.
      config: the kernel's configuration.
      seconds: what it should take on an H200, and what XLA does for it.
      is_transposed: whether XLA transposes x before the launch and the result after it,
        so that the features of a block follow one another.
    """

    kernel: Kernel
    partition: tuple[int, ...]
    chain: Chain
    config: Config
    seconds: float
    is_transposed: bool = False

    def __str__(self) -> str:
        given = sum(self.partition)
        patterns = "".join(
            f"({', '.join(map(str, shape))})" for shape in self.chain.shapes
        )
        where = " between two transposes" if self.is_transposed else ""
        return f"{self.kernel}{where}: {given} factors as {patterns}"


def plan_launches(
    patterns: Chain,
    *,
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: FeatureAxis = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Launch, ...]:
    """The launches that `pallas_chain` makes for a chain.

    Neighbours with small blocks are multiplied out. Of what comes out, neighbours share
    a launch where a kernel takes them, and each of the others has one of its own. Small
    blocks have a kernel without tensor cores, which takes a chain of float32 as it is
    given. Of all ways, the one that should take least on an H200.

    Args:
      patterns: the chain.
      dtype: of x and the factors.
      batch: vectors in x, at least 1.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: as in `jax.lax.dot_general`.

    Returns:
      The launches in the order of the matrix product: the last one touches x first.

    Raises:
      NotImplementedError: if no kernel takes one of the factors; the message says why.
      ValueError: if the batch is below 1.
    """
    given, result = array_checks.kernel_launch(
        "plan_launches",
        patterns,
        given_dtype=dtype,
        batch=batch,
        axis=axis,
        out_dtype=out_dtype,
        given_precision=precision,
    )
    precision = compat.canonicalize_precision(precision)
    return plan(patterns, Problem(given, batch, axis, result or given, precision))


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """What a launch is planned for, beside its factors."""

    dtype: jnp.dtype
    batch: int
    axis: FeatureAxis
    out_dtype: jnp.dtype  # Of the launch, that of x but for the last one.
    precision: Any

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of a kernel's `default_config`."""
        return {
            "dtype": self.dtype,
            "batch": self.batch,
            "axis": self.axis,
            "out_dtype": self.out_dtype,
            "precision": self.precision,
        }

    @property
    def kind(self) -> dict[str, Any]:
        """Arguments of most kernels' `predicted_seconds`."""
        return {"axis": self.axis, "dtype": self.dtype}

    def seconds(self, kernel: Any, shapes: Any, config: Any, **more: Any) -> float:
        """What a kernel's launch should take."""
        found: float = kernel.cost.predicted_seconds(
            shapes, config, batch=self.batch, chip=chip.load(), **more
        )
        return found


@functools.lru_cache(maxsize=1024)
def plan(patterns: Chain, problem: Problem) -> tuple[Launch, ...]:
    """The launches for a chain, remembered."""
    ways = [
        functools.partial(_as_given, patterns, problem),
        *(
            functools.partial(_cheapest, patterns, partition, problem)
            for partition in partitions(patterns)
        ),
    ]
    plans, reasons = [], []
    for way in ways:
        try:
            plans.append(way())
        except NotImplementedError as error:
            reasons.append(error)
    if not plans:
        raise reasons[-1]
    return min(plans, key=lambda plan: sum(launch.seconds for launch in plan))


def _as_given(patterns: Chain, problem: Problem) -> tuple[Launch, ...]:
    """One launch without tensor cores, which take float32 in pieces."""
    widest = max(max(pattern.b, pattern.c) for pattern in patterns)
    if problem.dtype != jnp.float32 or widest > _SMALL_BLOCK:
        raise NotImplementedError("tensor cores are faster")
    config = radix.default_config(patterns.shapes, **problem.options)
    seconds = problem.seconds(radix, patterns.shapes, config, **problem.kind)
    return (Launch("radix", (1,) * len(patterns), patterns, config, seconds),)


def _cheapest(
    patterns: Chain, partition: tuple[int, ...], problem: Problem
) -> tuple[Launch, ...]:
    """Launches for one partition: of all ways to cut it, what should take least."""
    whole = patterns.fuse(partition)
    inner = dataclasses.replace(problem, out_dtype=problem.dtype)
    # Of the factors up to each index: seconds, and the launches.
    best: list[tuple[float, tuple[Launch, ...]]] = [(0.0, ())]
    reason: NotImplementedError | None = None
    for stop in range(1, len(whole) + 1):
        ways = []
        for start in range(max(0, stop - _MOST_TOGETHER), stop):
            run, lengths = Chain(whole.patterns[start:stop]), partition[start:stop]
            try:
                launch = _launch_of(run, lengths, inner if start else problem)
            except NotImplementedError as error:
                reason = error
            else:
                before, launches = best[start]
                ways.append((before + launch.seconds, (*launches, launch)))
        if not ways:
            assert reason is not None
            raise reason
        best.append(min(ways, key=lambda way: way[0]))
    return best[-1][1]


def _launch_of(run: Chain, partition: tuple[int, ...], problem: Problem) -> Launch:
    """The launch for factors that share one; raises if there is none."""
    # What is multiplied out is written, one launch for each product.
    products = sum(
        chip.load().moved_seconds(problem.dtype.itemsize * pattern.num_weights)
        for pattern, length in zip(run, partition, strict=True)
        if length > 1
    )
    options = problem.options
    launch = functools.partial(Launch, partition=partition, chain=run)
    if len(run) > 1:
        config = fused.default_config(run.shapes, **options)
        seconds = problem.seconds(fused, run.shapes, config, **problem.kind)
        return launch("fused", config=config, seconds=products + seconds)
    (pattern,) = run
    if _is_merged(pattern, problem):
        # Tensor cores have next to nothing to multiply, and zeros would be written
        # between weights. What `radix` does not take, of blocks too large for it or of
        # features that TMA cannot move, `factor` merges.
        try:
            small = radix.default_config(run.shapes, **options)
            seconds = problem.seconds(radix, run.shapes, small, **problem.kind)
            return launch("radix", config=small, seconds=products + seconds)
        except NotImplementedError:
            pass
    # Features first, or with d = 1, the features of a block follow one another.
    zipped = (_in_place, _transposed) if problem.axis == -1 and pattern.d > 1 else ()
    ways, reason = [], None
    for way in (*zipped, _by_factor):
        try:
            found, seconds, is_transposed = way(pattern, problem)
        except NotImplementedError as error:
            reason = error
            continue
        ways.append(
            launch(
                "strided" if isinstance(found, strided.Config) else "factor",
                config=found,
                seconds=products + seconds,
                is_transposed=is_transposed,
            )
        )
    if not ways:
        assert reason is not None
        raise reason
    return min(ways, key=lambda one: one.seconds)


def _in_place(pattern: Pattern, problem: Problem) -> tuple[Config, float, bool]:
    config = strided.default_config(pattern.shape, **problem.options)
    return config, problem.seconds(strided, pattern.shape, config), False


def _by_factor(pattern: Pattern, problem: Problem) -> tuple[Config, float, bool]:
    config = factor.default_config(pattern.shape, **problem.options)
    seconds = problem.seconds(
        factor, pattern.shape, config, precision=problem.precision, **problem.kind
    )
    return config, seconds, False


def _transposed(pattern: Pattern, problem: Problem) -> tuple[Config, float, bool]:
    """As blocks of d = 1, between two transposes by XLA."""
    a, b, c, d = pattern.shape
    apart = dataclasses.replace(pattern, a=a * d, d=1)
    config, seconds, _ = _by_factor(apart, problem)
    for features, dtype in ((a * c * d, problem.dtype), (a * b * d, problem.out_dtype)):
        moved = 2 * problem.batch * features * dtype.itemsize
        seconds += chip.load().moved_seconds(moved, _TRANSPOSE_SHARE)
    return config, seconds, True


def _is_merged(pattern: Pattern, problem: Problem) -> bool:
    """Whether `factor` would merge blocks, or take the pattern in no way."""
    given, _ = arguments.check_dtypes("factor", problem.dtype, problem.out_dtype)
    try:
        seen = embed(
            pattern.shape, feature_first=problem.axis == 0, item_in=given.itemsize
        )
    except NotImplementedError:
        return True
    return seen.merged_a * seen.merged_d > 1


def partitions(patterns: Chain) -> tuple[tuple[int, ...], ...]:
    """Ways to multiply out neighbours with small blocks."""
    return tuple(dict.fromkeys(collapse(patterns, size) for size in _BLOCKS))


def collapse(patterns: Chain, max_block: int) -> tuple[int, ...]:
    """The shortest partition with products whose blocks are no larger than that.

    Of several, the one with the fewest weights. A factor whose own blocks are larger
    stays as it is.

    Args:
      patterns: the chain.
      max_block: the largest b and c that a product may have.

    Returns:
      Lengths of the runs, in the order of the matrix product.
    """
    # Of the factors from each index on: number of runs, weights, and the partition.
    best: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
    for start in reversed(range(len(patterns))):
        ways = []
        product = None
        for length, pattern in enumerate(patterns.patterns[start:], 1):
            if product is None:
                product = pattern
            elif product.is_chainable(pattern):
                product = product @ pattern
            else:
                break
            if length > 1 and max(product.b, product.c) > max_block:
                continue  # A longer product can have smaller blocks.
            runs, weights, partition = best[len(patterns) - start - length]
            ways.append((runs + 1, weights + product.num_weights, (length, *partition)))
        best.append(min(ways))
    return best[-1][2]
