"""BUILD is true: each module has a target, whose deps are what it imports."""

import ast
import graphlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RULES = ("py_library", "py_binary", "py_test")

# Distributions whose name is not the one that is imported.
DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl_py", "sklearn": "scikit_learn"}


@dataclass(frozen=True)
class Target:
    rule: str
    name: str
    srcs: tuple[str, ...]
    deps: tuple[str, ...]
    data: tuple[str, ...]


class Tree:
    """The files at the root and in the rooms, wherever each room really lies."""

    def __init__(self, root: Path, rooms: Mapping[str, Path]) -> None:
        self.root = root
        self.rooms = rooms
        self.files = self.glob("*/**/*.py")
        # Bazel makes an empty __init__.py where there is none.
        self.modules = [name for name in self.files if self.path(name).stat().st_size]

    def path(self, name: str) -> Path:
        room, _, rest = name.partition("/")
        return self.rooms[room] / rest if room in self.rooms else self.root / name

    def glob(self, pattern: str) -> list[str]:
        head, _, rest = pattern.partition("/")
        rooms = {r: p for r, p in self.rooms.items() if head in ("*", r)}
        if not rooms:
            return sorted(p.name for p in self.root.glob(pattern) if p.is_file())
        return sorted(
            f"{room}/{path.relative_to(folder).as_posix()}"
            for room, folder in rooms.items()
            for path in folder.glob(rest)
            if path.is_file()
        )

    def find(self, *parts: str) -> str | None:
        """The file of a module here, given the parts of its dotted name."""
        base = "/".join(parts)
        names = (f"{base}.py", f"{base}/__init__.py")
        return next((name for name in names if name in self.files), None)

    def needs(self, module: str) -> set[str]:
        """The modules here and the pip packages that a module imports.

        To import a.b.c is to run a/b/__init__.py too. What lies in the __init__.py
        of a room is only its public face, so that one doesn't count.
        """
        package = module.removesuffix(".py").split("/")[:-1]
        code = ast.parse(self.path(module).read_text(encoding="utf-8"))
        found = set()
        for name in imported_names(code, package):
            parts = name.split(".")
            if parts[0] in sys.stdlib_module_names:
                continue
            if parts[0] not in self.rooms:
                found.add(f"@pypi//{DISTRIBUTIONS.get(parts[0], parts[0])}")
                continue
            while len(parts) > 1 and not self.find(*parts):
                parts.pop()  # a name that the module defines
            found.add(self.find(*parts))
            for n in range(2, len(parts)):
                if parts[:n] != package[:n]:
                    found.add(self.find(*parts[:n]))
        if is_test(module):
            found |= {"@pypi//pytest", self.find("tests", "conftest")}
        found -= {module}
        return {n for n in found if n and (n in self.modules or n.startswith("@"))}


