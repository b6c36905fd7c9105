"""BUILD is true: it names every module, program and test, and what rooms import."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pallas_kernels", "butterjax", "benchmarks", "examples", "tests")

# Distributions whose name is not the one that is imported.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl_py", "sklearn": "scikit_learn"}

Target = dict[str, Any]


def files(root: Path) -> list[str]:
    """Names of what lies in the rooms, wherever each really is, and at the root."""
    found = [path.name for path in root.iterdir() if path.is_file()]
    for room in ROOMS:
        folder = root / room
        if not folder.is_dir():  # Installed elsewhere.
            spec = importlib.util.find_spec(room)
            assert spec is not None and spec.submodule_search_locations
            folder = Path(spec.submodule_search_locations[0])
        found += [
            f"{room}/{path.relative_to(folder).as_posix()}"
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return sorted(found)


def targets(build: str, names: list[str]) -> list[Target]:
    """The Python targets of BUILD, whose language is a subset of Python."""
    found: list[Target] = []

    def matches(name: str, pattern: str) -> bool:
        # "**/" stands for any number of folders, and for none.
        whole = re.escape(pattern).replace(r"\*\*/", "(.*/)?")
        whole = whole.replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        return re.fullmatch(whole, name) is not None

    def glob(
        patterns: list[str], exclude: list[str] | None = None, allow_empty: bool = False
    ) -> list[str]:
        chosen = [
            name
            for name in names
            if any(matches(name, one) for one in patterns)
            and not any(matches(name, one) for one in exclude or [])
        ]
        assert chosen or allow_empty, f"glob({patterns}) finds nothing"
        return chosen

    def rule(kind: str) -> Any:
        return lambda **fields: found.append({"rule": kind, "deps": [], **fields})

    ignored = {name: lambda *_, **__: None for name in ("load", "package", "genrule")}
    rules = {name: rule(name) for name in ("py_library", "py_binary", "py_test")}
    exec(build, {**ignored, **rules, "glob": glob})
    return found


def imports(text: str) -> set[str]:
    """The packages that a module imports, relative imports left out."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=aliases):
                found |= {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
    return found - sys.stdlib_module_names - {"__future__", "_typeshed"}


def problems(build: str, texts: dict[str, str]) -> list[str]:
    """What is wrong with BUILD, and what to write instead.

    Args:
      build: its text.
      texts: what files contain, by their names; for modules at least.
    """
    found = []
    every = targets(build, sorted(texts))
    modules = {name for name in texts if name.endswith(".py") and "/" in name}
    tests = {name for name in modules if name.rpartition("/")[2].startswith("test_")}
    programs = {
        name
        for name in modules - tests
        if name.startswith(("benchmarks/", "examples/"))
        and '__name__ == "__main__"' in texts[name]
    }
    for kind, wanted in (
        ("py_library", modules - tests),
        ("py_binary", programs),
        ("py_test", tests),
    ):
        named = {
            source
            for target in every
            if target["rule"] == kind
            for source in target["srcs"]
            if not source.startswith(":")
        }
        found += [f"no {kind} has {name}" for name in sorted(wanted - named)]
        found += [f"a {kind} has {name}" for name in sorted(named - wanted)]
    for target in every:
        if target["rule"] != "py_library":
            continue
        sources = set(target["srcs"])
        if target["name"] == "testing":
            sources |= tests
        wanted_deps = set().union(*(imports(texts[name]) for name in sources))
        wanted_deps -= {name.partition("/")[0] for name in sources}
        labels = {
            f":{name}"
            if name in ROOMS
            else f"@pypi//{DISTRIBUTIONS.get(name, name).lower()}"
            for name in wanted_deps
        }
        if labels != set(target["deps"]):
            found.append(f"{target['name']} should have deps = {sorted(labels)}")
    return found


def read(names: list[str]) -> dict[str, str]:
    """Modules' texts; nothing of other files, whose names are all that counts."""
    texts = {}
    for name in names:
        path = ROOT / name
        if not path.exists():
            room, _, rest = name.partition("/")
            spec = importlib.util.find_spec(room)
            assert spec is not None and spec.submodule_search_locations
            path = Path(spec.submodule_search_locations[0]) / rest
        texts[name] = path.read_text(encoding="utf-8") if name.endswith(".py") else ""
    return texts


def test_build_is_true() -> None:
    build = (ROOT / "BUILD").read_text(encoding="utf-8")
    found = problems(build, read(files(ROOT)))
    assert not found, "\n".join(["BUILD is not true:", *found])


def test_pip_packages_are_pinned() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==", constraints, flags=re.MULTILINE)
    pinned = {re.sub(r"[-_.]+", "_", pin).lower() for pin in pins}
    named = re.findall(
        r"@pypi//([\w.-]+)", (ROOT / "BUILD").read_text(encoding="utf-8")
    )
    assert set(named) <= pinned


BUILD = """
load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")
py_library(name = "pallas_kernels", srcs = glob(["pallas_kernels/**/*.py"]))
py_library(
    name = "benchmarks",
    srcs = glob(["benchmarks/**/*.py"]),
    deps = [":pallas_kernels", "@pypi//jax"],
)
[
    py_binary(name = one, srcs = ["benchmarks/%s.py" % one], deps = [":benchmarks"])
    for one in ["run"]
]
py_library(
    name = "testing",
    srcs = glob(["tests/**/*.py"], exclude = ["tests/**/test_*.py"]),
    deps = [":benchmarks", "@pypi//pytest"],
)
[py_test(name = test, srcs = [test]) for test in glob(["tests/**/test_*.py"])]
"""
FILES = {
    "pallas_kernels/deep/low.py": "import math",
    "benchmarks/run.py": "import jax.numpy\nfrom pallas_kernels.deep import low\n"
    'if __name__ == "__main__":\n    pass',
    "tests/conftest.py": "import pytest",
    "tests/deep/test_run.py": "from benchmarks import run",
}


@pytest.mark.parametrize(
    ("old", "new", "files", "expected"),
    [
        ("", "", {}, None),
        ("", "", {"benchmarks/other.py": 'if __name__ == "__main__": 1'}, "py_binary"),
        ("", "", {"tests/test_top.py": "import numpy"}, "testing should have deps"),
        ("", "", {"pallas_kernels/a.py": "import jax"}, "pallas_kernels should have"),
        ('"tests/**/test_*.py"])]', '"tests/test_*.py"])]', {}, "finds nothing"),
        ('[":pallas_kernels", "@pypi//jax"]', '["@pypi//jax"]', {}, ":pallas_kernels"),
        ('"@pypi//pytest"', '"@pypi//pytest", ":other"', {}, "testing should have"),
        ('["run"]', '["run", "gone"]', {}, "a py_binary has benchmarks/gone.py"),
    ],
)
def test_problems_are_seen(
    old: str, new: str, files: dict[str, str], expected: str | None
) -> None:
    assert old in BUILD
    try:
        found = "\n".join(problems(BUILD.replace(old, new), FILES | files))
    except AssertionError as error:
        found = str(error)
    assert (expected in found) if expected else not found, found
