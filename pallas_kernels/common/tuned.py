"""Configurations that were fastest when measured: one JSON table per kind of GPU.

`python -m benchmarks.autotune` writes them; tables/README.md shows the format. What is
taken depends on the arguments and the files alone, never on the machine at hand, since
a kernel may be lowered for a device that is not there.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import jax
import jax.numpy as jnp

from pallas_kernels.common import pieces

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FOLDER = pathlib.Path(__file__).parent / "tables"
DEVICE = "NVIDIA H200"  # Whose table serves where no device is named.
NO_DEVICE = ""  # Has no table: names the rule.

_FARTHEST = 4


@dataclasses.dataclass(frozen=True)
class Entry:
    """The fastest configuration of a kernel for one problem.

    Attributes:
      kernel: its function's name, "chain" for example.
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      dtype: of x and the factors.
      axis: the feature axis of x.
      pieces: bfloat16 pieces of a number, as `pallas_kernels.pieces.count` has it.
      batch: vectors in x.
      config: fields of the kernel's Config; those left out keep their defaults.
    """

    kernel: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    axis: int
    pieces: int
    batch: int
    config: Mapping[str, int | str | bool]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells entries of a table apart, the batch last."""
        return (
            *(self.kernel, self.shapes, self.dtype, self.axis, self.pieces),
            self.batch,
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """All entries for one kind of device."""

    device: str
    entries: tuple[Entry, ...] = ()

    def with_entry(self, entry: Entry) -> "Table":
        """The table with one entry added, or put in another's place; sorted."""
        kept = [one for one in self.entries if one.key != entry.key]
        ordered = sorted([*kept, entry], key=lambda one: one.key)
        return dataclasses.replace(self, entries=tuple(ordered))

    def dumps(self) -> str:
        """The table as JSON, one entry a line."""
        lines = ",\n".join(
            "    " + json.dumps(dataclasses.asdict(one)) for one in self.entries
        )
        device = json.dumps(self.device)
        return f'{{\n  "device": {device},\n  "entries": [\n{lines}\n  ]\n}}\n'


def path(device: str, folder: pathlib.Path | None = None) -> pathlib.Path:
    """Where the table of a device lies, whether or not there is one."""
    slug = re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return (FOLDER if folder is None else folder) / f"{slug}.json"


@functools.cache
def load(file: pathlib.Path) -> Table | None:
    """The table in a file, None if there is no such file; read once.

    Raises:
      ValueError: if the file is not such a table; names the file, the entry and the
        field.
    """
    if not file.exists():
        return None
    try:
        return loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def loads(text: str) -> Table:
    """The table in a text; raises ValueError as `load` does, without the file."""
    found = json.loads(text)
    _check_fields("the table", found, {"device": str, "entries": list})
    entries: dict[tuple[Any, ...], Entry] = {}
    for index, fields in enumerate(found["entries"]):
        entry = _entry(f"entries[{index}]", fields)
        if entry.key in entries:
            raise ValueError(f"entries[{index}] is for the same problem as one before")
        entries[entry.key] = entry
    return Table(found["device"], tuple(entries.values()))


def _entry(where: str, fields: Any) -> Entry:
    kinds: dict[str, type] = {
        **{"kernel": str, "shapes": list, "dtype": str, "axis": int},
        **{"pieces": int, "batch": int, "config": dict},
    }
    _check_fields(where, fields, kinds)
    patterns = fields["shapes"]
    rules = {
        "shapes": bool(patterns) and all(map(_is_pattern, patterns)),
        "dtype": fields["dtype"] in ("bfloat16", "float16", "float32"),
        "axis": fields["axis"] in (0, -1),
        "pieces": fields["pieces"] in (1, 2, 3),
        "batch": fields["batch"] >= 1,
        "config": all(
            isinstance(value, int | str) for value in fields["config"].values()
        ),
    }
    for name, holds in rules.items():
        if not holds:
            raise ValueError(f"{where}.{name} cannot be {json.dumps(fields[name])}")
    return Entry(**{**fields, "shapes": tuple(map(tuple, patterns))})


def _check_fields(where: str, found: Any, kinds: Mapping[str, type]) -> None:
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        has = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"{where} must have the fields {sorted(kinds)}, got {has}")
    for name, kind in kinds.items():
        if type(found[name]) is not kind:
            raise ValueError(
                f"{where}.{name} must be of type {kind.__name__}, got "
                f"{json.dumps(found[name])}"
            )


