"""Functions with rules of their own for `jax.jvp`, `jax.vjp` and `jax.vmap`.

A kernel has no derivative. `jax.custom_vjp` would give it one, but none in forward
mode; `jax.custom_jvp` none that is a kernel in reverse mode, and JAX drops it where
`jax.lax.scan` is differentiated twice; `jax.custom_derivatives.linear_call` has neither
a second derivative nor `jax.vmap`. Hence a primitive, which leans on those parts of JAX
that extensions may use.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Arrays = Sequence[jax.Array]
SomeArrays = Sequence[jax.Array | None]

_call_p = Primitive("call_with_rules")
_call_p.multiple_results = True


@dataclasses.dataclass(frozen=True, eq=False)
class Rules:
    """A function from arrays to arrays, and what JAX makes of it.

    Attributes:
      function: takes a sequence of arrays and returns one. It is never differentiated.
      tangent: takes these arrays and a tangent of each, None for one that is zero, and
        returns tangents of the results. It may be differentiated.
      transpose: of a function that is linear in some of its arrays: takes all arrays,
        None for these, and the gradients of the results; returns a gradient for each
        array, which counts for these alone. None if there is no transpose.
      stacks: for each array, whether it may have more axes in front, as then all that
        stack and all results have; a gradient in one that does not stack is the sum.
        Empty if none may: then `jax.vmap` maps the function and its rules.
    """

    function: Callable[[Arrays], Arrays]
    tangent: Callable[[Arrays, SomeArrays], Arrays]
    transpose: Callable[[SomeArrays, Arrays], SomeArrays] | None = None
    stacks: tuple[bool, ...] = ()


def call(rules: Rules, arrays: Arrays) -> list[jax.Array]:
    """`rules.function` of arrays."""
    return _bind(rules, jax.make_jaxpr(lambda *args: rules.function(args)), arrays)


def call_linear(
    function: Callable[[Arrays, Arrays], Arrays],
    transpose: Callable[[Arrays, Arrays], Arrays],
    residuals: Arrays,
    operands: Arrays,
    *,
    stacks: tuple[bool, ...] = (),
) -> list[jax.Array]:
    """A function that is linear in the operands, with a transpose of its own.

    Args:
      function: of residuals and operands, linear in the operands taken together; its
        derivatives in the residuals are JAX's.
      transpose: of residuals and the gradients of the results; gives the gradients of
        the operands.
      residuals: arrays that both need.
      operands: arrays, at least one.
      stacks: as `Rules` has it, of the residuals and then the operands.
    """
    count = len(residuals)

    def of_all(arrays: Arrays) -> Arrays:
        return function(arrays[:count], arrays[count:])

    def tangent(arrays: Arrays, dots: SomeArrays) -> Arrays:
        if any(dot is not None for dot in dots[:count]):
            return tangent_of(of_all)(arrays, dots)
        moved = [
            jnp.zeros_like(array) if dot is None else dot
            for array, dot in zip(arrays[count:], dots[count:], strict=True)
        ]
        return call(rules, [*arrays[:count], *moved])

    def transpose_all(arrays: SomeArrays, gradients: Arrays) -> SomeArrays:
        known = [array for array in arrays[:count] if array is not None]
        return [None] * count + list(transpose(known, gradients))

    rules = Rules(of_all, tangent, transpose_all, stacks)
    return call(rules, [*residuals, *operands])


def tangent_of(
    function: Callable[[Arrays], Arrays],
) -> Callable[[Arrays, SomeArrays], Arrays]:
    """The tangents of a function as JAX has them, for `Rules`."""

    def tangent(arrays: Arrays, dots: SomeArrays) -> Arrays:
        moves = [dot is not None for dot in dots]

        def at(point: Arrays) -> Arrays:
            moved = iter(point)
            return function(
                [
                    next(moved) if move else array
                    for move, array in zip(moves, arrays, strict=True)
                ]
            )

        point = [array for move, array in zip(moves, arrays, strict=True) if move]
        along = [dot for dot in dots if dot is not None]
        _, tangents = jax.jvp(at, (point,), (along,))
        return tangents

    return tangent


def _bind(
    rules: Rules, trace: Callable[..., ClosedJaxpr], arrays: Arrays
) -> list[jax.Array]:
    results: list[jax.Array] = _call_p.bind(*arrays, jaxpr=trace(*arrays), rules=rules)
    return results


def _evaluate(*arrays: Any, jaxpr: ClosedJaxpr, rules: Rules) -> Any:
    del rules
    return jaxpr_as_fun(jaxpr)(*arrays)


@_call_p.def_effectful_abstract_eval
def _abstract(*arrays: Any, jaxpr: ClosedJaxpr, rules: Rules) -> Any:
    del arrays, rules
    return jaxpr.out_avals, jaxpr.effects  # The interpreter of kernels has some.


def _jvp(arrays: Any, tangents: Any, *, jaxpr: ClosedJaxpr, rules: Rules) -> Any:
    dots = [None if isinstance(dot, ad.Zero) else dot for dot in tangents]
    results = _call_p.bind(*arrays, jaxpr=jaxpr, rules=rules)
    return results, list(rules.tangent(arrays, dots))


def _transpose(gradients: Any, *arrays: Any, jaxpr: ClosedJaxpr, rules: Rules) -> Any:
    if rules.transpose is None:
        raise NotImplementedError("call_with_rules: there is no transpose")
    known = [None if ad.is_undefined_primal(array) else array for array in arrays]
    found = rules.transpose(known, list(map(ad.instantiate_zeros, gradients)))
    return [
        one if array is None else None for one, array in zip(found, known, strict=True)
    ]


def _batch(arrays: Any, axes: Any, *, jaxpr: ClosedJaxpr, rules: Rules) -> Any:
    if rules.stacks == tuple(axis is not None for axis in axes):
        moved = [
            array if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        ]
        results = call(rules, moved)
    else:
        mapped = jax.vmap(jaxpr_as_fun(jaxpr), in_axes=tuple(axes))
        results = _bind(_mapped(rules, axes), jax.make_jaxpr(mapped), arrays)
    return results, [0] * len(results)


def _mapped(rules: Rules, axes: Sequence[int | None]) -> Rules:
    """The rules of the function under `jax.vmap`."""

    def function(arrays: Arrays) -> Arrays:
        return jax.vmap(rules.function, in_axes=(list(axes),))(list(arrays))

    def tangent(arrays: Arrays, dots: SomeArrays) -> Arrays:
        # A tangent has the axes of its array.
        along = [
            None if dot is None else axis for dot, axis in zip(dots, axes, strict=True)
        ]
        return jax.vmap(rules.tangent, in_axes=(list(axes), along))(
            list(arrays), list(dots)
        )

    def transpose(arrays: SomeArrays, gradients: Arrays) -> SomeArrays:
        assert rules.transpose is not None
        known = [
            None if array is None else axis
            for array, axis in zip(arrays, axes, strict=True)
        ]
        each = jax.vmap(rules.transpose, in_axes=(known, 0))(
            list(arrays), list(gradients)
        )
        return [
            None
            if one is None
            else one.sum(0)  # What is the same for all has the sum of its gradients.
            if axis is None
            else jnp.moveaxis(one, 0, axis)
            for one, axis in zip(each, axes, strict=True)
        ]

    return Rules(function, tangent, transpose if rules.transpose else None)


_call_p.def_impl(_evaluate)
ad.primitive_jvps[_call_p] = _jvp
ad.primitive_transposes[_call_p] = _transpose
batching.primitive_batchers[_call_p] = _batch
mlir.register_lowering(_call_p, mlir.lower_fun(_evaluate, multiple_results=True))
