"""The registry of implementations: one function each, all with the same signature.

XLA fuses what follows a product by itself; an implementation that has to do that inside
its own kernel is a `FusedImplementation` and takes the epilogue too.

An implementation is called with

    x                       (*batch, n_in) for axis=-1, (n_in, *batch) for axis=0
    factors                 arrays (a, b, c, d), of the dtype of x, sizes checked
    axis                    the feature axis of x and of the result, -1 or 0
    precision               as in `jax.lax.dot_general`
    preferred_element_type  dtype of the result

and returns (*batch, n_out) or (n_out, *batch). There are any number of batch axes, of
any sizes: they are kept, as merging them would lose how they are sharded, and where
`jax.export` leaves a size open it is no number. What an implementation does not support
it refuses while it is traced, by raising `NotImplementedError` with the reason, decided
from shapes and dtypes alone.

A kernel takes a matrix, one batch axis of a size that is a number: `register_fused`
sees to that.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

import jax
import jax.numpy as jnp

from butterjax import checks
from butterjax.implementations.batches import merge_batch
from butterjax.numerics import accumulation_dtype
from pallas_kernels.common.epilogue import Activation, activate

FeatureAxis = Literal[0, -1]


class Implementation(Protocol):
    """Applies a chain of factors; see the module's docstring."""

    def __call__(
        self,
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
    ) -> jax.Array: ...


class FusedImplementation(Protocol):
    """An `Implementation` that adds a bias to the result, then applies an activation.

    bias is (n_out,) of any real floating-point or complex type, or None; activation is
    one of `pallas_kernels.epilogue.ACTIVATIONS`, or None.
    """

    def __call__(
        self,
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
        bias: jax.Array | None,
        activation: Activation | None,
    ) -> jax.Array: ...


class FactorProduct(Protocol):
    """Applies one factor; the arguments are those of `Implementation`."""

    def __call__(
        self,
        x: jax.Array,
        factor: jax.Array,
        *,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
    ) -> jax.Array: ...


_F = TypeVar("_F", bound=Implementation)
_G = TypeVar("_G", bound=FusedImplementation)
_REGISTRY: dict[str, FusedImplementation] = {}


def register(name: str) -> Callable[[_F], _F]:
    """Decorator that makes a function selectable as `implementation=name`.

    Raises:
      ValueError: if the name is taken.
      TypeError: if the name is no string, or what it is to name no function.
    """
    checks.instance("register", "name", name, str, "a string")

    def add(function: _F) -> _F:
        checks.function("register", "function", function)
        _add(name, with_epilogue(function))
        return function

    return add


def register_fused(name: str) -> Callable[[_G], _G]:
    """`register` for a kernel: it takes the epilogue itself, and x as a matrix.

    Batch axes are merged for it (`batches.merge_batch`), and a batch of unknown size is
    refused: a kernel's grid is made of numbers.
    """
    checks.instance("register", "name", name, str, "a string")

    def add(function: _G) -> _G:
        checks.function("register", "function", function)
        of_any_batch = merge_batch(function)

        @functools.wraps(function)
        def of_known_batch(
            x: jax.Array, factors: tuple[jax.Array, ...], **options: Any
        ) -> jax.Array:
            if not all(isinstance(size, int) for size in x.shape):
                raise NotImplementedError(
                    f"implementation {name!r} is a kernel, whose grid needs every size "
                    f"as a number, but x has the shape {x.shape}: export it for a "
                    "fixed batch, or with implementation=None"
                )
            return of_any_batch(x, factors, **options)

        _add(name, of_known_batch)
        return function

    return add


def _add(name: str, function: FusedImplementation) -> None:
    if name in _REGISTRY:
        raise ValueError(f"register: name={name!r} must be new, but there is one")
    _REGISTRY[name] = function


def names() -> tuple[str, ...]:
    """Names of all implementations, in the order they were registered."""
    return tuple(_REGISTRY)


def get(name: str) -> FusedImplementation:
    """The implementation of that name.

    Raises:
      ValueError: if there is none; the message lists those there are.
    """
    checks.choice("implementations.get", "name", name, names())
    return _REGISTRY[name]


def with_epilogue(function: Implementation) -> FusedImplementation:
    """Lets XLA add the bias and apply the activation to an implementation's result.

    The result is rounded before and after: XLA then need not write a wider one.
    """

    @functools.wraps(function)
    def apply(
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: FeatureAxis,
        bias: jax.Array | None,
        activation: Activation | None,
        **options: Any,
    ) -> jax.Array:
        y = function(x, factors, axis=axis, **options)
        if bias is None and activation is None:
            return y
        wide = y.astype(accumulation_dtype(y.dtype, y.dtype))
        if bias is not None:
            # Of as many axes as the result: JAX may have been told to add none itself.
            batch = range(y.ndim - 1) if axis == -1 else range(1, y.ndim)
            wide += jnp.expand_dims(bias.astype(wide.dtype), tuple(batch))
        return activate(wide, activation).astype(y.dtype)

    return apply


def one_by_one(product: FactorProduct) -> Implementation:
    """Decorator that makes an implementation out of the product with one factor.

    The result applies a chain factor by factor, rounding to x's dtype in between.
    """

    def apply(
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
    ) -> jax.Array:
        one = functools.partial(product, axis=axis, precision=precision)
        for factor in reversed(factors[1:]):
            x = one(x, factor, preferred_element_type=x.dtype)
        return one(x, factors[0], preferred_element_type=preferred_element_type)

    apply.__doc__ = product.__doc__
    return apply
