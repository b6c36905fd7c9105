"""Files of JSON lines, one frozen dataclass per line, checked against its types.

Lines are only ever added, each batch in one write under a lock, so several processes
may share a file. A process that is killed while it writes leaves at most one line that
is not whole, at the end: it is passed over when the file is read, and cut off when
more is written.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from absl import logging

from butterjax import Chain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_SHAPES = tuple[tuple[int, int, int, int], ...]


def append(path: pathlib.Path, rows: Iterable["DataclassInstance"]) -> None:
    """Adds rows to a file, all of them or, if this process is killed, the first ones.

    Raises:
      ValueError: if a row does not have the types that its class declares; nothing is
        written then.
    """
    lines = []
    for row in rows:
        value = encode(row)
        decode(type(row), value)
        lines.append(json.dumps(value, allow_nan=False) + "\n")
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Let go of when the file is closed.
        _mend(path, file)
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _mend(path: pathlib.Path, file: IO[bytes]) -> None:
    """Ends the last line of a file, or cuts it off where it is not whole."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if not (rest := content[start:]):
        return
    if _is_json(rest):
        file.write(b"\n")
        return
    logging.warning("%s: cut off a last line that was not whole", path)
    file.truncate(start)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def load[R: "DataclassInstance"](path: pathlib.Path, row_type: type[R]) -> list[R]:
    """The rows of a file.

    Args:
      path: the file.
      row_type: the dataclass that each line is to hold.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if a line does not hold such a row; names the line and the field. A
        last line that is not whole is passed over, with a warning.
    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        content = file.read()
    lines = content.split(b"\n")
    if lines[-1] and not _is_json(lines[-1]):
        logging.warning("%s: passed over a last line that is not whole", path)
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(decode(row_type, json.loads(line)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return rows


def encode(value: Any) -> Any:
    """A dataclass of numbers, strings, tuples, dictionaries and chains, as JSON."""
    if isinstance(value, Chain):
        return value.shapes
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: encode(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [encode(one) for one in value]
    return value


def decode(kind: Any, value: Any, where: str = "row") -> Any:
    """What `encode` made JSON of, or what was read from it.

    Args:
      kind: a type: a dataclass, `Chain`, tuple, dict, optional, literal or plain one.
      value: JSON.
      where: the field that holds it, for the error.

    Raises:
      ValueError: if the value does not have the type; names the field.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return decode(arguments[0], value, where)
    if origin in (types.UnionType, typing.Union):
        return _decode_union(arguments, value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return _decode_tuple(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        key_type, value_type = arguments
        return {
            decode(key_type, key, f"{where} key"): decode(
                value_type, one, f"{where}[{key!r}]"
            )
            for key, one in value.items()
        }
    if kind is Chain:
        try:
            return Chain(decode(_SHAPES, value, where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _decode_dataclass(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and type(value) is kind:
        return value
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    raise ValueError(f"{where}: {value!r} is no {name}")


def _decode_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    others = [one for one in arguments if one is not type(None)]
    for kind in others[:-1]:
        try:
            return decode(kind, value, where)
        except ValueError:
            continue  # The last one's error is the one that is told.
    return decode(others[-1], value, where)


def _decode_tuple(
    arguments: tuple[Any, ...], value: list[Any] | tuple[Any, ...], where: str
) -> tuple[Any, ...]:
    kinds = list(arguments)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        raise ValueError(
            f"{where}: {len(value)} items where there must be {len(kinds)}"
        )
    return tuple(
        decode(kind, one, f"{where}[{index}]")
        for index, (kind, one) in enumerate(zip(kinds, value, strict=True))
    )


def _decode_dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind)]
    if missing := [name for name in names if name not in value]:
        raise ValueError(f"{where}.{missing[0]}: is missing")
    if unknown := [name for name in value if name not in names]:
        raise ValueError(f"{where}.{unknown[0]}: is no field of {kind.__name__}")
    decoded = {n: decode(hints[n], value[n], f"{where}.{n}") for n in names}
    return kind(**decoded)


def numbers(kind: Any, where: str = "row") -> Iterator[tuple[str, str | None]]:
    """Each number that a type holds, with its unit, None where it declares none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated and arguments[0] in (int, float):
        yield where, arguments[1]
    elif kind in (int, float):
        yield where, None
    elif dataclasses.is_dataclass(kind) and kind is not Chain:
        hints = typing.get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            yield from numbers(hints[field.name], f"{where}.{field.name}")
    elif origin is not Literal:
        for argument in arguments:
            yield from numbers(argument, where)
