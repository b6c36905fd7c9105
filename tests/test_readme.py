"""What the README shows works as shown."""

import contextlib
import io
import pathlib
import re

import pytest

import butterjax as bj

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


# Each program is followed by what it prints.
PROGRAMS = re.findall(r"```python\n(.*?)```[^`]*```\n(.*?)```", README, flags=re.DOTALL)


def test_all_programs_are_found():
    assert len(PROGRAMS) == README.count("```python") > 0


@pytest.mark.parametrize(("program", "promised"), PROGRAMS, ids=["layers", "launches"])
def test_pasted_lines_print_what_is_promised(program, promised):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "README.md", "exec"), {})
    assert printed.getvalue() == promised


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`bj\.([\w.]+)", README))))
def test_names_exist(name):
    thing = bj
    for part in name.split("."):
        thing = getattr(thing, part)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./]+)\)", README))))
def test_links_lead_somewhere(path):
    if path.startswith("butterjax/"):  # Perhaps installed elsewhere.
        folder = pathlib.Path(bj.__file__).parents[1]
    else:
        folder = ROOT
    assert (folder / path).exists()