def _is_pattern(pattern: Any) -> bool:
    return (
        isinstance(pattern, list)
        and len(pattern) == 4
        and all(type(size) is int and size >= 1 for size in pattern)
    )


def nearest(
    table: Table,
    kernel: str,
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1],
    precision: jax.lax.PrecisionLike = None,
) -> Entry | None:
    """The entry for a problem, of those that may serve its batch the nearest by ratio.

    An entry serves any batch larger than its own, where tiles only repeat, and smaller
    ones down to a quarter.
    """
    wanted = (
        kernel,
        tuple(tuple(map(int, shape)) for shape in shapes),
        jnp.dtype(dtype).name,
        axis,
        pieces.count(dtype, precision),
    )
    fitting = [
        entry
        for entry in table.entries
        if entry.key[:-1] == wanted and entry.batch <= batch * _FARTHEST
    ]
    return min(fitting, key=lambda one: abs(math.log(one.batch / batch)), default=None)


def lookup[Config: "DataclassInstance"](
    config: type[Config],
    kernel: str,
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1],
    precision: jax.lax.PrecisionLike = None,
    device: str | None = None,
) -> Config | None:
    """The configuration that was fastest for a problem, or nearly this one.

    Args:
      config: the kernel's Config.
      kernel: its function's name.
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      dtype: of x and the factors.
      batch: vectors in x, at least 1.
      axis: the feature axis of x.
      precision: as in `jax.lax.dot_general`.
      device: kind of the device, as `jax.Device.device_kind` names it; None for
        `DEVICE`, `NO_DEVICE` for none.

    Returns:
      A configuration; None where none was measured, and the kernel's rule has to do.

    Raises:
      ValueError: if the device's table is no such table, or names a field that the
        kernel's Config lacks, or a value that it does not take.
    """
    if device == NO_DEVICE:
        return None
    file = path(DEVICE if device is None else device)
    table = load(file)
    if table is None:
        return None
    entry = nearest(table, kernel, shapes, dtype, batch, axis=axis, precision=precision)
    if entry is None:
        return None
    try:
        return config(**entry.config)
    except (TypeError, ValueError) as error:
        index = table.entries.index(entry)
        raise ValueError(f"{file}: entries[{index}].config: {error}") from error


class DefaultConfig[Config](Protocol):
    """Chooses a configuration; the arguments are those of `lookup`.

    shapes is one pattern for a kernel that applies one factor.
    """

    def __call__(
        self,
        shapes: Sequence[Any],
        dtype: jax.typing.DTypeLike,
        batch: int,
        *,
        axis: Literal[0, -1] = -1,
        out_dtype: jax.typing.DTypeLike | None = None,
        precision: jax.lax.PrecisionLike = None,
        device: str | None = None,
    ) -> Config: ...


def before_rule[Config: "DataclassInstance"](
    kernel: str, config: type[Config]
) -> Callable[[Callable[..., Config]], DefaultConfig[Config]]:
    """Decorator that has the tables asked before a kernel's rule.

    Args:
      kernel: its function's name.
      config: its Config.

    Returns:
      What makes a `DefaultConfig` of a rule, which is one without `device`.
    """

    def decorate(rule: Callable[..., Config]) -> DefaultConfig[Config]:
        @functools.wraps(rule)
        def choose(
            shapes: Sequence[Any],
            dtype: jax.typing.DTypeLike,
            batch: int,
            *,
            axis: Literal[0, -1] = -1,
            out_dtype: jax.typing.DTypeLike | None = None,
            precision: jax.lax.PrecisionLike = None,
            device: str | None = None,
        ) -> Config:
            by_rule = functools.partial(
                rule,
                *(shapes, dtype, batch),
                axis=axis,
                out_dtype=out_dtype,
                precision=precision,
            )
            # A y of another type takes other space than was tuned for.
            if out_dtype is not None and jnp.dtype(out_dtype) != jnp.dtype(dtype):
                return by_rule()
            patterns = shapes if isinstance(shapes[0], Iterable) else [shapes]
            found = lookup(
                config,
                *(kernel, patterns, dtype, batch),
                axis=axis,
                precision=precision,
                device=device,
            )
            return by_rule() if found is None else found

        return choose

    return decorate
