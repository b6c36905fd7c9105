"""Checks of arguments that are arrays, dtypes, chains and the like; see `checks`."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from butterjax import checks
from butterjax.links import (
    Diagonal,
    Link,
    Permutation,
    Run,
    check_sizes,
    is_factor,
    runs,
)
from butterjax.numerics import SUPPORTED_DTYPES
from butterjax.pattern import Chain

_SHORT = {
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "c64": "complex64",
    "c128": "complex128",
}
_COMPUTED = frozenset(map(jnp.dtype, SUPPORTED_DTYPES))
_SEQUENCE = "a sequence of arrays, one for each factor"


def dtype(function: str, name: str, value: Any) -> jnp.dtype:
    """The dtype that an argument names.

    Args:
      function: who asks, for the message.
      name: of the argument.
      value: a dtype, a scalar type, or a name: that of NumPy, or a short one such as
        "bf16". Python's float and complex are as wide as JAX has them.

    Raises:
      TypeError: if it is none of `SUPPORTED_DTYPES`, or has 64 bits to a real number
        while JAX has not ("jax_enable_x64").
    """
    found = _named(value)
    if found not in _COMPUTED:
        raise TypeError(
            f"{function}: {name} must be one of {', '.join(SUPPORTED_DTYPES)}; got "
            f"{checks.shown(value) if found is None else found.name}"
        )
    return _available(function, name, value, found)


def stored_dtype(function: str, name: str, value: Any) -> jnp.dtype:
    """`dtype` of parameters, which may be narrower than what products are made of.

    Raises:
      TypeError: if it is neither a floating nor a complex dtype, or has 64 bits to a
        real number while JAX has not.
    """
    found = _named(value)
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise TypeError(
            f"{function}: {name} must be a floating or complex dtype, got "
            f"{checks.shown(value) if found is None else found.name}"
        )
    return _available(function, name, value, found)


def _named(value: Any) -> jnp.dtype | None:
    """The dtype that is meant, None if none is."""
    if value is None:
        return None
    try:
        return jnp.dtype(_SHORT.get(value, value) if isinstance(value, str) else value)
    except (TypeError, ValueError, SyntaxError):
        return None


def _available(function: str, name: str, value: Any, found: jnp.dtype) -> jnp.dtype:
    available = jax.dtypes.canonicalize_dtype(found)
    if available != found and value is not float and value is not complex:
        raise TypeError(
            f"{function}: {name}={found.name} must be {available.name} or narrower, as "
            "long as jax_enable_x64 is not set"
        )
    return available


def optional_dtype(function: str, name: str, value: Any) -> jnp.dtype | None:
    """`dtype`, or None for None."""
    return None if value is None else dtype(function, name, value)


def operands_dtype(function: str, name: str, *arrays: jax.Array) -> jnp.dtype:
    """The dtype that arrays are promoted to, as in `jnp.matmul`.

    Raises:
      TypeError: if it is none of `SUPPORTED_DTYPES`.
    """
    found = jnp.result_type(*arrays)
    if found not in _COMPUTED:
        raise TypeError(
            f"{function}: the dtype of {name} must be one of "
            f"{', '.join(SUPPORTED_DTYPES)}; got {found.name}"
        )
    return found


def array(function: str, name: str, value: Any) -> jax.Array:
    """An array, a number or nested lists of numbers as a JAX array.

    Raises:
      TypeError: if it is none of these.
    """
    if isinstance(value, jax.Array) and value.dtype in _COMPUTED:
        return value  # Fast, for the sake of eager calls.
    try:
        found = jnp.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{function}: {name} must be an array of numbers, got {checks.shown(value)}"
        ) from error
    is_number = jnp.issubdtype(found.dtype, jnp.number)
    if not is_number and not jnp.issubdtype(found.dtype, jnp.bool_):
        raise TypeError(
            f"{function}: {name} must be an array of numbers, got {checks.shown(value)}"
        )
    return found


def factors(function: str, value: Any, name: str = "factors") -> tuple[jax.Array, ...]:
    """The factors of a chain as arrays of four axes.

    Args:
      function: who asks, for the message.
      value: a list, a tuple, a generator of what `array` takes.
      name: of the argument.

    Raises:
      TypeError: if it is no such sequence.
      ValueError: if it is empty or one array, or an entry has not four axes.
    """
    return _factors(function, _entries(function, value, name), name)


def links(function: str, value: Any, name: str = "factors") -> tuple[Run, ...]:
    """The links of a chain, `Permutation`s and `Diagonal`s among them, as runs.

    Args:
      function: who asks, for the message.
      value: as of `factors`, other links among them.
      name: of the argument.

    Raises:
      TypeError: if it is no such sequence.
      ValueError: if it is empty or one array, an entry has not the axes it must have,
        or neighbours disagree on their inner size.
    """
    given = _entries(function, value, name)
    if all(map(is_factor, given)):
        arrays = _factors(function, given, name)
        Chain.of(arrays)  # Raises where two neighbours disagree.
        return (arrays,)
    found = tuple(_link(function, f"{name}[{i}]", one) for i, one in enumerate(given))
    check_sizes(function, found, name)
    return runs(found)


def _link(function: str, name: str, value: Any) -> Link:
    if isinstance(value, Permutation):
        return value
    if not isinstance(value, Diagonal):
        factor = array(function, name, value)
        checks.factor_shape(function, name, factor)
        return factor
    values = array(function, f"values of {name}", value.values)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"{function}: values of {name} must have the shape (n,) with n at least "
            f"1, got shape {values.shape}"
        )
    return Diagonal(values)


def _factors(
    function: str, given: tuple[Any, ...], name: str = "factors"
) -> tuple[jax.Array, ...]:
    arrays = tuple(array(function, f"{name}[{i}]", one) for i, one in enumerate(given))
    checks.factor_shapes(function, arrays, name)
    return arrays


def _entries(function: str, value: Any, name: str = "factors") -> tuple[Any, ...]:
    """The entries of an argument that is a sequence of factors."""
    if isinstance(value, Chain):
        raise TypeError(
            f"{function}: {name} must be {_SEQUENCE}, got {checks.shown(value)}: "
            "butterjax.init(key, chain) draws them"
        )
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        raise TypeError(
            f"{function}: {name} must be {_SEQUENCE}, got a mapping with the keys "
            f"{keys}: butterjax.factors_of(params) finds them in a layer's parameters"
        )
    if isinstance(value, Permutation | Diagonal):
        raise TypeError(
            f"{function}: {name} must be {_SEQUENCE}, got one "
            f"{type(value).__name__}: put it into a tuple"
        )
    if hasattr(value, "shape"):
        raise ValueError(
            f"{function}: {name} must be {_SEQUENCE}, got one array of shape "
            f"{value.shape}"
        )
    return checks.sequence(function, name, value, _SEQUENCE)


def chain(function: str, name: str, value: Any) -> None:
    """Checks that the value is a chain.

    Raises:
      TypeError: if it is not, lists of patterns included.
    """
    what = "a butterjax.Chain, as Chain([(a, b, c, d), ...]) makes one"
    checks.instance(function, name, value, Chain, what)


def key(function: str, name: str, value: Any) -> jax.Array:
    """A key of `jax.random`, new style or old.

    Raises:
      TypeError: if it is none, or more than one.
    """
    found = jnp.asarray(value) if hasattr(value, "dtype") else None
    if found is not None:
        is_new = jnp.issubdtype(found.dtype, jax.dtypes.prng_key)
        if is_new and found.ndim == 0:
            return found
        if found.dtype == jnp.uint32 and found.ndim == 1:
            return found
    raise TypeError(
        f"{function}: {name} must be a PRNG key, as jax.random.key(0) is, got "
        f"{checks.shown(value)}"
    )


def precision(function: str, value: Any) -> None:
    """Checks that `jax.lax.dot_general` takes the value as its precision.

    Raises:
      ValueError: if it does not.
    """
    if value is None or isinstance(value, jax.lax.Precision):
        return
    try:
        known = _is_precision(value)
    except TypeError:  # It cannot be hashed, so cannot be static under jit.
        known = False
    if not known:
        raise ValueError(
            f"{function}: precision must be as in jax.lax.dot_general: None, a "
            f"jax.lax.Precision, a name of one or a pair of them; got "
            f"{checks.shown(value)}"
        )


@functools.lru_cache(maxsize=64)
def _is_precision(value: Any) -> bool:
    one = np.ones(1, np.float32)
    try:
        jax.eval_shape(functools.partial(jnp.dot, precision=value), one, one)
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return False
    return True


def kernel_launch(
    function: str,
    patterns: Any,
    *,
    given_dtype: Any,
    batch: Any,
    axis: Any,
    out_dtype: Any,
    given_precision: Any,
) -> tuple[jnp.dtype, jnp.dtype | None]:
    """Checks what kernels are planned for.

    Args:
      function: who asks, for the message.
      patterns: a chain.
      given_dtype: the argument `dtype`.
      batch: an integer of at least 1.
      axis: 0 or -1.
      out_dtype: as `dtype`, or None.
      given_precision: the argument `precision`.

    Returns:
      The two dtypes.

    Raises:
      TypeError: if an argument is of another kind.
      ValueError: if `batch`, `axis` or `precision` is out of range.
    """
    chain(function, "patterns", patterns)
    checks.integer(function, "batch", batch, least=1)
    checks.axis(function, axis)
    precision(function, given_precision)
    return (
        dtype(function, "dtype", given_dtype),
        optional_dtype(function, "out_dtype", out_dtype),
    )
