"""Reads what Mosaic GPU dumps of a kernel: PTX, what ptxas says, machine code, grid."""

import collections
import dataclasses
import math
import pathlib
import re

from benchmarks import sass
from benchmarks.units import Bytes, Count


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a kernel is launched: CTAs, how many of them form a cluster, and threads."""

    ctas: Count
    cluster: Count
    threads: Count


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One compiled kernel. Counts are of instructions in the program, not of runs.

    Attributes:
      name: of the kernel, numbered in the order of lowering.
      registers: per thread.
      stack_bytes: per thread.
      spill_store_bytes: written by spills, per thread.
      spill_load_bytes: read by spills, per thread.
      shared_bytes: shared memory for scratch, per block; barriers come on top.
      operations: how often each of `OPERATIONS` occurs; those that do are listed.
      accesses: how often a thread loads or stores so many bytes at once, under names
        such as "shared load, 16 bytes". "generic" is an access whose address space
        the compiler did not name; in a Mosaic GPU kernel that is mostly global memory.
      warnings: what ptxas warned of.
      loop: the main loop in machine code, None without tensor cores in any.
      grid: how it is launched, None where that depends on what is run.
    """

    name: str
    registers: Count
    stack_bytes: Bytes
    spill_store_bytes: Bytes
    spill_load_bytes: Bytes
    shared_bytes: Bytes
    operations: dict[str, Count]
    accesses: dict[str, Count]
    warnings: tuple[str, ...]
    loop: sass.Loop | None = None
    grid: Grid | None = None


OPERATIONS = {
    "mma.sync": r"mma\.sync\b",
    "wgmma": r"wgmma\.mma_async\b",
    "ldmatrix": r"ldmatrix\.(?!\S*\.trans\b)",
    "ldmatrix.trans": r"ldmatrix\.(?=\S*\.trans\b)",
    "stmatrix": r"stmatrix\.(?!\S*\.trans\b)",
    "stmatrix.trans": r"stmatrix\.(?=\S*\.trans\b)",
    "TMA load": r"cp\.async\.bulk\.\S*shared::c\w+\.global\b",
    "TMA reduce": r"cp\.reduce\.async\.bulk\.",
    "TMA store": r"cp\.async\.bulk\.(?!prefetch)\S*global\.shared::cta\b",
    "atomic": r"(?:atom|red)\.(?!async)",
}
_OPERATIONS = {
    name: re.compile(rf"(?<![\w.]){pattern}") for name, pattern in OPERATIONS.items()
}

_COMMENT = re.compile(r"//.*")
_ACCESS = re.compile(r"(?<![\w.])(ld|st)((?:\.[\w:]+)+)")
_TYPE = re.compile(r"[busf](\d+)")
_VECTOR = re.compile(r"v(\d+)")
_SPACES = {
    "global": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "shared::cluster": "cluster",
    "local": "local",
}
_NOT_MEMORY = ("param", "const")


def kernels(folder: pathlib.Path) -> tuple[Kernel, ...]:
    """Reads all kernels dumped into a folder, in the order they were lowered.

    Raises:
      ValueError: if a dump is incomplete.
    """
    paths = sorted(folder.glob("*.ptx"), key=lambda path: _natural(path.stem))
    return tuple(map(_read, paths))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts body_10 after body_9."""
    return [(int(n or 0), text) for text, n in re.findall(r"(\D+)(\d*)", name)]


def _read(path: pathlib.Path) -> Kernel:
    texts = []
    for suffix in (".ptxas", ".resources.txt", ".sass_ctrl", ".mlir-passes.log"):
        needed = path.with_suffix(suffix)
        if not needed.is_file():
            raise ValueError(f"{path.name} was dumped, but {needed.name} was not")
        texts.append(needed.read_text())
    ptxas, resources, machine_code, passes = texts
    return dataclasses.replace(
        kernel(path.stem, ptx=path.read_text(), ptxas=ptxas, resources=resources),
        loop=sass.main_loop(sass.parse(machine_code)),
        grid=grid(passes),
    )


def kernel(name: str, *, ptx: str, ptxas: str, resources: str) -> Kernel:
    """Puts together what the three dumps of one kernel say.

    Args:
      name: of the kernel.
      ptx: its program.
      ptxas: what `ptxas -v` printed.
      resources: Mosaic GPU's own list of what the kernel asks for.

    Raises:
      ValueError: if a number is not where it is looked for.
    """
    return Kernel(
        name=name,
        registers=max(_numbers(ptxas, r"Used (\d+) registers")),
        stack_bytes=max(_numbers(ptxas, r"(\d+) bytes stack frame")),
        spill_store_bytes=sum(_numbers(ptxas, r"(\d+) bytes spill stores")),
        spill_load_bytes=sum(_numbers(ptxas, r"(\d+) bytes spill loads")),
        shared_bytes=_numbers(resources, r"smem_scratch_bytes=(\d+)")[0],
        operations=operations(ptx),
        accesses=accesses(ptx),
        warnings=warnings(ptxas),
    )


def _numbers(text: str, pattern: str) -> list[int]:
    found = [int(number) for number in re.findall(pattern, text)]
    if not found:
        raise ValueError(f"nothing like {pattern!r} in {text!r}")
    return found


def warnings(ptxas: str) -> tuple[str, ...]:
    """Lines of ptxas that warn, of products run one at a time among others."""
    return tuple(
        line.strip()
        for line in ptxas.splitlines()
        if "warning" in line or "Potential Performance Loss" in line
    )


def operations(ptx: str) -> dict[str, int]:
    """How often each of `OPERATIONS` occurs in a program; those that do."""
    code = _COMMENT.sub("", ptx)
    found = {name: len(p.findall(code)) for name, p in _OPERATIONS.items()}
    return {name: times for name, times in found.items() if times}


def accesses(ptx: str) -> dict[str, int]:
    """How often a thread loads or stores how many bytes at once, and where."""
    found: collections.Counter[str] = collections.Counter()
    for verb, suffix in _ACCESS.findall(_COMMENT.sub("", ptx)):
        parts = suffix[1:].split(".")
        element = _TYPE.fullmatch(parts[-1])
        if element is None or parts[0].startswith(_NOT_MEMORY):
            continue
        lanes = [int(m[1]) for part in parts if (m := _VECTOR.fullmatch(part))]
        size = int(element[1]) // 8 * (lanes[0] if lanes else 1)
        space = next((_SPACES[part] for part in parts if part in _SPACES), "generic")
        word = "load" if verb == "ld" else "store"
        found[f"{space} {word}, {size} bytes"] += 1
    return dict(sorted(found.items()))


_LAUNCH = re.compile(r"gpu\.launch async .*\) dynamic_shared_memory_size")
_SIZES = re.compile(r"(clusters|blocks|threads)\([^)]*\) in \(([^)]*)\)")
_CONSTANT = re.compile(r"= %c(\d+)(?:_\d+)?(?=[,)]|$)")


def grid(passes: str) -> Grid | None:
    """How a kernel is launched, by what the compiler's passes make of its program."""
    found = None
    for launch in _LAUNCH.findall(passes):
        sizes = {
            name: [int(number) for number in _CONSTANT.findall(values)]
            for name, values in _SIZES.findall(launch)
        }
        if sizes and all(len(values) == 3 for values in sizes.values()):
            found = Grid(
                ctas=math.prod(sizes["blocks"]),
                cluster=math.prod(sizes.get("clusters", ())),
                threads=math.prod(sizes["threads"]),
            )
    return found
