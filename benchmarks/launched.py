"""Which hand-written kernels a program starts, read from what JAX traced of it."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pallas_kernels

# As the primitives of JAX that stand for a kernel are called, from version to version.
_CALLS = ("mpmd_map", "pallas_call", "core_map")
_SHARED = ("common", "compat")  # By kernels.
_FOLDER = pathlib.Path(pallas_kernels.__file__).parent


def names() -> tuple[str, ...]:
    """All kernels that there are, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in _FOLDER.glob("*/api.py")))


def kernels(traced: Any) -> tuple[str, ...]:
    """Names of the kernels in a `jax.stages.Traced`, in alphabetical order.

    A kernel is named after its folder in `pallas_kernels`. Both branches of what
    depends on the platform count.
    """
    return tuple(sorted(set(_called(traced.jaxpr))))


def _called(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            yield next(filter(None, map(_folder, _inside(equation))), "unknown")
        else:
            for inner in _jaxprs(equation):
                yield from _called(inner)


def _inside(equation: Any) -> Iterator[Any]:
    """All jaxprs in an equation, those of a kernel's body first."""
    for jaxpr in _jaxprs(equation):
        yield jaxpr
        for inner in jaxpr.eqns:
            yield from _inside(inner)


def _jaxprs(equation: Any) -> Iterator[Any]:
    return (one for value in equation.params.values() for one in _flat(value))


def _flat(parameter: Any) -> Iterator[Any]:
    if hasattr(parameter, "jaxpr"):
        parameter = parameter.jaxpr
    if hasattr(parameter, "eqns"):
        yield parameter
    elif isinstance(parameter, tuple | list):
        for one in parameter:
            yield from _flat(one)


def _folder(jaxpr: Any) -> str | None:
    """Where in `pallas_kernels` the function was written that a jaxpr was traced of."""
    written = re.search(r" at (.*):\d+$", jaxpr.debug_info.func_src_info or "")
    if not written or not (path := pathlib.Path(written[1])).is_relative_to(_FOLDER):
        return None
    name = path.relative_to(_FOLDER).parts[0].removesuffix(".py")
    return None if name in _SHARED else name
