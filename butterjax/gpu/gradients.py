"""The backward pass of a chain: what should take the least time, and doing it.

With x, the factors and dy at hand, factors with small blocks are multiplied out, as
going forward, to L factors K₁…K_L, and from the left to the right,

    h = K_{l+1}…K_L x        launches of the forward kernels
    dw_l = Σ dy hᵀ           one product per block over the batch, float32 sums
    dy ← K_lᵀ dy             one launch, that of dw_l too where a kernel makes both and
                             reads dy once; the last one gives dx

and the gradients of the factors follow from the dw_l. Nothing is kept from the forward
pass but its operands, and as XLA orders it one h is alive at a time. Where the
gradients of some weights are not wanted, dy passes several factors in one launch. With
an activation, z = K x + b is computed again too, and dy·act'(z), in float32, comes
before all.

`plan_backward` adds up what these should take, and what XLA's gradients of `einsum`
would at the rate of a copy, 2G arrays for dw, 2G for dx and G more for the h of a chain
of G factors, and what it transposes; it leaves the chain to XLA where that should be
clearly faster, or where kernels refuse a pattern, or an intermediate whose rows are no
multiple of 16 bytes.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from butterjax.factors import fuse, transpose
from butterjax.gpu.derivatives import Operands, xla_gradients
from butterjax.gpu.launches import apply_launches
from butterjax.gpu.plan import partitions, plan_launches
from butterjax.implementations.registry import FeatureAxis
from butterjax.numerics import accumulation_dtype
from butterjax.pattern import Chain, Pattern
from pallas_kernels import gradients, weight_gradient
from pallas_kernels.common import arguments, chip
from pallas_kernels.common.epilogue import Activation, activate

# Launches are given up where they should take so many times as long as XLA at the rate
# of a copy: they take less memory, and its gradients of two factors took 1.3 to 4 times
# that on an H200 (benchmarks/results/h200_2026-11-27.jsonl).
_LOSS = 2.0

_XLA_SHARE = 0.85  # Of the rate of a copy, that its products over the batch reach.


@dataclasses.dataclass(frozen=True, slots=True)
class BackwardPlan:
    """How the gradients of a chain are computed.

    Attributes:
      form: "launches" for the kernels of the forward pass, and a product per weight
        gradient; "xla" for XLA's gradients of `einsum`.
      partition: lengths of the runs of factors that are multiplied out beforehand, in
        the order of the matrix product; of one factor each for "xla".
      seconds: what that should take on an H200, of all gradients of a plain chain; for
        "xla" at the rate of a copy.
    """

    form: Literal["launches", "xla"]
    partition: tuple[int, ...]
    seconds: float


def plan_backward(
    patterns: Chain,
    *,
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: FeatureAxis = -1,
    precision: jax.lax.PrecisionLike = None,
) -> BackwardPlan:
    """How `backward` computes the gradients of a chain.

    By launches, unless these should take clearly longer than XLA, or are refused.

    Args:
      patterns: the chain.
      dtype: of x and the factors.
      batch: vectors in x.
      axis: the feature axis of x.
      precision: as in `jax.lax.dot_general`.
    """
    item, one_each = jnp.dtype(dtype).itemsize, (1,) * len(patterns)
    by_xla = _seconds_by_xla(patterns, item * batch)
    ways = []
    for partition in dict.fromkeys((*partitions(patterns), one_each)) if batch else ():
        whole = patterns.fuse(partition)
        try:
            seconds = _seconds_by_launches(whole, dtype, batch, axis, precision)
        except NotImplementedError:
            continue
        ways.append(BackwardPlan("launches", partition, seconds))
    best = min(ways, key=lambda plan: plan.seconds, default=None)
    if best is None or best.seconds > _LOSS * by_xla:
        return BackwardPlan("xla", one_each, by_xla)
    return best


def _seconds_by_launches(
    patterns: Chain,
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
) -> float:
    """What launches and products should take; raises if kernels refuse."""
    itemsize = jnp.dtype(dtype).itemsize

    def launched(chain: Chain) -> float:
        launches = plan_launches(
            chain, dtype=dtype, batch=batch, axis=axis, precision=precision
        )
        return sum(launch.seconds for launch in launches)

    seconds = 0.0
    for index, pattern in enumerate(patterns):
        # Going forward, an intermediate need not be an array of its own.
        rows = pattern.in_features if axis == -1 else batch
        arguments.check_runs("backward", "h", (1, rows), itemsize, axis)
        after = patterns.patterns[index + 1 :]
        seconds += launched(Chain(after)) if after else 0.0
        try:
            config = gradients.default_config(pattern.shape, dtype, batch, axis=axis)
        except NotImplementedError:
            seconds += launched(Chain([pattern.transpose]))
            seconds += _weight_gradient_seconds(pattern, dtype, batch, axis)
        else:
            seconds += gradients.cost.predicted_seconds(
                pattern.shape, config, axis=axis, batch=batch, chip=chip.load()
            )
    return seconds


def _weight_gradient_seconds(
    pattern: Pattern, dtype: jax.typing.DTypeLike, batch: int, axis: FeatureAxis
) -> float:
    """What the product for a dw should take, by a kernel or by XLA."""
    try:
        config = weight_gradient.default_config(pattern.shape, dtype, batch, axis=axis)
    except NotImplementedError:
        # The product, and two transposes, each read and written, where it needs them.
        numbers = _ends(Chain([pattern])) * (3 if _is_apart(pattern) else 1)
        moved = jnp.dtype(dtype).itemsize * batch * numbers
        return chip.load().moved_seconds(moved, _XLA_SHARE)
    return weight_gradient.cost.predicted_seconds(
        pattern.shape, config, batch=batch, chip=chip.load()
    )


def _seconds_by_xla(patterns: Chain, num_bytes: int) -> float:
    """What XLA should take at least: for h, dw and dx of each factor, and transposes.

    Args:
      patterns: the chain.
      num_bytes: of a feature of all vectors.
    """
    each = [
        chip.load().moved_seconds(num_bytes * _ends(Chain([pattern])))
        for pattern in patterns
    ]
    times = [9 if _is_apart(pattern) else 3 for pattern in patterns]
    # Nobody reads y.
    return sum(map(operator.mul, times, each)) - each[0]


def _ends(chain: Chain) -> int:
    return chain.in_features + chain.out_features


def _is_apart(pattern: Pattern) -> bool:
    """Whether blocks lie apart both ways, and XLA transposes before it multiplies."""
    return pattern.a > 1 and pattern.d > 1


def backward(
    operands: Operands,
    dy: jax.Array,
    *,
    wanted: Operands,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: jax.typing.DTypeLike,
    activation: Activation | None,
) -> Operands:
    """The gradients of a chain, as `plan_backward` has it; a `derivatives.Backward`."""
    x, factors, _ = operands
    plan = plan_backward(
        Chain.of(factors),
        dtype=x.dtype,
        batch=x.shape[1 + axis],
        axis=axis,
        precision=precision,
    )
    options: dict[str, Any] = {
        "axis": axis,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "activation": activation,
    }
    if plan.form == "xla":
        return xla_gradients(options, wanted, operands, dy)
    wide = accumulation_dtype(x.dtype, preferred_element_type)
    products, pull_back = jax.vjp(
        functools.partial(fuse, partition=plan.partition, precision="highest"),
        [factor.astype(wide) for factor in factors],
    )
    weights = tuple(product.astype(x.dtype) for product in products)
    dx, dweights, dbias = _by_launches(
        operands, weights, dy.astype(wide), wanted, plan.partition, **options
    )
    (dfactors,) = pull_back(
        tuple(
            jnp.zeros_like(product) if dw is None else dw.astype(wide)
            for product, dw in zip(products, dweights, strict=True)
        )
    )
    narrow = tuple(
        dfactor.astype(factor.dtype)
        for dfactor, factor in zip(dfactors, factors, strict=True)
    )
    return dx, narrow, dbias


def _by_launches(
    operands: Operands,
    weights: Sequence[jax.Array],
    dz: jax.Array,
    wanted: Operands,
    partition: tuple[int, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: jax.typing.DTypeLike,
    activation: Activation | None,
) -> Operands:
    """Gradients of x, of what was multiplied out and of the bias, by several launches.

    Each is of a kernel that applies a chain, or a product for a dw. dz is the gradient
    of the result, as it accumulates.
    """
    x, _, bias = operands
    x_wanted, factors_wanted, bias_wanted = wanted
    apply = functools.partial(apply_launches, axis=axis, precision=precision)
    if activation is not None:
        z = apply(x, weights, bias=bias, preferred_element_type=preferred_element_type)
        _, through = jax.vjp(
            functools.partial(activate, activation=activation), z.astype(dz.dtype)
        )
        (dz,) = through(dz)
    dbias = dz.sum(1 + axis).astype(bias.dtype) if bias_wanted else None
    dx, dweights = _chain_gradients(
        x,
        weights,
        dz.astype(x.dtype),
        x_wanted=x_wanted,
        weights_wanted=[
            any(factors_wanted[end - length : end])
            for end, length in zip(
                itertools.accumulate(partition), partition, strict=True
            )
        ],
        axis=axis,
        precision=precision,
    )
    return dx, tuple(dweights), dbias


def _chain_gradients(
    x: jax.Array,
    weights: Sequence[jax.Array],
    dy: jax.Array,
    *,
    x_wanted: bool,
    weights_wanted: Sequence[bool],
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
) -> tuple[jax.Array | None, list[jax.Array | None]]:
    """Gradients of a plain chain, without those that are not wanted."""
    apply = functools.partial(apply_launches, axis=axis, precision=precision)
    dweights: list[jax.Array | None] = [None] * len(weights)
    done = 0  # dy is the gradient of what weights[done:] make of x.
    for index, is_wanted in enumerate(weights_wanted):
        if not is_wanted:
            continue
        if done < index:
            dy = apply(dy, transpose(weights[done:index]))
            done = index
        after = weights[index + 1 :]
        h = apply(x, after) if after else x
        w = weights[index]
        both = None
        if x_wanted or any(weights_wanted[index + 1 :]):
            both = _in_one_launch(h, w, dy, axis)
        if both is None:
            dweights[index] = _weight_gradient(
                dy, h, w.shape, axis=axis, precision=precision
            )
        else:
            dy, dweights[index] = both
            done = index + 1
    if not x_wanted:
        return None, dweights
    return apply(dy, transpose(weights[done:])) if weights[done:] else dy, dweights


def _in_one_launch(
    x: jax.Array, w: jax.Array, dy: jax.Array, axis: FeatureAxis
) -> tuple[jax.Array, jax.Array] | None:
    """dx and dw of one factor, where a kernel takes it."""
    try:
        config = gradients.default_config(
            w.shape, x.dtype, x.shape[1 + axis], axis=axis
        )
    except NotImplementedError:
        return None
    return gradients.gradients(x, w, dy, axis=axis, config=config)


def _weight_gradient(
    dy: jax.Array,
    x: jax.Array,
    shape: tuple[int, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """dw[i,j,l,k] = Σ_n dy[n;i,j,k] · x[n;i,l,k] over the batch, as it accumulates.

    By a kernel for blocks that lie zipped, which XLA transposes, and else by XLA.
    """
    a, b, c, d = shape
    batch = x.shape[1 + axis]
    try:
        config = weight_gradient.default_config(shape, x.dtype, batch, axis=axis)
    except NotImplementedError:
        pass  # XLA's product reads x and dy where they are, and about once.
    else:
        return weight_gradient.weight_gradient(x, dy, shape, axis=axis, config=config)
    if axis == -1:
        formula, dy_shape, x_shape = (
            "nijk,nilk->ijlk",
            (batch, a, b, d),
            (batch, a, c, d),
        )
    else:
        formula, dy_shape, x_shape = (
            "ijkn,ilkn->ijlk",
            (a, b, d, batch),
            (a, c, d, batch),
        )
    return jnp.einsum(
        formula,
        dy.reshape(dy_shape),
        x.reshape(x_shape),
        precision=precision,
        preferred_element_type=accumulation_dtype(x.dtype, x.dtype),
    )
