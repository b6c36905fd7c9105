"""Reads a kernel's machine code: what its main loop consists of, for each product.

Counts are of warp instructions in the program text of a loop, those of loops inside it
apart, and of what ptxas puts behind the program, the slow paths of waits. They agree
with what a profiler counts, as a main loop has no branches to speak of.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from benchmarks.units import Count

_LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;/]*)"
)
_LABEL = re.compile(r"^\s*(\.L[\w.]*):")
_TARGET = re.compile(r"`?\((\.L[\w.]*)\)|\b0x([0-9a-f]+)")
_MMA = ("HMMA", "HGMMA", "IMMA", "QGMMA")
_WIDTHS = {"128": 4, "64": 2}  # Of a thread's access: bytes of a warp over 128.
_ROWS_OF_8 = {"4": 4, "2": 2}  # Matrices of 8 × 8 that LDSM and STSM move.


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      address: in the program.
      predicate: under which it is executed, None for always.
      opcode: with its suffixes.
      operands: as written, a branch's label replaced by the address.
    """

    address: int
    predicate: str | None
    opcode: str
    operands: str

    @property
    def family(self) -> str:
        """The opcode without its suffixes."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        if self.family != "BRA":
            return None
        found = re.findall(r"0x([0-9a-f]+)", self.operands)
        return int(found[-1], 16) if found else None

    @property
    def wavefronts(self) -> int:
        """Of shared memory, without bank conflicts; 0 for all other instructions."""
        suffixes = self.opcode.split(".")[1:]
        match self.family:
            case "LDSM" | "STSM":
                return _ROWS_OF_8.get(suffixes[-1], 1)
            case "LDS" | "STS":
                return next((_WIDTHS[s] for s in suffixes if s in _WIDTHS), 1)
        return 0


@dataclasses.dataclass(frozen=True)
class Loop:
    """What a kernel's main loop has in it, once through.

    Attributes:
      instructions: all of them.
      products: of tensor cores among them.
      sums: that products are added to, which need not wait for one another.
      shared: loads and stores of shared memory, LDSM and STSM among them.
      wavefronts: that these take without bank conflicts.
      barriers: at which warps wait for each other.
      waits: for a transfer or another warpgroup, each tried once.
      copies: that TMA is asked for.
    """

    instructions: Count
    products: Count
    sums: Count
    shared: Count
    wavefronts: Count
    barriers: Count
    waits: Count
    copies: Count

    @property
    def instructions_per_product(self) -> float:
        """Of the main loop; a tensor core's product of 16 × 8 × 16 for most."""
        return self.instructions / self.products

    @property
    def wavefronts_per_product(self) -> float:
        """Of shared memory, without conflicts."""
        return self.wavefronts / self.products


def parse(text: str) -> tuple[Instruction, ...]:
    """The instructions that nvdisasm printed of one kernel."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    pending: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            pending.append(label[1])
        elif match := _LINE.search(line):
            address = int(match[1], 16)
            labels |= dict.fromkeys(pending, address)
            pending = []
            found.append(Instruction(address, match[2], match[3], match[4].strip()))

    def placed(match: re.Match[str]) -> str:
        return hex(labels[match[1]]) if match[1] in labels else match[0]

    return tuple(
        dataclasses.replace(one, operands=_TARGET.sub(placed, one.operands))
        for one in found
    )


def main_loop(code: Sequence[Instruction]) -> Loop | None:
    """The loop with the most products of its own; None where no loop has any."""
    spans = list(_loops(code))
    bodies = []
    for start, end in spans:
        inside = [
            span
            for span in spans
            if span != (start, end) and _holds((start, end), span)
        ]
        bodies.append(
            [
                one
                for one in code
                if start <= one.address <= end
                and not any(first <= one.address <= last for first, last in inside)
            ]
        )
    found = max(map(_count, bodies), key=lambda loop: loop.products, default=None)
    return found if found is not None and found.products else None


def _holds(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _loops(code: Sequence[Instruction]) -> Iterator[tuple[int, int]]:
    """First and last addresses of loops: what a branch goes back over.

    A branch back into the program from behind its end is the end of a slow path.
    """
    ends = [one.address for one in code if one.opcode == "EXIT" and not one.predicate]
    last: dict[int, int] = {}
    for one in code:
        start = one.target
        if start is None or start > one.address:
            continue
        if any(start <= end <= one.address for end in ends):
            continue
        last[start] = max(one.address, last.get(start, 0))
    yield from last.items()


def _count(body: Sequence[Instruction]) -> Loop:
    products = [one for one in body if one.family in _MMA]
    shared = [one for one in body if one.wavefronts]
    return Loop(
        instructions=len(body),
        products=len(products),
        sums=len({one.operands.split(",")[0] for one in products}),
        shared=len(shared),
        wavefronts=sum(one.wavefronts for one in shared),
        barriers=sum(one.family == "BAR" for one in body),
        waits=sum(one.opcode.startswith("SYNCS.PHASECHK") for one in body),
        copies=sum(
            one.family.startswith(("UTMALDG", "UTMASTG", "UBLKCP")) for one in body
        ),
    )
