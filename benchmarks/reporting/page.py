"""A page of sections, tables and pictures, as one HTML file that needs nothing else."""

import base64
import dataclasses
import pathlib
from collections.abc import Iterator

import jinja2

_TEMPLATE = pathlib.Path(__file__).parent / "page.html.jinja"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column names the rows.

    Attributes:
      caption: what it shows.
      header: of the columns.
      rows: as many words each.
      num_words: columns that hold words, from the left; the others hold numbers.
      is_folded: whether a reader unfolds it first.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_words: int = 1
    is_folded: bool = False


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot.

    Attributes:
      name: of its file, without ".png".
      png: the file's contents.
      caption: what it shows.
      alt: what it says, for those who cannot see it.
    """

    name: str
    png: bytes
    caption: str
    alt: str

    @property
    def data_uri(self) -> str:
        """The picture inside a page."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      anchor: the id of its heading.
      title: its heading.
      paragraphs: come first.
      pictures: come next.
      tables: come last.
      sections: parts of it.
    """

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    sections: tuple["Section", ...] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """The whole.

    Attributes:
      title: of the page.
      paragraphs: that come before the first section.
      sections: its parts.
    """

    title: str
    paragraphs: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> Iterator[Picture]:
        """All pictures of all sections."""
        todo = list(self.sections)
        while todo:
            section = todo.pop(0)
            yield from section.pictures
            todo += section.sections


def html(page: Page) -> str:
    """The page as one HTML file: pictures are inside, nothing is fetched."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(page=page)
