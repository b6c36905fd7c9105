"""Reads the text of XLA's optimised HLO: what is launched, and what is only moved."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.units import Bytes, Count


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the "%".
      shape: of the result, as written: "f32[8,4]{1,0}", or a tuple in parentheses.
      opcode: such as "fusion".
      operands: names of the operands.
      called: names of the computations it calls.
      target: of a custom call, else empty.
      trip_count: of a loop where XLA knows it, else 1.
      is_root: whether it is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    called: tuple[str, ...]
    target: str
    trip_count: int
    is_root: bool


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and the name of the one that is run."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel, library call or copy that the program starts.

    Attributes:
      name: of the instruction.
      kind: its opcode; for a custom call its target.
      times: how often it runs.
      moved_bytes: bytes it writes, each time, of results that are only transposed or
        copied inputs; a change of dtype on the way counts as no work of its own.
      written_bytes: bytes it writes, each time, workspaces of libraries left out.
    """

    name: str
    kind: str
    times: Count
    moved_bytes: Bytes
    written_bytes: Bytes


# Instructions that start nothing on the device.
_FREE = frozenset(
    {"add-dependency", "after-all", "bitcast", "constant", "get-tuple-element"}
    | {"opt-barrier", "parameter", "partition-id", "replica-id", "tuple"}
)
_CALLS = frozenset(["async-start", "call", "while", "conditional"])
_MOVES = frozenset(["copy", "transpose"])
_CARRIES = _MOVES | {"bitcast", "convert", "parameter", "reshape", "slice"}

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(
    r"""\s*(?P<root>ROOT\ )?%?(?P<name>[\w.\-]+)\ =\ 
    (?P<shape>\((?:[^()]|\([^()]*\))*\)|\S+)\ 
    (?P<opcode>[a-z][\w\-]*)\((?P<operands>[^)]*)\)""",
    re.VERBOSE,
)
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|"
    r"true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_NAME = re.compile(r"%([\w.\-]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


def parse(text: str) -> Module:
    """Reads the text that `jax.stages.Compiled.as_text` returns.

    Raises:
      ValueError: if no computation in it is marked as the entry.
    """
    computations: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    entry = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif instruction := _parse_line(line):
            current.append(instruction)
    if entry is None:
        raise ValueError("the HLO text has no ENTRY computation")
    return Module(computations, entry)


def _parse_line(line: str) -> Instruction | None:
    match = _LINE.match(line)
    if match is None:
        return None
    target, trips = _TARGET.search(line), _TRIPS.search(line)
    # A kernel's program is a string in the line, and could hold anything.
    attributes = _STRING.sub('""', line[match.end() :])
    called = tuple(
        name
        for group in _CALLED.findall(attributes)
        for name in re.findall(r"[\w.\-]+", group)
    )
    return Instruction(
        name=match["name"],
        shape=match["shape"],
        opcode=match["opcode"],
        operands=tuple(_NAME.findall(match["operands"])),
        called=called,
        target=target[1] if target else "",
        trip_count=int(trips[1]) if trips else 1,
        is_root=bool(match["root"]),
    )


def num_bytes(shape: str) -> int:
    """Bytes of an array such as "bf16[512,32]{1,0}", or of all arrays of a tuple."""
    bits = sum(
        _bits(dtype) * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in _ARRAY.findall(shape)
    )
    return bits // 8


def _bits(dtype: str) -> int:
    """Bits of one element: 32 for s32, 16 for bf16, 8 for f8e4m3fn."""
    if dtype in ("token", "opaque"):
        return 0
    if dtype == "pred":
        return 8
    match = re.match(r"[a-z]+(\d+)", dtype)
    if match is None:
        raise ValueError(f"unknown element type {dtype!r} in HLO")
    return int(match[1])


def launches(module: Module) -> tuple[Launch, ...]:
    """All that the entry computation starts, in order, through loops and calls.

    Of a conditional's branches, the one that starts most is taken.
    """
    return tuple(_launches(module, module.entry, times=1))


def _launches(module: Module, name: str, *, times: int) -> Iterator[Launch]:
    for instruction in module.computations[name]:
        opcode = instruction.opcode
        if opcode in _CALLS:
            inner = [
                list(_launches(module, n, times=times * instruction.trip_count))
                for n in instruction.called
            ]
            if opcode == "conditional":
                inner = [max(inner, key=count)]
            for group in inner:
                yield from group
        elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
            yield Launch(
                name=instruction.name,
                kind=instruction.target or opcode,
                times=times,
                moved_bytes=_moved_bytes(module, instruction),
                written_bytes=_written_bytes(instruction),
            )


def count(found: Sequence[Launch]) -> int:
    """How often anything is started."""
    return sum(launch.times for launch in found)


def moved_bytes(found: Sequence[Launch]) -> int:
    """Bytes that transposes and copies write, over all launches."""
    return sum(launch.times * launch.moved_bytes for launch in found)


def written_bytes(found: Sequence[Launch]) -> int:
    """Bytes that all launches write."""
    return sum(launch.times * launch.written_bytes for launch in found)


def moving_kernels(found: Sequence[Launch]) -> frozenset[str]:
    """What XLA names the kernels of those launches that transpose or copy."""
    return frozenset(
        re.sub(r"\W", "_", launch.name) for launch in found if launch.moved_bytes
    )


def _written_bytes(instruction: Instruction) -> int:
    """Bytes of the result; of its first part where the others are no results."""
    is_library = instruction.target.startswith(("__cublas", "__cudnn"))
    if is_library or instruction.opcode == "copy-start":
        return num_bytes(instruction.shape.split("]")[0] + "]")
    return num_bytes(instruction.shape)


def _moved_bytes(module: Module, instruction: Instruction) -> int:
    if instruction.opcode in _MOVES:
        return num_bytes(instruction.shape)
    if instruction.opcode == "copy-start":
        return _written_bytes(instruction)
    if instruction.opcode != "fusion":
        return 0
    body = {i.name: i for i in module.computations[instruction.called[0]]}
    (root,) = (i for i in body.values() if i.is_root)
    outputs = root.operands if root.opcode == "tuple" else (root.name,)
    return sum(
        num_bytes(body[name].shape) for name in outputs if _is_only_moved(body, name)
    )


def _is_only_moved(body: Mapping[str, Instruction], output: str) -> bool:
    """Whether a result is its input in another order: a product's result is not."""
    opcodes = set()
    todo = [output]
    while todo:
        instruction = body[todo.pop()]
        opcodes.add(instruction.opcode)
        todo += instruction.operands
    return opcodes <= _CARRIES and not opcodes.isdisjoint(_MOVES)
