"""Runs a kernel's PTX on the CPU: what the compiler made of it, warp by warp.

JAX's interpreter knows neither lanes nor addresses. Here the compiler's own output
runs, so it is seen which lane's register holds what, whether addresses are aligned,
which banks of shared memory meet, and whether barriers count right. Copies of TMA are
put off: loads at most until nothing else goes on, stores until a thread waits for them.
So a slot that is read before it is filled, or filled before it is read, gives wrong
results. Shared memory begins as NaN.

Lanes of a warp may skip something apart, but not leave a loop. An instruction that is
not known raises NotImplementedError. No time is modelled, nor what proxies see of each
other.
"""

import dataclasses
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  Teaches NumPy the name bfloat16.
import numpy as np

from tests.lane_machine import LANES, Machine, swizzled

SHARED = 1024  # Where a CTA's shared memory begins.
_RANK = 24  # The bit of a shared address from which a peer's rank stands.
_MAPS = 1 << 60  # Where descriptors of TMA are.
_MAP_BYTES = 128
_GLOBAL = 40  # The bit of an address from which an array's number stands.
_TYPES = {"bf16": "bfloat16", "f16": "float16"}


@dataclasses.dataclass(frozen=True)
class TensorMap:
    """What TMA copies boxes of.

    Attributes:
      array: whose memory it is.
      sizes, strides: of the tensor in it, slowest axis first, in elements.
      box: sizes of what is copied at a time.
      swizzle: bytes, or 16 for none.
    """

    array: np.ndarray
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.box) * self.array.itemsize

    def places(self, start: int, first: Sequence[int]) -> tuple[Any, Any, Any]:
        """Bytes of the box in shared memory and in the array, and which there are.

        Args:
          start: where the box begins in shared memory.
          first: its first entry, fastest axis first.
        """
        assert start % 128 == 0, f"TMA copies to or from {start:#x}"
        index = np.indices(self.box).reshape(len(self.box), -1).T + first[::-1]
        inside = ((index >= 0) & (index < self.sizes)).all(1)
        size = self.array.itemsize
        entry = np.arange(size)
        shared = start + size * np.arange(len(index))[:, None] + entry
        outside = (index @ np.array(self.strides) * size)[:, None] + entry
        return swizzled(shared, self.swizzle), outside, inside


@dataclasses.dataclass(frozen=True)
class _Instruction:
    op: str
    operands: tuple[str, ...]
    guard: str | None  # A predicate, perhaps with a ! in front.
    scope: int  # Labels in braces are their own.

    @property
    def kinds(self) -> list[str]:
        return self.op.split(".")


@dataclasses.dataclass(frozen=True)
class Program:
    """Instructions, and the places of labels by name and scope."""

    code: tuple[_Instruction, ...]
    labels: Mapping[tuple[str, int], int]
    parameters: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Program":
        """Reads the one kernel of a PTX file."""
        head, _, body = text[text.index(".entry") :].partition("\n{")
        parameters = tuple(re.findall(r"\.param [^\n]*?(\w+_param_\d+)", head))
        code: list[_Instruction] = []
        labels: dict[tuple[str, int], int] = {}
        scopes, count = [0], 0
        for line in body.splitlines():
            line = line.partition("//")[0].strip()
            if line in "{}":
                if line == "{":
                    count += 1
                    scopes.append(count)
                elif line and len(scopes) == 1:
                    break
                elif line:
                    scopes.pop()
                continue
            for part in map(str.strip, line.split(";")):
                while label := re.match(r"([\w$]+):\s*", part):
                    scope = 0 if label[1].startswith("$") else scopes[-1]
                    labels[label[1], scope] = len(code)
                    part = part[label.end() :]
                if part and not part.startswith("."):
                    code.append(_instruction(part, scopes[-1]))
        return cls(tuple(code), labels, parameters)


def _instruction(text: str, scope: int) -> _Instruction:
    guard = re.match(r"@(!?%?\w+)\s+", text)
    op, *rest = (text[guard.end() :] if guard else text).split(None, 1)
    operands = re.findall(r"(?:\[[^]]*\]|\{[^}]*\}|[^,\s])+", rest[0] if rest else "")
    return _Instruction(op, tuple(operands), guard and guard[1], scope)


