"""Folders for results, and files that are written whole or not at all."""

import pathlib
import tempfile

from butterjax.files import write_whole as write_whole


def make_folder(folder: pathlib.Path) -> None:
    """Makes a folder where there is none.

    Raises:
      OSError: if that cannot be done, or nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
