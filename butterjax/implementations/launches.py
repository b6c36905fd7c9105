"""Which kernel launches apply a chain: what is multiplied out, what shares a launch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from butterjax.factors import fuse
from butterjax.implementations.registry import FeatureAxis
from butterjax.pattern import Chain
from pallas_kernels import arguments, chain, chips, factor, factor_tiles, pieces, radix
from pallas_kernels.epilogue import Activation

# Blocks up to which neighbours are multiplied out, in the order of preference: larger
# ones mean fewer passes over the tile, and more weights to fetch for each tile.
_BLOCKS = (64, 32, 16)

_SMALL_BLOCK = 8

# The prediction is rough: one launch is given up where it is clearly worse. That of a
# cluster rests on more that was never measured, so it has to be no worse.
_LOSS = 2.0
_LOSS_OF_CLUSTERS = 1.0
MANY = 32_768  # Vectors of a batch that fills the chip.

Shapes = tuple[tuple[int, int, int, int], ...]
Kernel = Literal["chain", "factor", "radix"]
Config = chain.Config | factor.Config | radix.Config


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """One launch of a kernel.

    Attributes:
      kernel: name of the module in `pallas_kernels` that has it.
      partition: lengths of the runs of factors that are multiplied out beforehand, in
        the order of the matrix product, one for each factor of the launch.
      chain: patterns of the factors that are launched.
      config: the kernel's configuration.
    """

    kernel: Kernel
    partition: tuple[int, ...]
    chain: Chain
    config: Config

    def __str__(self) -> str:
        given = sum(self.partition)
        patterns = "".join(
            f"({', '.join(map(str, shape))})" for shape in self.chain.shapes
        )
        ctas = self.config.cluster if isinstance(self.config, chain.Config) else 1
        where = f" in clusters of {ctas}" if ctas > 1 else ""
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

    Neighbours with small blocks are multiplied out, and all factors share one launch if
    they fit in shared memory, of one multiprocessor or of a cluster of them, with room
    left to work in; if they do not, then the longest runs that do. A single factor has
    a kernel of its own. Small blocks need no tensor core, those of a single factor and
    those of a chain in float32 under precision "highest": they have another.

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
    kernel_for = functools.partial(
        _kernel_for, dtype=jnp.dtype(dtype), batch=batch, axis=axis, precision=precision
    )
    result = jnp.dtype(dtype if out_dtype is None else out_dtype)
    plans, reasons = [], []
    for partition in partitions(patterns):
        try:
            plans.append(_longest_runs(patterns, partition, kernel_for, result))
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
        weights = fuse(taken, launch.partition, precision="highest")
        apply: Callable[..., jax.Array]
        match launch.kernel:
            case "chain":
                apply = functools.partial(chain.chain, x, weights)
            case "factor":
                apply = functools.partial(factor.factor, x, *weights)
            case "radix":
                apply = functools.partial(radix.radix, x, weights)
        last = index == 0
        x = apply(
            axis=axis,
            bias=bias if last else None,
            activation=activation if last else None,
            out_dtype=preferred_element_type if last else None,
            config=launch.config,
            precision=precision,
        )
    return x


def _is_exact_and_small(
    patterns: Chain, dtype: jax.typing.DTypeLike, precision: jax.lax.PrecisionLike
) -> bool:
    """Whether six products of pieces would take longer than the plain ones."""
    widest = max(max(pattern.b, pattern.c) for pattern in patterns)
    return widest <= _SMALL_BLOCK and pieces.count(dtype, precision) == 3


def _longest_runs(
    patterns: Chain,
    partition: tuple[int, ...],
    kernel_for: Callable[..., tuple[Kernel, Config]],
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
                kernel, config = kernel_for(
                    run.shapes, out_dtype=None if start else out_dtype
                )
            except NotImplementedError:
                if start == stop - 1:
                    raise
            else:
                made.append(Launch(kernel, partition[start:stop], run, config))
                stop = start
                break
    return tuple(reversed(made))


def _kernel_for(
    shapes: Shapes, *, dtype: jnp.dtype, **kwargs: Any
) -> tuple[Kernel, Config]:
    """The kernel for factors that share a launch, configured; raises if there is none.

    Nor should they share one where that takes clearly longer.
    """
    if len(shapes) == 1:
        return _for_one_factor(shapes[0], dtype=dtype, **kwargs)
    config = chain.default_config(shapes, dtype, **kwargs)
    together = chain.predicted_seconds(
        shapes, dtype, **{**kwargs, "batch": MANY, "config": config}
    )
    features = sum(a * (b + c) * d for a, b, c, d in shapes)
    apart = dtype.itemsize * features * MANY / chips.H200.hbm
    if together > (_LOSS if config.cluster == 1 else _LOSS_OF_CLUSTERS) * apart:
        raise NotImplementedError(
            f"chain: {shapes} should take {together / apart:.1f} times as long in one "
            "launch as HBM needs for the factors one by one"
        )
    return "chain", config


def _for_one_factor(
    shape: tuple[int, int, int, int],
    *,
    dtype: jnp.dtype,
    axis: FeatureAxis,
    out_dtype: jnp.dtype | None,
    **kwargs: Any,
) -> tuple[Kernel, Config]:
    """`factor`, or `radix` for blocks so small that `factor` cannot take them as given.

    That would merge neighbours and have zeros written between their weights, for a
    tensor core that has next to nothing to multiply. What `radix` does not take, of
    blocks too large for it or of features that TMA cannot move, `factor` merges.
    """
    more = {"axis": axis, "out_dtype": out_dtype, **kwargs}
    given, result = arguments.check_dtypes("factor", dtype, out_dtype)
    if _is_merged(shape, given, result, axis):
        try:
            return "radix", radix.default_config([shape], dtype, **more)
        except NotImplementedError:
            pass
    return "factor", factor.default_config(shape, dtype, **more)


def _is_merged(
    shape: tuple[int, int, int, int],
    dtype: jnp.dtype,
    out_dtype: jnp.dtype,
    axis: FeatureAxis,
) -> bool:
    """Whether `factor` would merge blocks, or take the pattern in no way."""
    try:
        seen = factor_tiles.embed(
            shape,
            feature_first=axis == 0,
            item_in=dtype.itemsize,
            item_out=out_dtype.itemsize,
        )
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
