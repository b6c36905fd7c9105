"""Which kernel launches apply a chain: what is multiplied out, what each one takes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from butterjax.factors import fuse
from butterjax.implementations.registry import FeatureAxis
from butterjax.pattern import Chain, Pattern
from pallas_kernels import factor, fused, radix, strided
from pallas_kernels.common import arguments, pieces
from pallas_kernels.common.epilogue import Activation
from pallas_kernels.factor.plan import embed

# Blocks up to which neighbours are multiplied out, in the order of preference: larger
# ones mean fewer launches, each of which reads and writes all features.
_BLOCKS = (64, 32, 16)

_SMALL_BLOCK = 8

# Neighbours along d of which whole rows can be taken; of more, features last, a block's
# features are too far apart for TMA.
_FEW_NEIGHBOURS = 12

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
      is_transposed: whether XLA transposes x before the launch and the result after it,
        so that the features of a block follow one another.
    """

    kernel: Kernel
    partition: tuple[int, ...]
    chain: Chain
    config: Config
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
    blocks need no tensor core, those of a single factor and those of a chain in float32
    under precision "highest": they have a kernel of their own.

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
    if batch < 1:
        raise ValueError(f"plan_launches: batch must be at least 1, got {batch}")
    if _is_exact_and_small(patterns, dtype, precision):
        try:
            exact = radix.default_config(
                patterns.shapes, dtype, batch, axis=axis, out_dtype=out_dtype
            )
        except NotImplementedError:
            pass  # Other kernels are as exact.
        else:
            return (Launch("radix", (1,) * len(patterns), patterns, exact),)
    launch_of = functools.partial(
        _launch_of, dtype=jnp.dtype(dtype), batch=batch, axis=axis, precision=precision
    )
    result = jnp.dtype(dtype if out_dtype is None else out_dtype)
    plans, reasons = [], []
    for partition in partitions(patterns):
        try:
            plans.append(_longest_runs(patterns, partition, launch_of, result))
        except NotImplementedError as error:
            reasons.append(error)
        else:
            if len(plans[-1]) == 1:
                break  # No other way takes fewer.
    if not plans:
        raise reasons[-1]
    return min(plans, key=len)


def apply_launches(
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
) -> jax.Array:
    """Applies a chain by the launches of `plan_launches`; there is no derivative.

    The arguments and what is raised are those of a `FusedImplementation`.
    """
    patterns = Chain.of(factors)
    batch, n_out = x.shape[1 + axis], patterns.out_features
    if batch == 0:
        shape = (0, n_out) if axis == -1 else (n_out, 0)
        return jnp.zeros(shape, preferred_element_type or x.dtype)
    launches = plan_launches(
        patterns,
        dtype=x.dtype,
        batch=batch,
        axis=axis,
        out_dtype=preferred_element_type,
        precision=precision,
    )
    left = tuple(factors)
    for index in reversed(range(len(launches))):
        launch = launches[index]
        split = len(left) - sum(launch.partition)
        left, taken = left[:split], left[split:]
        last = index == 0
        x = _apply(
            launch,
            x,
            fuse(taken, launch.partition, precision="highest"),
            axis=axis,
            bias=bias if last else None,
            activation=activation if last else None,
            out_dtype=preferred_element_type if last else None,
            precision=precision,
        )
    return x


def _apply(
    launch: Launch,
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    bias: jax.Array | None,
    **options: Any,
) -> jax.Array:
    """One launch, and the transposes around it."""
    if launch.is_transposed:
        (w,) = factors
        a, b, c, d = w.shape
        w = w.transpose(0, 3, 1, 2).reshape(a * d, b, c, 1)
        bias = None if bias is None else _swap(bias, a, b, d)
        return _swap(
            _run(launch, _swap(x, a, c, d), (w,), bias=bias, **options), a, d, b
        )
    return _run(launch, x, factors, bias=bias, **options)


