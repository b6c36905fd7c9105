"""The names of a layer's factors among its parameters, and the way back."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from butterjax import array_checks, checks

# What layers write, and what `flax.serialization` makes of a tuple of factors.
_NAME = re.compile(r"(?:factor_)?(\d+)")


def factor_names(length: int) -> tuple[str, ...]:
    """Names of so many factors, the leftmost first: factor_00, factor_01, ...

    Sorted as text they stay in order, as in `jax.tree.leaves` of a dict.
    """
    digits = max(2, len(str(length - 1)))
    return tuple(f"factor_{i:0{digits}}" for i in range(length))


def is_factor_name(name: str) -> bool:
    """Whether a layer's parameter of that name is a factor."""
    return re.fullmatch(r"factor_\d+", name) is not None


def factors_of(params: Mapping[str, Any]) -> tuple[jax.Array, ...]:
    """The factors among the parameters of one layer, the leftmost first.

    Args:
      params: the parameters of one `butterjax.linen.Butterfly` or
        `butterjax.nnx.Butterfly`: a dict, a `flax.nnx.State`, or what
        `flax.serialization.msgpack_restore` gives for one of these or for a tuple of
        factors, in any order. Boxes as of `flax.linen.with_partitioning` are opened.

    Returns:
      What `butterjax.butterfly` takes as `factors`. Under `jax.vmap`, or for layers
      stacked by `flax.linen.scan`, the arrays have more axes in front.

    Raises:
      TypeError: if `params` is no mapping, or a factor no array.
      ValueError: if there is no factor, or one is missing or there twice.
    """
    what = "a dict or State of the parameters of one Butterfly layer"
    checks.instance("factors_of", "params", params, Mapping, what)
    found: dict[int, Any] = {}
    for name, leaf in params.items():
        match = _NAME.fullmatch(str(name))
        if match is None:
            continue  # A bias, or what others have added.
        index = int(match[1])
        if index in found:
            raise ValueError(
                f"factors_of: params must hold each factor once, got {_keys(params)}"
            )
        found[index] = leaf
    if not found:
        raise ValueError(
            "factors_of: params must be those of one Butterfly layer, factor_00 and so "
            f"on; got the keys {_keys(params)}"
        )
    if sorted(found) != list(range(len(found))):
        raise ValueError(
            f"factors_of: params must hold factors 0 to {max(found)}, got the keys "
            f"{_keys(params)}"
        )
    return tuple(
        _array(f"factor {index} of params", found[index]) for index in sorted(found)
    )


def _array(name: str, leaf: Any) -> jax.Array:
    """A leaf out of its box, if it has one: that of Linen or of NNX is a pytree."""
    leaves = jax.tree.leaves(leaf)
    return array_checks.array(
        "factors_of", name, leaves[0] if len(leaves) == 1 else leaf
    )


def _keys(params: Mapping[str, Any]) -> str:
    return ", ".join(map(str, params)) or "none"
