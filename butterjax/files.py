"""Files that are written whole or not at all."""

import pathlib
import tempfile
from collections.abc import Callable


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Lets a file be written elsewhere, then moves it here: it is never partial.

    Args:
      path: the file to make or replace.
      write: writes the contents to the path that it is given.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        part = pathlib.Path(folder, path.name)
        write(part)
        part.replace(path)
