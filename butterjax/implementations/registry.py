"""The registry of implementations: one function each, all with the same signature.

An implementation is called with

    x                       (batch, n_in) for axis=-1, (n_in, batch) for axis=0
    factors                 arrays (a, b, c, d), of the dtype of x, sizes checked
    axis                    the feature axis of x and of the result, -1 or 0
    precision               as in `jax.lax.dot_general`
    preferred_element_type  dtype of the result

and returns (batch, n_out) or (n_out, batch). What it does not support it refuses
while it is traced, by raising `NotImplementedError` with the reason, decided from
shapes and dtypes alone.
"""

import functools
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import jax

FeatureAxis = Literal[0, -1]


class Implementation(Protocol):
    """Applies a chain of factors to a matrix; see the module's docstring."""

    def __call__(
        self,
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: FeatureAxis,
        precision: jax.lax.PrecisionLike,
        preferred_element_type: jax.typing.DTypeLike,
    ) -> jax.Array: ...


class FactorProduct(Protocol):
    """Applies one factor to a matrix; the arguments are those of `Implementation`."""

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
_REGISTRY: dict[str, Implementation] = {}


def register(name: str) -> Callable[[_F], _F]:
    """Decorator that makes a function selectable as `implementation=name`.

    Raises:
      ValueError: if the name is taken.
    """

    def add(function: _F) -> _F:
        if name in _REGISTRY:
            raise ValueError(f"register: an implementation named {name!r} exists")
        _REGISTRY[name] = function
        return function

    return add


def names() -> tuple[str, ...]:
    """Names of all implementations, in the order they were registered."""
    return tuple(_REGISTRY)


def get(name: str) -> Implementation:
    """The implementation of that name.

    Raises:
      ValueError: if there is none; the message lists those there are.
    """
    if name not in _REGISTRY:
        known = ", ".join(names())
        raise ValueError(f"implementation must be one of {known}; got {name!r}")
    return _REGISTRY[name]


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