class _Barrier:
    """An mbarrier: arrivals and bytes that are missing of a phase."""

    def __init__(self, count: int) -> None:
        self._count, self._pending, self._bytes, self.phase = count, count, 0, 0

    def arrive(self) -> None:
        self._pending -= 1
        assert self._pending >= 0, "more arrivals than a phase takes"
        self._settle()

    def expect(self, num_bytes: int) -> None:
        self._bytes += num_bytes

    def receive(self, num_bytes: int) -> None:
        self._bytes -= num_bytes
        self._settle()

    def _settle(self) -> None:
        if self._pending == self._bytes == 0:
            self.phase, self._pending = self.phase + 1, self._count


class _Meeting:
    """A barrier of all that take part."""

    def __init__(self) -> None:
        self._arrived = self.turn = 0

    def arrive(self, count: int) -> Callable[[], bool]:
        turn = self.turn
        self._arrived += 1
        if self._arrived == count:
            self._arrived, self.turn = 0, turn + 1
        return lambda: self.turn != turn


class Cta:
    """A CTA.

    Attributes:
      wavefronts: how often banks of shared memory were asked, without TMA.
      fewest: how often they would have been without conflicts.
    """

    def __init__(
        self,
        program: Program,
        *,
        index: int,
        rank: int,
        threads: int,
        arrays: Sequence[np.ndarray],
        pointers: Sequence[int],
        maps: Sequence[TensorMap],
    ) -> None:
        self.program, self.index, self.rank = program, index, rank
        self.num_warps = threads // 32
        self.arrays, self.maps = arrays, maps
        given = [_MAPS] * bool(maps) + [n + 1 << _GLOBAL for n in pointers]
        self.parameters = dict(zip(program.parameters, given, strict=True))
        self.shared = np.full(SHARED + 232_448, 0xFF, np.uint8)
        self.barriers: dict[int, _Barrier] = {}
        self.named: dict[int, _Meeting] = {}
        self.cluster: list[Cta] = [self]
        self.meeting = _Meeting()
        self.copies: list[Callable[[], None]] = []
        self.wavefronts = self.fewest = 0