def imported_names(code: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(code):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                base = base + ([module] if module else [])
                yield from (".".join([*base, alias.name]) for alias in names)
            case ast.If(
                test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"),
                orelse=orelse,
            ):
                yield from imported_names(ast.Module(orelse, []), package)
            case _:
                yield from imported_names(node, package)


def is_test(module: str) -> bool:
    return module.startswith("tests/") and "/test_" in module


def parse(build: str, tree: Tree) -> list[Target]:
    """The Python targets in BUILD, with its globs replaced by the files' names."""

    def names(node: ast.expr | None) -> tuple[str, ...]:
        match node:
            case None:
                return ()
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return names(left) + names(right)
            case ast.Call(func=ast.Name(id="glob"), args=[patterns]):
                return tuple(
                    n for p in ast.literal_eval(patterns) for n in tree.glob(p)
                )
            case _:
                return tuple(ast.literal_eval(node))

    targets = []
    for statement in ast.parse(build).body:
        match statement:
            case ast.Expr(ast.Call(func=ast.Name(id=rule), keywords=keywords)):
                if rule in RULES:
                    given = {k.arg: k.value for k in keywords}
                    targets.append(
                        Target(
                            rule=rule,
                            name=ast.literal_eval(given["name"]),
                            srcs=names(given.get("srcs")),
                            deps=names(given.get("deps")),
                            data=names(given.get("data")),
                        )
                    )
    return targets


def problems(build: str, tree: Tree, pins: list[str]) -> list[str]:
    """What is wrong with BUILD, and what to write instead."""
    targets = parse(build, tree)
    # A binary runs a module, whose own target is its only dep.
    owners = {n: t.name for t in targets if t.rule != "py_binary" for n in t.srcs}

    def label(name: str) -> str:
        if name.startswith("@"):
            return name
        return ":" + owners.get(name, target_name(name))

    # The targets and outputs of other rules (a genrule) can be named as well.
    labels = {f":{n}" for n in re.findall(r'\b(?:name = |outs = \[)"([^"]+)"', build)}
    labels |= {f"@pypi//{pin}" for pin in pins}
    found = []
    for target in targets:
        modules = [name for name in target.srcs if name in tree.modules]
        for name in target.srcs + target.deps + target.data:
            is_file = name[0] not in ":@" and tree.path(name).is_file()
            if not is_file and name not in labels:
                found.append(f"{target.name} names {name}, which does not exist")
        if target.rule == "py_binary":
            wanted = {label(module) for module in modules}
        else:
            wanted = {label(n) for module in modules for n in tree.needs(module)}
        wanted -= {f":{target.name}"}
        if sorted(target.deps) != sorted(wanted):
            found.append(f"{target.name} should have\n{deps_text(wanted)}")
        if (target.rule == "py_test") != any(map(is_test, modules)):
            found.append(f"{target.name} should not be a {target.rule}")
    for module in tree.modules:
        if module not in owners:
            deps = deps_text({label(name) for name in tree.needs(module)})
            found.append(
                f"{module} has no target; its name could be"
                f" {target_name(module)}, and it should have\n{deps}"
            )
    try:
        graphlib.TopologicalSorter({f":{t.name}": t.deps for t in targets}).prepare()
    except graphlib.CycleError as error:
        found.append("a cycle: " + " -> ".join(error.args[1]))
    return found


def target_name(module: str) -> str:
    name = module.removesuffix(".py").removesuffix("/__init__")
    return (name.removeprefix("tests/") if is_test(module) else name).replace("/", "_")


def deps_text(labels: set[str]) -> str:
    lines = [f'        "{label}",' for label in sorted(labels)]
    return "\n".join(["    deps = [", *lines, "    ],"]) if lines else "    no deps"


def test_build_is_true() -> None:
    rooms = {room: ROOT / room for room in ("benchmarks", "examples", "tests")}
    for room in ("butterjax", "pallas_kernels"):  # perhaps installed elsewhere
        spec = importlib.util.find_spec(room)
        assert spec is not None and spec.submodule_search_locations
        rooms[room] = Path(spec.submodule_search_locations[0])
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==", constraints, flags=re.MULTILINE)
    pins = [re.sub(r"[-_.]+", "_", pin).lower() for pin in pins]
    build = (ROOT / "BUILD").read_text(encoding="utf-8")

    found = problems(build, Tree(ROOT, rooms), pins)

    assert not found, "\n\n".join(["BUILD is not true:", *found])


FILES = {
    "lib/__init__.py": "from lib.low import f",
    "lib/low.py": "import os, jax.numpy as jnp",
    "lib/part/__init__.py": "from lib.part.table import t",
    "lib/part/table.py": "from ..low import f\nfrom . import table",
    "lib/top.py": """\
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import scipy
def f():
    from lib.part import table
""",
    "lib/part/table.json": "{}",
    "lib/empty/__init__.py": "",
    "tests/test_top.py": "import lib.empty, lib.top",
}
BUILD = """
genrule(name = "pytest_main", outs = ["pytest_main.py"])
py_library(name = "lib", srcs = ["lib/__init__.py"], deps = [":lib_low"])
py_library(name = "lib_low", srcs = ["lib/low.py"], deps = ["@pypi//jax"])
py_library(name = "lib_part", srcs = ["lib/part/__init__.py"], deps = [":table"])
py_library(
    name = "table",
    srcs = ["lib/part/table.py"],
    data = glob(["lib/part/*.json"]),
    deps = [":lib_low"],
)
py_library(
    name = "lib_top",
    srcs = ["lib/top.py"],
    deps = [":lib_part", ":table"],
)
py_binary(name = "top", srcs = ["lib/top.py"], deps = [":lib_top"])
py_test(
    name = "test_top",
    srcs = ["tests/test_top.py", ":pytest_main.py"],
    deps = [":lib_top", "@pypi//pytest"],
)
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", None),
        # a module or a test without a target
        ('py_library(name = "lib",', 'other(name = "lib",', "no target"),
        ("py_test", "other_test", "tests/test_top.py has no target"),
        # names that stand for nothing
        ("lib/low.py", "lib/gone.py", "lib_low names lib/gone.py, which does not"),
        ("@pypi//jax", "@pypi//jacks", "lib_low names @pypi//jacks, which does not"),
        ('":lib_low"]', '":gone"]', "names :gone, which does not"),
        ('glob(["lib/part/*.json"])', '["lib/part/gone.json"]', "gone.json, which"),
        # deps that are not the imports
        ('[":lib_part", ":table"]', '[":table"]', "lib_top should have"),
        ('deps = ["@pypi//jax"]', "", "lib_low should have"),
        ('"@pypi//pytest"', '"@pypi//pytest", ":lib"', "test_top should have"),
        ('deps = [":lib_top"])', 'deps = [":table"])', "top should have"),
        # rules and cycles
        ("py_test", "py_library", "test_top should not be a py_library"),
        ('["@pypi//jax"]', '["@pypi//jax", ":lib_top"]', "a cycle"),
    ],
)
def test_problems_are_seen(
    tmp_path: Path, old: str, new: str, expected: str | None
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    tree = Tree(tmp_path, {room: tmp_path / room for room in ("lib", "tests")})
    assert old in BUILD

    found = "\n".join(problems(BUILD.replace(old, new), tree, ["jax", "pytest"]))

    assert (expected in found) if expected else not found, found