def _run(
    launch: Launch, x: jax.Array, factors: Sequence[jax.Array], **options: Any
) -> jax.Array:
    options["config"] = launch.config
    match launch.kernel:
        case "factor":
            (w,) = factors
            return factor.factor(x, w, **options)
        case "fused":
            return fused.fused(x, factors, **options)
        case "radix":
            return radix.radix(x, factors, **options)
        case "strided":
            (w,) = factors
            return strided.strided(x, w, **options)


def _swap(x: jax.Array, a: int, rows: int, columns: int) -> jax.Array:
    """Features (a, rows, columns), in the last axis, as (a, columns, rows)."""
    apart = x.reshape(*x.shape[:-1], a, rows, columns)
    return apart.swapaxes(-1, -2).reshape(x.shape)


def _is_exact_and_small(
    patterns: Chain, dtype: jax.typing.DTypeLike, precision: jax.lax.PrecisionLike
) -> bool:
    """Whether six products of pieces would take longer than the plain ones."""
    widest = max(max(pattern.b, pattern.c) for pattern in patterns)
    return widest <= _SMALL_BLOCK and pieces.count(dtype, precision) == 3


def _longest_runs(
    patterns: Chain,
    partition: tuple[int, ...],
    launch_of: Callable[..., Launch],
    out_dtype: jnp.dtype,
) -> tuple[Launch, ...]:
    """Launches for one partition, each as long as a kernel takes."""
    whole = patterns.fuse(partition)
    made: list[Launch] = []
    stop = len(whole)
    while stop:
        # The last launch, that of the first factors, makes the result.
        for start in range(stop):
            run = Chain(whole.patterns[start:stop])
            try:
                launch = launch_of(
                    run, partition[start:stop], out_dtype=None if start else out_dtype
                )
            except NotImplementedError:
                if start == stop - 1:
                    raise
            else:
                made.append(launch)
                stop = start
                break
    return tuple(reversed(made))


def _launch_of(
    run: Chain,
    partition: tuple[int, ...],
    *,
    dtype: jnp.dtype,
    axis: FeatureAxis,
    **kwargs: Any,
) -> Launch:
    """The launch for factors that share one; raises if there is none."""
    options = {"axis": axis, **kwargs}
    if len(run) > 1:
        on_chip = fused.default_config(run.shapes, dtype, **options)
        return Launch("fused", partition, run, on_chip)
    (pattern,) = run
    if _is_merged(pattern, dtype, axis, options["out_dtype"]):
        # Tensor cores have next to nothing to multiply, and zeros would be written
        # between weights. What `radix` does not take, of blocks too large for it or of
        # features that TMA cannot move, `factor` merges.
        try:
            config = radix.default_config(run.shapes, dtype, **options)
            return Launch("radix", partition, run, config)
        except NotImplementedError:
            pass
    if pattern.d > 1:
        try:
            in_place = strided.default_config(pattern.shape, dtype, **options)
            return Launch("strided", partition, run, in_place)
        except NotImplementedError:
            pass
    if axis == -1 and pattern.d > _FEW_NEIGHBOURS:
        shape = (pattern.a * pattern.d, pattern.b, pattern.c, 1)
        by_blocks = factor.default_config(shape, dtype, **options)
        return Launch("factor", partition, run, by_blocks, is_transposed=True)
    found = factor.default_config(run.shapes[0], dtype, **options)
    return Launch("factor", partition, run, found)


def _is_merged(
    pattern: Pattern,
    dtype: jnp.dtype,
    axis: FeatureAxis,
    out_dtype: jnp.dtype | None,
) -> bool:
    """Whether `factor` would merge blocks, or take the pattern in no way."""
    given, _ = arguments.check_dtypes("factor", dtype, out_dtype)
    try:
        seen = embed(pattern.shape, feature_first=axis == 0, item_in=given.itemsize)
    except NotImplementedError:
        return True
    return seen.merged_a * seen.merged_d > 1


def partitions(patterns: Chain) -> tuple[tuple[int, ...], ...]:
    """Ways to multiply out neighbours with small blocks, the best one first."""
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
