"""The rows of result files."""

import dataclasses
import pathlib
from collections.abc import Iterable

from benchmarks import jsonl, network_rows, results


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows by what they are of."""

    layers: tuple[results.Row, ...]
    networks: tuple[network_rows.Row, ...] = ()


def load(paths: Iterable[str | pathlib.Path]) -> Rows:
    """The rows of files, each of which holds one kind of them.

    Raises:
      OSError: if a file cannot be read.
      ValueError: if a file holds other lines; names the line and the field.
    """
    layers: list[results.Row] = []
    networks: list[network_rows.Row] = []
    for path in map(pathlib.Path, paths):
        try:
            layers += results.load(path)
        except ValueError as error:
            try:
                networks += jsonl.load(path, network_rows.Row)
            except ValueError:
                raise error from None
    return Rows(tuple(layers), tuple(networks))
