"""Checks of arguments: each names the function, the argument, its value and the rule.

What knows nothing of JAX; arrays and dtypes are the matter of `array_checks`.
"""

import operator
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np

_LARGEST = 2**31 - 1  # Features that an axis can have.
_LONGEST = 120  # Characters of a value in a message.


def shown(value: object) -> str:
    """A value as messages show it: arrays by shape and dtype, and no long text."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def integer(function: str, name: str, value: Any, *, least: int | None = None) -> int:
    """The value as an int.

    Args:
      function: who asks, for the message.
      name: of the argument.
      value: what was given.
      least: the smallest value allowed; None for any.

    Raises:
      TypeError: if it is no integer; a bool is none.
      ValueError: if it is below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be an integer, got {shown(value)}")
    if least is not None and number < least:
        raise ValueError(f"{function}: {name} must be at least {least}, got {number}")
    return number


def size(function: str, name: str, value: Any) -> int:
    """A number of features as an int.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is below 1, or more than an axis can have.
    """
    number = integer(function, name, value, least=1)
    if number > _LARGEST:
        raise ValueError(f"{function}: {name} must be at most {_LARGEST}, got {number}")
    return number


def boolean(function: str, name: str, value: Any) -> bool:
    """The value as a bool.

    Raises:
      TypeError: if it is neither True nor False.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, got {shown(value)}")
    return bool(value)


def choice(function: str, name: str, value: Any, choices: Collection[Any]) -> None:
    """Checks that the value is one of those there are, of the same type.

    Raises:
      ValueError: if it is none of them.
    """
    # Lists and arrays are not to be compared, nor is True the number 1.
    if any(isinstance(value, type(one)) and value == one for one in choices):
        return
    known = ", ".join(map(str, choices))
    raise ValueError(f"{function}: {name} must be one of {known}; got {shown(value)}")


def axis(function: str, value: Any) -> None:
    """Checks that the feature axis of a matrix is 0 or -1.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is another one.
    """
    if integer(function, "axis", value) not in (0, -1):
        raise ValueError(f"{function}: axis must be 0 or -1, got {value}")


def function(caller: str, name: str, value: Any) -> None:
    """Checks that the value can be called.

    Raises:
      TypeError: if it cannot.
    """
    if not callable(value):
        raise TypeError(f"{caller}: {name} must be a function, got {shown(value)}")


def instance(
    function: str, name: str, value: Any, kind: type, what: str | None = None
) -> None:
    """Checks that the value is of a class.

    Args:
      function: who asks, for the message.
      name: of the argument.
      value: what was given.
      kind: the class.
      what: what the message calls it; None for the name of the class.

    Raises:
      TypeError: if it is not.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{function}: {name} must be {what or f'a {kind.__name__}'}, got "
            f"{shown(value)}"
        )


def sequence(function: str, name: str, value: Any, what: str) -> tuple[Any, ...]:
    """The entries of a list, a tuple, a generator, ...: of what has an order.

    Args:
      function: who asks, for the message.
      name: of the argument.
      value: what was given.
      what: what the message says it must be.

    Raises:
      TypeError: if it is none of these.
    """
    unordered = isinstance(value, str | bytes | Mapping | AbstractSet)
    is_number = getattr(value, "ndim", 1) == 0
    if unordered or is_number or not isinstance(value, Iterable):
        raise TypeError(f"{function}: {name} must be {what}, got {shown(value)}")
    return tuple(value)


def factor_shapes(
    function: str, factors: Iterable[Any], name: str = "factors"
) -> tuple[tuple[int, int, int, int], ...]:
    """The shapes of factors, each of which is its pattern.

    Args:
      function: who asks, for the message.
      factors: arrays, or anything else with a shape.
      name: of the argument.

    Raises:
      TypeError: if one has no shape.
      ValueError: if there is none, or one has other than four axes or an empty one.
    """
    shapes = tuple(
        factor_shape(function, f"{name}[{i}]", one) for i, one in enumerate(factors)
    )
    if not shapes:
        raise ValueError(f"{function}: {name} must hold at least one factor, got none")
    return shapes


def factor_shape(function: str, name: str, factor: Any) -> tuple[int, int, int, int]:
    """The shape of one factor; see `factor_shapes`.

    Args:
      function: who asks, for the message.
      name: of the factor.
      factor: an array, or anything else with a shape.

    Raises:
      TypeError: if it has no shape.
      ValueError: if it has other than four axes or an empty one.
    """
    shape = getattr(factor, "shape", None)
    if not isinstance(shape, tuple):
        raise TypeError(f"{function}: {name} must be an array, got {shown(factor)}")
    if len(shape) != 4 or 0 in shape:
        raise ValueError(
            f"{function}: {name} must have the shape (a, b, c, d) of its "
            f"pattern, each at least 1, got shape {shape}"
        )
    return shape