def run_cluster(ctas: Sequence[Cta], seed: int) -> None:
    """Runs the CTAs of a cluster; warps and copies take turns at random.

    With an even seed copies come when nothing else goes on, with an odd one any time;
    one of the CTAs, or a half of the one CTA's warps, gets far fewer turns.
    """
    pick = random.Random(seed)
    head = ctas[0]
    for cta in ctas:
        cta.cluster, cta.meeting, cta.copies = list(ctas), head.meeting, head.copies
    running = [
        ((n if len(ctas) > 1 else w * 2 // cta.num_warps), _Warp(cta, w).run())
        for n, cta in enumerate(ctas)
        for w in range(cta.num_warps)
    ]
    slow = pick.randrange(max(2, len(ctas)))
    waited = 0
    while running:
        group, warp = one = pick.choice(running)
        if group == slow and pick.random() < 0.9 and waited < 100:
            waited += 1
            continue
        try:
            waited = 0 if next(warp) else waited + 1
        except StopIteration:
            running.remove(one)
        is_time = pick.random() < 0.05 if seed % 2 else waited > 50 * len(running)
        if head.copies and is_time:
            head.copies.pop(pick.randrange(len(head.copies)))()
            waited = 0
        assert waited < 100_000, "all wait for ever"
    assert not head.copies, "a CTA leaves before its copies are done"


class _Warp:
    """32 lanes, of the same place in the program."""

    def __init__(self, cta: Cta, number: int) -> None:
        self.cta, self.number = cta, number
        self.registers: dict[str, np.ndarray] = {}
        self.lanes = Machine(cta.shared, number)
        self.at = 0
        self.active = np.ones(32, bool)
        self.skipping: dict[int, np.ndarray] = {}  # Lanes, by where they go on.
        self.now: list[Callable[[], None]] = []
        self.groups: list[list[Callable[[], None]]] = []
        self.arrived: Callable[[], bool] | None = None

    def run(self) -> Iterator[bool]:
        """Goes on to where others may take turns; tells whether something was done."""
        code = self.cta.program.code
        while True:
            one = code[self.at]
            self.active = self.active | self.skipping.pop(self.at, False)
            if one.op == "ret":
                assert not self.skipping, "lanes end apart"
                return
            self.at += 1
            self.mask = self.active
            if one.guard:
                name = one.guard.lstrip("!")
                self.mask = self.active & (
                    self.registers[name] ^ one.guard.startswith("!")
                )
            found = self.execute(one)
            while callable(found) and not found():
                yield False
            if found is not None:
                yield bool(found)

    def execute(self, one: _Instruction) -> bool | Callable[[], bool] | None:
        """Carries out an instruction.

        Returns:
          Whether something was done that others may see; None if they need no turn; or
          what tells whether this warp may go on.
        """
        head, *kinds = one.kinds
        act = getattr(self, f"do_{head}", None)
        if act is None:
            raise NotImplementedError(f"{one.op} {', '.join(one.operands)}")
        found: bool | Callable[[], bool] | None = act(one, kinds)
        return found

    # Values of registers are uint64, float32 by their bits, and predicates bool.

    def value(self, text: str, kind: str = "b64") -> np.ndarray:
        """An operand as the type of an instruction has it."""
        found = self._raw(text)
        if found.dtype == bool or kind == "pred":
            return found
        bits = int(kind[1:])
        low = found & np.uint64((1 << bits) - 1)
        if kind == "f32":
            return low.astype(np.uint32).view(np.float32)
        if kind[0] == "s":
            shift = np.uint64(64 - bits)
            return (low << shift).view(np.int64) >> np.int64(64 - bits)
        return low

    def _raw(self, text: str) -> np.ndarray:
        if text in self.registers:
            return self.registers[text]
        cta = self.cta
        known = {
            "%ctaid.x": cta.index,
            "%cluster_ctaid.x": cta.rank,
            "%cluster_ctarank": cta.rank,
            "%tid.y": 0,
            "%tid.z": 0,
            "%ctaid.y": 0,
            "%ctaid.z": 0,
            **cta.parameters,
        }
        if text == "%tid.x":
            return self.lanes.thread.astype(np.uint64)
        if text.startswith("__dynamic_shmem__"):
            number = SHARED
        elif text in known:
            number = known[text]
        elif re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)", text):
            number = int(text, 0)
        elif re.fullmatch(r"0f[0-9a-fA-F]{8}", text):
            number = int(text[2:], 16)
        else:
            raise NotImplementedError(f"what is {text}?")
        return np.full(32, number & (1 << 64) - 1, np.uint64)

    def put(self, name: str, found: Any, kind: str = "b64") -> None:
        """Sets a register in the lanes that take part."""
        found = np.broadcast_to(np.asarray(found), (32,))
        found = found != 0 if kind == "pred" else found
        if kind == "f32" or found.dtype == np.float32:
            found = found.astype(np.float32).view(np.uint32).astype(np.uint64)
        elif found.dtype != bool:
            found = found.astype(np.int64 if found.dtype.kind == "i" else np.uint64)
            found = found.view(np.uint64) & np.uint64((1 << int(kind[1:])) - 1)
        before = self.registers.get(name, np.zeros(32, found.dtype))
        self.registers[name] = np.where(self.mask, found, before)

    def address(self, text: str) -> np.ndarray:
        """Of an operand [register + constant]."""
        base, _, more = text.strip("[] ").partition("+")
        return self.value(base.strip()).astype(np.int64) + int(more or 0)

    # Control.

    def do_bra(self, one: _Instruction, kinds: Any) -> None:
        if not self.mask.any():
            return
        name = one.operands[0]
        scope = 0 if name.startswith("$") else one.scope
        to = self.cta.program.labels[name, scope]
        if (self.mask == self.active).all():
            passed = [at for at in self.skipping if to > at or to < self.at]
            assert not passed, "lanes that skip something are passed by"
            self.at = to
            return
        assert to > self.at, "lanes leave a loop apart"
        self.skipping[to] = self.mask | self.skipping.get(to, False)
        self.active = self.active & ~self.mask

    def nothing(self, one: _Instruction, kinds: Any) -> None:
        """What has no effect on values."""

    do_fence = do_prefetch = nothing

    def do_elect(self, one: _Instruction, kinds: Any) -> None:
        self.put(one.operands[0].partition("|")[2], LANES == 0)

    def do_shfl(self, one: _Instruction, kinds: Any) -> None:
        to, source, lane, *_ = one.operands
        self.put(to, self.value(source)[self.value(lane).astype(int) % 32])

    def do_bar(self, one: _Instruction, kinds: list[str]) -> Callable[[], bool] | None:
        if kinds[0] == "warp":
            return None
        name, *threads = (int(self.value(text)[0]) for text in one.operands)
        count = threads[0] // 32 if threads else self.cta.num_warps
        return self.cta.named.setdefault(name, _Meeting()).arrive(count)

    def do_barrier(self, one: _Instruction, kinds: Any) -> Callable[[], bool] | None:
        if "arrive" in kinds:
            count = sum(cta.num_warps for cta in self.cta.cluster)
            self.arrived = self.cta.meeting.arrive(count)
            return None
        return self.arrived

    # Numbers.

    def do_mov(self, one: _Instruction, kinds: list[str]) -> None:
        to, source = one.operands
        parts = _names(to if "{" in to else source)
        size = np.uint64(int(kinds[-1][1:]) // len(parts) if len(parts) > 1 else 0)
        low = np.uint64((1 << int(size)) - 1)
        if "{" in to:
            for n, name in enumerate(parts):
                if name != "_":
                    self.put(name, self.value(source) >> size * np.uint64(n) & low)
        elif "{" in source:
            whole = np.zeros(32, np.uint64)
            for n, name in enumerate(parts):
                whole |= (self.value(name) & low) << size * np.uint64(n)
            self.put(to, whole)
        else:
            self.put(to, self.value(source), kinds[-1])

    def do_cvta(self, one: _Instruction, kinds: Any) -> None:
        self.put(one.operands[0], self.value(one.operands[1]))

    def do_cvt(self, one: _Instruction, kinds: list[str]) -> None:
        to, *sources = one.operands
        target, given = kinds[-2:]
        if target in ("bf16x2", "f16x2"):
            high, low = (self.value(text, given) for text in sources)
            dtype = _TYPES[target.removesuffix("x2")]
            self.put(to, self.lanes.round_pair(low, high, dtype))
        elif target in _TYPES and given == "f32":
            half = self.value(sources[0], given).astype(_TYPES[target])
            self.put(to, half.view(np.uint16).astype(np.uint64))
        elif target == "f32" and given in _TYPES:
            half = self.value(sources[0]).astype(np.uint16).view(_TYPES[given])
            self.put(to, half.astype(np.float32))
        elif "f" in target + given:
            raise NotImplementedError(f"{one.op} {', '.join(one.operands)}")
        else:
            self.put(to, self.value(sources[0], given), target)

    def _calculate(self, one: _Instruction, kinds: list[str]) -> None:
        head, kind = one.kinds[0], kinds[-1]
        to, *sources = one.operands
        found = [self.value(text, kind) for text in sources]
        if head in ("shl", "shr"):
            found[1] = self.value(sources[1], "u32").astype(found[0].dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            self.put(to, _CALCULATIONS[head](*found), kind)

    do_add = do_sub = do_and = do_or = do_xor = do_not = do_neg = _calculate
    do_min = do_max = do_shl = do_shr = do_fma = do_bfe = _calculate

    def do_mul(self, one: _Instruction, kinds: list[str]) -> None:
        to, *sources = one.operands
        kind, wide = kinds[-1], "wide" in kinds
        if "hi" in kinds:
            raise NotImplementedError(f"{one.op} {', '.join(one.operands)}")
        x, y, *more = (self.value(text, kind) for text in sources)
        if wide and more:
            more = [self.value(sources[2], f"{kind[0]}{2 * int(kind[1:])}")]
        with np.errstate(over="ignore", invalid="ignore"):
            found = x * y + more[0] if more else x * y
        self.put(to, found, f"{kind[0]}{2 * int(kind[1:])}" if wide else kind)

    do_mad = do_mul

    def do_setp(self, one: _Instruction, kinds: list[str]) -> None:
        to, *sources = one.operands
        x, y = (self.value(text, kinds[-1]) for text in sources)
        self.put(to, _COMPARISONS[kinds[0]](x, y))

    def do_selp(self, one: _Instruction, kinds: Any) -> None:
        to, x, y, which = one.operands
        self.put(to, np.where(self._raw(which), self.value(x), self.value(y)))

    def do_prmt(self, one: _Instruction, kinds: Any) -> None:
        to, *sources = one.operands
        low, high, selector = (self.value(text, "b32") for text in sources)
        both = low | high << np.uint64(32)
        found = np.zeros(32, np.uint64)
        for n in range(4):
            byte = selector >> np.uint64(4 * n) & np.uint64(15)
            if (byte > 7).any():
                raise NotImplementedError(f"{one.op} {', '.join(one.operands)}")
            found |= (both >> np.uint64(8) * byte & np.uint64(255)) << np.uint64(8 * n)
        self.put(to, found)

    def do_mma(self, one: _Instruction, kinds: list[str]) -> None:
        if "m16n8k16" not in kinds or kinds[-1] != "f32":
            raise NotImplementedError(one.op)
        d, a, b, c = map(_names, one.operands)
        words = [[self.value(n).astype(np.uint32) for n in names] for names in (a, b)]
        sums = [self.value(name, "f32") for name in c]
        for name, found in zip(
            d, self.lanes.mma(sums, *words, _TYPES[kinds[-2]]), strict=True
        ):
            self.put(name, found, "f32")

    # Memory.

    def do_ld(self, one: _Instruction, kinds: list[str]) -> Any:
        names, text = _names(one.operands[0]), one.operands[1]
        if kinds[0].startswith("param"):
            return self.put(names[0], self.value(text.strip("[]")))
        size = int(kinds[-1][1:]) // 8
        raw = self._move(kinds[0], self.address(text), size * len(names))
        words = raw.view(f"u{size}")
        for name, found in zip(names, words.T, strict=True):
            self.put(name, found.astype(np.uint64))
        return True

    def do_st(self, one: _Instruction, kinds: list[str]) -> Any:
        names, size = _names(one.operands[1]), int(kinds[-1][1:]) // 8
        words = np.stack([self.value(name).astype(f"u{size}") for name in names], -1)
        raw = np.ascontiguousarray(words).view(np.uint8)
        self._move(kinds[0], self.address(one.operands[0]), raw.shape[1], raw)
        return True

    def _move(
        self, space: str, at: np.ndarray, size: int, stored: Any = None
    ) -> np.ndarray:
        """Loads (lanes, bytes), or stores them, in the lanes that take part."""
        assert not (at[self.mask] % size).any(), f"{size} bytes at {at[self.mask]}"
        found = np.zeros((32, size), np.uint8)
        for where in sorted({int(one) >> _GLOBAL for one in at[self.mask]}):
            if space.startswith("shared"):
                memory, offset = self.cta.shared, at
            else:
                memory = self.cta.arrays[where - 1].reshape(-1).view(np.uint8)
                offset = at & (1 << _GLOBAL) - 1
            chosen = self.mask & (at >> _GLOBAL == where)
            place = offset[chosen][:, None] + np.arange(size)
            if stored is None:
                found[chosen] = memory[place]
            else:
                memory[place] = stored[chosen]
        if space.startswith("shared"):
            together = max(1, 128 // size)
            for first in range(0, 32, together):
                some = slice(first, first + together)
                self._count(at[some][self.mask[some]], size)
        return found

    def _count(self, at: np.ndarray, size: int) -> None:
        """Counts what the banks take for one access of some lanes, up to 128 bytes."""
        if not len(at):
            return
        words = np.unique(at[:, None] // 4 + np.arange(max(1, size // 4)))
        self.cta.wavefronts += int(np.bincount(words % 32).max())
        self.cta.fewest += 1

    def do_ldmatrix(self, one: _Instruction, kinds: list[str]) -> Any:
        names, at = _names(one.operands[0]), self.address(one.operands[1])
        for n, rows in enumerate(self._rows(at, len(names))):
            entries = self.cta.shared[rows].view(np.uint16)
            entries = entries.T if "trans" in kinds else entries
            self.put(names[n], np.ascontiguousarray(entries).view(np.uint32).ravel())
        return True

    def do_stmatrix(self, one: _Instruction, kinds: list[str]) -> Any:
        names, at = _names(one.operands[1]), self.address(one.operands[0])
        for name, rows in zip(names, self._rows(at, len(names)), strict=True):
            words = self.value(name).astype(np.uint32).reshape(8, 4)
            entries = words.view(np.uint16)
            entries = entries.T if "trans" in kinds else entries
            self.cta.shared[rows] = np.ascontiguousarray(entries).view(np.uint8)
        return True

    def _rows(self, at: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """Bytes of the rows of each matrix, (8, 16)."""
        for n in range(count):
            rows = at[8 * n : 8 * n + 8]
            assert not (rows % 16).any(), f"rows of a matrix at {rows}"
            self._count(rows, 16)
            yield rows[:, None] + np.arange(16)

    # Barriers and copies that threads do not wait for.

    def do_mapa(self, one: _Instruction, kinds: Any) -> None:
        to, at, rank = one.operands
        self.put(to, self.value(at) | self.value(rank) << np.uint64(_RANK))

    def _barrier(self, at: int) -> _Barrier:
        rank, place = divmod(at, 1 << _RANK)
        assert place % 8 == 0, f"a barrier at {place:#x}"
        cta = self.cta.cluster[rank] if rank else self.cta
        return cta.barriers[place]

    def do_mbarrier(self, one: _Instruction, kinds: list[str]) -> Any:
        if kinds[0] == "init":
            for at in self.address(one.operands[0])[self.mask]:
                count = int(self.value(one.operands[1], "u32")[0])
                self.cta.barriers[int(at)] = _Barrier(count)
            return None
        if kinds[0] != "complete_tx":
            at = self.address(one.operands[1])
        if kinds[0] == "try_wait":
            parity = int(self.value(one.operands[2], "u32")[0])
            barrier = self._barrier(int(at[0]))
            done = barrier.phase % 2 != parity
            self.put(one.operands[0], np.full(32, done))
            return done
        if kinds[0] == "complete_tx":
            at = self.address(one.operands[0])
            for lane in np.flatnonzero(self.mask):
                count = int(self.value(one.operands[1])[lane])
                self.cta.barriers[int(at[lane])].receive(count)
            return True
        is_peer = "shared::cluster" in kinds
        for lane in np.flatnonzero(self.mask):
            rank, place = divmod(int(at[lane]), 1 << _RANK)
            cta = self.cta.cluster[rank] if is_peer else self.cta
            if "expect_tx" in kinds:
                cta.barriers[place].expect(int(self.value(one.operands[2])[lane]))
            cta.barriers[place].arrive()
        return True

    def do_cp(self, one: _Instruction, kinds: list[str]) -> Any:
        if kinds[-1] == "commit_group" or "commit_group" in kinds:
            self.groups.append(self.now)
            self.now = []
        elif "wait_group" in kinds:
            while len(self.groups) > int(one.operands[0]):
                for copy in self.groups.pop(0):
                    copy()
        elif "tensor" in kinds:
            is_load = kinds[kinds.index("tensor") + 2].startswith("shared")
            for lane in np.flatnonzero(self.mask):
                (self._fetch if is_load else self._send)(one, int(lane))
        elif kinds[:2] == ["async", "bulk"] and len(one.operands) in (3, 4):
            for lane in np.flatnonzero(self.mask):
                self._copy_bytes(one, kinds[2].startswith("shared"), int(lane))
        else:
            raise NotImplementedError(f"{one.op} {', '.join(one.operands)}")
        return True

    def _copy_bytes(self, one: _Instruction, is_load: bool, lane: int) -> None:
        """Starts a copy of bytes that follow one another."""
        to, source, size, *barrier = one.operands
        ends = [int(self.address(text)[lane]) for text in (to, source)]
        near, far = ends if is_load else ends[::-1]
        count = int(self.value(size, "u32")[lane])
        assert not (near % 16 or far % 16 or count % 16), f"{count} bytes at {ends}"
        memory = self.cta.arrays[(far >> _GLOBAL) - 1].reshape(-1).view(np.uint8)
        far &= (1 << _GLOBAL) - 1
        outside = memory[far : far + count]
        assert len(outside) == count, "a copy goes beyond an array"
        inside = self.cta.shared[near : near + count]
        if is_load:
            place = int(self.address(barrier[0])[lane])

            def load() -> None:
                inside[:] = outside
                self.cta.barriers[place].receive(count)

            self._put_off(load)
        else:
            self.now.append(self._put_off(lambda: outside.__setitem__(..., inside)))

    def _tensor(self, text: str, lane: int) -> tuple[TensorMap, list[int]]:
        name, _, coordinates = text.strip("[] ").partition(",")
        number = int(self.value(name.strip())[lane]) - _MAPS
        found = [
            int(self.value(one, "s32")[lane]) for one in _names(coordinates.strip())
        ]
        return self.cta.maps[number // _MAP_BYTES], found

    def _fetch(self, one: _Instruction, lane: int) -> None:
        start, given, barrier, *multicast = one.operands
        tensor, first = self._tensor(given, lane)
        at, place = (int(self.address(text)[lane]) for text in (start, barrier))
        shared, outside, inside = tensor.places(at, first)
        ranks = int(self.value(multicast[0])[lane]) if multicast else 0
        for cta in self.cta.cluster:
            if cta is self.cta if not multicast else ranks >> cta.rank & 1:
                self._put_off(_Load(cta, tensor, shared, outside, inside, place))

    def _send(self, one: _Instruction, lane: int) -> None:
        given, start = one.operands
        tensor, first = self._tensor(given, lane)
        at = int(self.address(start)[lane])
        shared, outside, inside = tensor.places(at, first)
        memory = tensor.array.reshape(-1).view(np.uint8)

        def copy() -> None:
            memory[outside[inside]] = self.cta.shared[shared[inside]]

        self.now.append(self._put_off(copy))

    def _put_off(self, copy: Callable[[], None]) -> Callable[[], None]:
        """Has a copy done later, once; or when what is returned is called."""
        copies = self.cta.copies
        copies.append(copy)

        def force() -> None:
            if copy in copies:
                copies.remove(copy)
                copy()

        return force


@dataclasses.dataclass(frozen=True, eq=False)
class _Load:
    """A copy of TMA into a CTA's shared memory."""

    cta: Cta
    tensor: TensorMap
    shared: np.ndarray
    outside: np.ndarray
    inside: np.ndarray
    barrier: int

    def __call__(self) -> None:
        memory = self.tensor.array.reshape(-1).view(np.uint8)
        found = np.zeros(self.shared.shape, np.uint8)
        found[self.inside] = memory[self.outside[self.inside]]
        self.cta.shared[self.shared] = found
        self.cta.barriers[self.barrier].receive(self.tensor.num_bytes)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{} ").split(",")]


def _extracted(x: np.ndarray, first: np.ndarray, length: np.ndarray) -> np.ndarray:
    one = np.uint64(1)
    return x >> first & (one << length) - one


_CALCULATIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x: ~x,
    "neg": lambda x: -x,
    "min": np.minimum,
    "max": np.maximum,
    "shl": lambda x, n: x << n,
    "shr": lambda x, n: x >> n,
    "fma": lambda x, y, z: x * y + z,
    "bfe": _extracted,
}
_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
