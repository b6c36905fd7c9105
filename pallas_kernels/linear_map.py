"""Linear maps with a transpose of their own.

JAX takes the transpose of a linear map from that of its parts, and a kernel has none.
`jax.custom_vjp` would name one, but leaves no forward mode; `jax.custom_jvp` has no
transpose; `jax.custom_derivatives.linear_call` has neither a second derivative nor
`jax.vmap`. Hence a primitive, which leans on the parts of JAX that extensions may use.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = Sequence[jax.Array]

_linear_map_p = Primitive("linear_map")


def linear_map(
    function: Callable[[Arrays, Arrays], jax.Array],
    transpose: Callable[[Arrays, jax.Array], Arrays],
    residuals: Arrays,
    operands: Arrays,
) -> jax.Array:
    """What `function` returns; in reverse mode, JAX applies `transpose`.

    Derivatives in the residuals are those of `function` and, where reverse mode is
    differentiated, of `transpose`. Under `jax.vmap` both are mapped.

    Args:
      function: of residuals and operands, linear in the operands taken together.
      transpose: of residuals and the gradient of the result; gives the gradients in all
        operands, of their shapes and types.
      residuals: arrays that both need.
      operands: arrays, at least one.
    """
    y: jax.Array = _linear_map_p.bind(
        *residuals,
        *operands,
        function=function,
        transpose=transpose,
        num_residuals=len(residuals),
    )
    return y


def _apply(
    *arrays: Any, function: Callable[..., Any], num_residuals: int, **_: Any
) -> Any:
    return function(arrays[:num_residuals], arrays[num_residuals:])


@_linear_map_p.def_abstract_eval
def _abstract(*arrays: Any, **params: Any) -> Any:
    (result,) = jax.make_jaxpr(lambda *args: _apply(*args, **params))(*arrays).out_avals
    return result


def _jvp(primals: Any, tangents: Any, *, num_residuals: int, **params: Any) -> Any:
    still = all(isinstance(dot, ad.Zero) for dot in tangents[:num_residuals])
    dots = tuple(map(ad.instantiate_zeros, tangents))
    apply = functools.partial(
        _linear_map_p.bind if still else _apply, num_residuals=num_residuals, **params
    )
    if still:
        return apply(*primals), apply(*primals[:num_residuals], *dots[num_residuals:])
    return jax.jvp(apply, primals, dots)


def _transpose(
    dy: Any, *arrays: Any, transpose: Callable[..., Any], num_residuals: int, **_: Any
) -> list[Any]:
    if isinstance(dy, ad.Zero):
        return [None] * len(arrays)
    gradients = transpose(arrays[:num_residuals], dy)
    wanted = map(ad.is_undefined_primal, arrays[num_residuals:])
    return [None] * num_residuals + [
        gradient if want else None
        for gradient, want in zip(gradients, wanted, strict=True)
    ]


def _batch(
    arrays: Any,
    axes: Any,
    *,
    function: Callable[..., Any],
    transpose: Callable[..., Any],
    num_residuals: int,
) -> Any:
    """Maps both; an operand that is the same for all gets the sum of its gradients."""
    of_residuals, of_operands = axes[:num_residuals], axes[num_residuals:]
    mapped = jax.vmap(function, in_axes=(tuple(of_residuals), tuple(of_operands)))

    def mapped_transpose(residuals: Arrays, dy: jax.Array) -> Arrays:
        each = jax.vmap(transpose, in_axes=(tuple(of_residuals), 0))(residuals, dy)
        return tuple(
            gradient.sum(0) if axis is None else jnp.moveaxis(gradient, 0, axis)
            for gradient, axis in zip(each, of_operands, strict=True)
        )

    y = linear_map(
        lambda residuals, operands: mapped(tuple(residuals), tuple(operands)),
        lambda residuals, dy: mapped_transpose(tuple(residuals), dy),
        arrays[:num_residuals],
        arrays[num_residuals:],
    )
    return y, 0


_linear_map_p.def_impl(_apply)
ad.primitive_jvps[_linear_map_p] = _jvp
ad.primitive_transposes[_linear_map_p] = _transpose
batching.primitive_batchers[_linear_map_p] = _batch
mlir.register_lowering(_linear_map_p, mlir.lower_fun(_apply, multiple_results=False))
