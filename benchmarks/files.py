"""Files that are written whole or not at all."""

import os
import pathlib
from collections.abc import Callable


def write_whole(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a file under another name, then renames it: it is never partial.

    Args:
      path: the file to make or replace; its folder is made too.
      write: writes the contents to the path that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
