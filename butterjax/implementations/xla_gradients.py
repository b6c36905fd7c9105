"""Derivatives for kernels that have none: XLA's, of the same map."""

import functools
from typing import Any

import jax

from butterjax.implementations.einsum import einsum
from butterjax.implementations.registry import FusedImplementation, with_epilogue

_formula = with_epilogue(einsum)


def with_xla_gradients(kernel: FusedImplementation) -> FusedImplementation:
    """Decorator that gives a kernel the reverse-mode derivatives of `einsum`.

    x and the weights are kept for the backward pass, and no intermediate: it computes
    those again. Its own derivatives are XLA's too. There are none in forward mode.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def apply(options: dict[str, Any], x: Any, factors: Any, bias: Any) -> jax.Array:
        return kernel(x, factors, bias=bias, **options)

    def forward(options: dict[str, Any], *operands: Any) -> tuple[jax.Array, Any]:
        return apply(options, *operands), operands

    def backward(options: dict[str, Any], operands: Any, dy: jax.Array) -> Any:
        def formula(x: Any, factors: Any, bias: Any) -> jax.Array:
            return _formula(x, factors, bias=bias, **options)

        _, pull_back = jax.vjp(formula, *operands)
        return pull_back(dy)

    apply.defvjp(forward, backward)

    @functools.wraps(kernel)
    def with_keywords(
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        bias: jax.Array | None,
        **options: Any,
    ) -> jax.Array:
        y: jax.Array = apply(options, x, factors, bias)
        return y

    return with_keywords
