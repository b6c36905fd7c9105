"""Derivatives for kernels that have none: XLA's, of the same map."""

import functools
from typing import Any

import jax

from butterjax.implementations.einsum import einsum
from butterjax.implementations.registry import (
    FeatureAxis,
    FusedImplementation,
    with_epilogue,
)
from pallas_kernels.epilogue import Activation


def with_xla_gradients(kernel: FusedImplementation) -> FusedImplementation:
    """Decorator that gives a kernel the reverse-mode derivatives of `einsum`.

    x and the weights are kept for the backward pass, and no intermediate: it computes
    those again. Its own derivatives are XLA's too. There are none in forward mode.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
    def apply(
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        bias: jax.Array | None,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
        activation: Activation | None,
    ) -> jax.Array:
        return kernel(
            x,
            factors,
            axis=axis,
            precision=precision,
            preferred_element_type=preferred_element_type,
            bias=bias,
            activation=activation,
        )

    def forward(x: Any, factors: Any, bias: Any, *static: Any) -> tuple[jax.Array, Any]:
        return apply(x, factors, bias, *static), (x, factors, bias)

    def backward(
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
        activation: Activation | None,
        saved: Any,
        dy: jax.Array,
    ) -> tuple[jax.Array, Any, Any]:
        def formula(x: Any, factors: Any, bias: Any) -> jax.Array:
            return with_epilogue(einsum)(
                x,
                factors,
                axis=axis,
                precision=precision,
                preferred_element_type=preferred_element_type,
                bias=bias,
                activation=activation,
            )

        _, pull_back = jax.vjp(formula, *saved)
        dx, dfactors, dbias = pull_back(dy)
        return dx, dfactors, dbias

    apply.defvjp(forward, backward)

    @functools.wraps(kernel)
    def with_keywords(
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
        bias: jax.Array | None,
        activation: Activation | None,
    ) -> jax.Array:
        y: jax.Array = apply(
            x, factors, bias, axis, precision, preferred_element_type, activation
        )
        return y

    return with_keywords
