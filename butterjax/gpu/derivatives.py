"""Derivatives for kernels: XLA's in forward mode, other kernels in reverse mode."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from butterjax.gpu.custom_rules import (
    Arrays,
    Rules,
    SomeArrays,
    call,
    call_linear,
    tangent_of,
)
from butterjax.implementations.einsum import einsum
from butterjax.implementations.registry import (
    FeatureAxis,
    FusedImplementation,
    with_epilogue,
)
from pallas_kernels.common import compat
from pallas_kernels.common.epilogue import Activation

# x, the factors, and the bias or None; or one entry for each of these.
Operands = tuple[Any, tuple[Any, ...], Any]

formula = with_epilogue(einsum)


class Backward(Protocol):
    """The reverse mode of a `FusedImplementation`.

    Takes its operands and options, the gradient dy of its result, and for each operand
    whether its gradient is wanted. Returns the gradients, of the shapes and dtypes of
    the operands, and None or anything else for those that nobody wants. It is never
    differentiated.
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
    operands are kept and no intermediate. Second derivatives are XLA's again. Where
    `jax.vmap` maps over x alone and features come last, examples become one batch.

    Args:
      backward: the gradients of the operands.
    """

    def decorate(kernel: FusedImplementation) -> FusedImplementation:
        @functools.wraps(kernel)
        def with_keywords(
            x: jax.Array,
            factors: tuple[jax.Array, ...],
            *,
            bias: jax.Array | None,
            **options: Any,
        ) -> jax.Array:
            leaves, tree = _flatten((x, tuple(factors), bias))
            # Under shard_map, JAX adds up over a mesh where it transposes this.
            varying = [compat.varying_as(leaf, *leaves) for leaf in leaves]
            (y,) = call(_rules(kernel, backward, options, tree), varying)
            return y

        return with_keywords

    return decorate


def xla_gradients(
    options: dict[str, Any], wanted: Operands, operands: Operands, dy: jax.Array
) -> Operands:
    """The gradients of `formula` that are wanted, by XLA; None for the others."""
    leaves, tree = _flatten(operands)
    chosen = jax.tree.leaves(wanted)

    def at(point: Arrays) -> jax.Array:
        moved = iter(point)
        x, factors, bias = tree.unflatten(
            next(moved) if choose else leaf
            for leaf, choose in zip(leaves, chosen, strict=True)
        )
        return formula(x, factors, bias=bias, **options)

    _, pull_back = jax.vjp(at, _chosen(leaves, chosen))
    (moved,) = pull_back(dy)
    found = iter(moved)
    gradients: Operands = tree.unflatten(
        next(found) if choose else None for choose in chosen
    )
    return gradients


def _rules(
    kernel: FusedImplementation, backward: Backward, options: dict[str, Any], tree: Any
) -> Rules:
    """The rules of a kernel as a function of the leaves of its operands."""
    # Of x alone there is more where there are more vectors.
    stacks = (_stacks(options), *[False] * (tree.num_leaves - 1))

    def apply_by(implementation: FusedImplementation, leaves: Arrays) -> Arrays:
        x, factors, bias = tree.unflatten(leaves)
        y = implementation(_one_batch(x), factors, bias=bias, **options)
        return [_like_batch(y, x)]

    of_formula = tangent_of(functools.partial(apply_by, formula))

    def tangent(leaves: Arrays, dots: SomeArrays) -> Arrays:
        moves = [dot is not None for dot in dots]
        rules = _backward_rules(backward, options, tree.unflatten(moves), tree)

        def along(residuals: Arrays, moved: Arrays) -> Arrays:
            each = iter(moved)
            return of_formula(
                residuals, [next(each) if move else None for move in moves]
            )

        return call_linear(
            along,
            lambda residuals, gradients: call(rules, [*residuals, *gradients]),
            leaves,
            _chosen(dots, moves),
            stacks=(*stacks, *_chosen(stacks, moves)),
        )

    return Rules(functools.partial(apply_by, kernel), tangent, stacks=stacks)


def _backward_rules(
    backward: Backward, options: dict[str, Any], wanted: Operands, tree: Any
) -> Rules:
    """Those of the wanted gradients as a function of the leaves and dy."""

    def gradients_by(
        function: Callable[[Operands, jax.Array], Operands], arrays: Arrays
    ) -> Arrays:
        *leaves, dy = arrays
        x, *weights = tree.unflatten(leaves)
        gradients = function((_one_batch(x), *weights), _one_batch(dy))
        dx, *found = _chosen(
            tree.flatten_up_to(gradients), [True, *jax.tree.leaves(wanted)[1:]]
        )
        return [_like_batch(dx, x), *found] if wanted[0] else found

    by_kernels = functools.partial(backward, wanted=wanted, **options)
    by_xla = functools.partial(xla_gradients, options, wanted)
    _, *of_weights = jax.tree.leaves(wanted)
    return Rules(
        functools.partial(gradients_by, by_kernels),
        tangent_of(functools.partial(gradients_by, by_xla)),
        # Under `jax.vmap`, those of the weights are wanted one by one.
        stacks=(
            (True, *[False] * len(of_weights), True)
            if _stacks(options) and not any(of_weights)
            else ()
        ),
    )


def _stacks(options: dict[str, Any]) -> bool:
    """Whether more batch axes in front of x are but a larger batch."""
    return bool(options["axis"] == -1)


def _one_batch(x: jax.Array) -> jax.Array:
    """(..., batch, features) as a matrix."""
    return x if x.ndim == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _like_batch(y: jax.Array, x: jax.Array) -> jax.Array:
    """The reverse of `_one_batch`, of x, for another number of features."""
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def _chosen(values: Sequence[Any], choose: Sequence[bool]) -> list[Any]:
    return [value for value, chosen in zip(values, choose, strict=True) if chosen]


def _flatten(operands: Operands) -> tuple[list[Any], Any]:
    return jax.tree.flatten(operands)
