"""The backward pass of a chain: what should move the fewest bytes, and doing it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from butterjax.factors import fuse, transpose
from butterjax.implementations.derivatives import Operands, xla_gradients
from butterjax.implementations.launches import (
    apply_launches,
    partitions,
    plan_launches,
)
from butterjax.implementations.registry import FeatureAxis
from butterjax.numerics import accumulation_dtype
from butterjax.pattern import Chain
from pallas_kernels.epilogue import Activation, activate


@dataclasses.dataclass(frozen=True, slots=True)
class BackwardPlan:
    """How the gradients of a chain are computed.

    Attributes:
      form: "launches" for the kernels of the forward pass and a product per weight
        gradient, "xla" for XLA's gradients of `einsum`.
      partition: lengths of the runs of factors that are multiplied out beforehand, in
        the order of the matrix product; of one factor each for "xla".
    """

    form: Literal["launches", "xla"]
    partition: tuple[int, ...]


def plan_backward(
    patterns: Chain,
    *,
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: FeatureAxis = -1,
    precision: jax.lax.PrecisionLike = None,
) -> BackwardPlan:
    """The way in which `backward` computes the gradients of a chain.

    Args:
      patterns: the chain.
      dtype: of x and the factors.
      batch: vectors in x.
      axis: the feature axis of x.
      precision: as in `jax.lax.dot_general`.
    """
    plan = functools.partial(
        plan_launches, dtype=dtype, batch=batch, axis=axis, precision=precision
    )
    one_each = (1,) * len(patterns)
    for partition in (*partitions(patterns), one_each) if batch else ():
        try:
            for pattern in patterns.fuse(partition):
                plan(Chain([pattern]))
                plan(Chain([pattern.transpose]))
        except NotImplementedError:
            continue  # An intermediate that is no array of its own going forward.
        return BackwardPlan("launches", partition)
    return BackwardPlan("xla", one_each)


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
    match plan.form:
        case "launches":
            return _by_launches(operands, dy, wanted, plan.partition, **options)
        case "xla":
            return xla_gradients(options, wanted, operands, dy)


def _by_launches(
    operands: Operands,
    dy: jax.Array,
    wanted: Operands,
    partition: tuple[int, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: jax.typing.DTypeLike,
    activation: Activation | None,
) -> Operands:
    """The gradients by kernels that apply chains, and a product for each dw."""
    x, factors, bias = operands
    x_wanted, factors_wanted, bias_wanted = wanted
    wide = accumulation_dtype(x.dtype, preferred_element_type)
    apply = functools.partial(apply_launches, axis=axis, precision=precision)

    def multiply_out(factors: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return fuse(factors, partition, precision="highest")

    products, pull_back = jax.vjp(
        multiply_out, [factor.astype(wide) for factor in factors]
    )
    weights = tuple(product.astype(x.dtype) for product in products)
    dz = dy.astype(wide)
    if activation is not None:
        z = apply(x, weights, bias=bias, preferred_element_type=preferred_element_type)
        _, through = jax.vjp(
            functools.partial(activate, activation=activation), z.astype(wide)
        )
        (dz,) = through(dz)
    dbias = dz.sum(1 + axis).astype(bias.dtype) if bias_wanted else None
    ends = [sum(partition[: i + 1]) for i in range(len(partition))]
    dx, dweights = _chain_gradients(
        x,
        weights,
        dz.astype(x.dtype),
        x_wanted=x_wanted,
        weights_wanted=[
            any(factors_wanted[end - length : end])
            for end, length in zip(ends, partition, strict=True)
        ],
        axis=axis,
        precision=precision,
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
            # Only then the next intermediate: XLA would keep several at a time.
            x, dy, dweights = jax.lax.optimization_barrier((x, dy, dweights))
            done = index
        after = weights[index + 1 :]
        h = apply(x, after) if after else x
        dweights[index] = _weight_gradient(
            dy, h, weights[index].shape, axis=axis, precision=precision
        )
    dx = apply(dy, transpose(weights[done:])) if x_wanted else None
    return dx, dweights


def _weight_gradient(
    dy: jax.Array,
    x: jax.Array,
    shape: tuple[int, ...],
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """dw[i,j,l,k] = Σ_n dy[n;i,j,k] · x[n;i,l,k] over the batch, as it accumulates."""
    a, b, c, d = shape
    batch = x.shape[1 + axis]
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
