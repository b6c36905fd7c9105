"""Derivatives for kernels: XLA's in forward mode, other kernels in reverse mode."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from butterjax.implementations.einsum import einsum
from butterjax.implementations.registry import (
    FeatureAxis,
    FusedImplementation,
    with_epilogue,
)
from pallas_kernels import compat
from pallas_kernels.epilogue import Activation
from pallas_kernels.linear_map import linear_map

# x, the factors, and the bias or None; or one entry for each of these.
Operands = tuple[Any, tuple[Any, ...], Any]

formula = with_epilogue(einsum)


class Backward(Protocol):
    """The reverse mode of a `FusedImplementation`.

    Takes its operands and options, the gradient dy of its result, and for each operand
    whether its gradient is wanted. Returns the gradients, of the shapes and dtypes of
    the operands, and None or anything else for those that nobody wants.
    """

    def __call__(
        self,
        operands: Operands,
        dy: jax.Array,
        *,
        wanted: Operands,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
        activation: Activation | None,
    ) -> Operands: ...


def with_derivatives(
    backward: Backward,
) -> Callable[[FusedImplementation], FusedImplementation]:
    """Decorator that gives a kernel derivatives of all orders.

    Forward mode is XLA's, of `einsum`. Reverse mode is `backward`, for which the
    operands are kept and no intermediate. Second derivatives are XLA's again.

    Args:
      backward: the gradients of the operands, by kernels that need no derivatives.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
    def gradients(
        options: dict[str, Any], wanted: Operands, operands: Operands, dy: jax.Array
    ) -> Operands:
        every = backward(operands, dy, wanted=wanted, **options)
        return jax.tree.map(lambda want, one: one if want else None, wanted, every)

    @gradients.defjvp
    def derivative_of_gradients(
        options: dict[str, Any], wanted: Operands, primals: Any, tangents: Any
    ) -> Any:
        by_xla = functools.partial(xla_gradients, options, wanted)
        return jax.jvp(by_xla, primals, tangents)

    def decorate(kernel: FusedImplementation) -> FusedImplementation:
        @functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
        def apply(options: dict[str, Any], operands: Operands) -> jax.Array:
            x, factors, bias = operands
            return kernel(x, factors, bias=bias, **options)

        @functools.partial(apply.defjvp, symbolic_zeros=True)
        def derivative(options: dict[str, Any], primals: Any, tangents: Any) -> Any:
            (operands,), (tangent,) = primals, tangents
            leaves, tree = _flatten(operands)
            dots = tree.flatten_up_to(tangent)
            moves = [not isinstance(dot, SymbolicZero) for dot in dots]
            y = apply(options, operands)
            if not any(moves):
                return y, jnp.zeros_like(y)
            wanted = tree.unflatten(moves)

            def along(residuals: Sequence[Any], tangents: Sequence[Any]) -> jax.Array:
                operands = tree.unflatten(residuals)
                at, point = _formula_of(options, wanted, operands)
                _, y_dot = jax.jvp(at, point, list(tangents))
                return y_dot

            def across(residuals: Sequence[Any], dy: jax.Array) -> Sequence[Any]:
                operands = tree.unflatten(residuals)
                return jax.tree.leaves(gradients(options, wanted, operands, dy))

            moving = [dot for dot, move in zip(dots, moves, strict=True) if move]
            return y, linear_map(along, across, leaves, moving)

        @functools.wraps(kernel)
        def with_keywords(
            x: jax.Array,
            factors: tuple[jax.Array, ...],
            *,
            bias: jax.Array | None,
            **options: Any,
        ) -> jax.Array:
            # Under shard_map, JAX adds up over a mesh where it transposes this.
            leaves, tree = _flatten((x, tuple(factors), bias))
            varying = [compat.varying_as(leaf, *leaves) for leaf in leaves]
            y: jax.Array = apply(options, tree.unflatten(varying))
            return y

        return with_keywords

    return decorate


def xla_gradients(
    options: dict[str, Any], wanted: Operands, operands: Operands, dy: jax.Array
) -> Operands:
    """The gradients of `formula` that are wanted, by XLA; None for the others."""
    at, point = _formula_of(options, wanted, operands)
    _, pull_back = jax.vjp(at, *point)
    found = iter(pull_back(dy))
    gradients: Operands = jax.tree.map(
        lambda want: next(found) if want else None, wanted
    )
    return gradients


def _formula_of(
    options: dict[str, Any], wanted: Operands, operands: Operands
) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """`formula` as a function of the operands that are wanted, and those operands."""
    leaves, tree = _flatten(operands)
    chosen = jax.tree.leaves(wanted)

    def at(*point: jax.Array) -> jax.Array:
        moved = iter(point)
        x, factors, bias = tree.unflatten(
            next(moved) if choose else leaf
            for leaf, choose in zip(leaves, chosen, strict=True)
        )
        return formula(x, factors, bias=bias, **options)

    return at, [leaf for leaf, choose in zip(leaves, chosen, strict=True) if choose]


def _flatten(operands: Operands) -> tuple[list[Any], Any]:
    return jax.tree.flatten(operands)
