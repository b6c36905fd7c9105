"""Proves that a kernel, lowered for a GPU, accesses whole words where they begin.

A GPU kills a process that reads 16 bytes at an address that is no multiple of 16. No
interpreter sees that, and Mosaic checks but a part of it: that a row of ldmatrix is
contiguous, and not where it begins.

Lowering needs neither a GPU nor CUDA's libraries, and its result says how each address
is computed. Of every number in it a congruence is inferred, "r modulo m", from
constants through sums, products, quotients, shifts and loops. An access is proven if
the congruence of its address says that it is a multiple of the access's width. Unknown
is taken for misaligned, and an instruction that accesses memory in a way unknown here
raises NotImplementedError, so nothing passes unseen but what wgmma reads by its
descriptors.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax._src.lib.mlir import ir
from jax.experimental.mosaic.gpu import core

_VECTOR = 16  # Bytes of the widest access of a thread; wider ones are several.
_TENSOR = 128  # What the side of a TMA copy in shared memory is a multiple of.
_SHARED, _GLOBAL = 1024, 256  # Where shared memory and arrays in HBM begin.
_EXACT_BITS = 62


@dataclasses.dataclass(frozen=True, order=True)
class Access:
    """Something that reads or writes memory.

    Attributes:
      instruction: its name.
      width: bytes of which the address has to be a multiple.
      modulus, residue: all that is known of the address.
      where: in the source.
    """

    instruction: str
    width: int
    modulus: int
    residue: int
    where: str

    @property
    def is_aligned(self) -> bool:
        """Whether every address that may occur is a multiple of the width."""
        return self.modulus % self.width == 0 and self.residue % self.width == 0


@dataclasses.dataclass(frozen=True)
class _Known:
    """An integer or an address that is `residue` modulo `modulus`; 0 for exactly."""

    modulus: int = 1
    residue: int = 0

    def __post_init__(self) -> None:
        if self.modulus:
            object.__setattr__(self, "residue", self.residue % self.modulus)

    def __add__(self, other: "_Known") -> "_Known":
        modulus = math.gcd(self.modulus, other.modulus)
        return _Known(modulus, self.residue + other.residue)

    def __mul__(self, other: "_Known") -> "_Known":
        modulus = math.gcd(
            self.modulus * other.modulus,
            self.modulus * other.residue,
            other.modulus * self.residue,
        )
        return _Known(modulus, self.residue * other.residue)

    def __or__(self, other: "_Known") -> "_Known":
        """What is known of a number that is one or the other."""
        apart = abs(self.residue - other.residue)
        modulus = math.gcd(self.modulus, other.modulus, apart)
        return _Known(modulus, self.residue)

    @property
    def exact(self) -> int | None:
        return None if self.modulus else self.residue

    @property
    def bits(self) -> int:
        """How many of the last bits are known."""
        if not self.modulus:
            return _EXACT_BITS
        return (self.modulus & -self.modulus).bit_length() - 1


_ANY = _Known()


@dataclasses.dataclass(frozen=True)
class _Ref:
    """A memref: an address, and elements from there to the first one."""

    address: _Known
    offset: _Known


def accesses(function: Callable[..., Any], *args: Any) -> list[Access]:
    """All accesses of the kernels in a function.

    Args:
      function: what to lower for an NVIDIA GPU.
      args: of it, arrays or shapes and dtypes.
    """
    with _lowered() as found:
        jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",))
    assert found, "there is no kernel in the function"
    return found


def check_alignment(function: Callable[..., Any], *args: Any) -> None:
    """Fails if an access of a kernel in a function is not proven to be aligned."""
    bad = {one for one in accesses(function, *args) if not one.is_aligned}
    assert not bad, "perhaps misaligned:\n" + "\n".join(map(str, sorted(bad)))


@contextlib.contextmanager
def _lowered() -> Iterator[list[Access]]:
    """Collects the accesses of kernels that are lowered inside."""
    found: list[Access] = []
    lower = core._mosaic_gpu_lowering_rule

    def collect(*args: Any, module: ir.Module, **kwargs: Any) -> Any:
        reader = Reader()
        for operation in _inside(module.operation, is_device=False):
            found.extend(reader.accesses(operation))
        return lower(*args, module=module, **kwargs)

    core._mosaic_gpu_lowering_rule = collect
    try:
        yield found
    finally:
        core._mosaic_gpu_lowering_rule = lower


def _inside(operation: ir.Operation, is_device: bool) -> Iterator[ir.Operation]:
    """The operations that run on the device."""
    for region in operation.regions:
        for block in region:
            for inner in block:
                if is_device:
                    yield inner.operation
                launches = inner.operation.name == "gpu.launch"
                yield from _inside(inner.operation, is_device or launches)


class Reader:
    """Infers what is known of the values of one kernel, on the device or before it."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, _Known] = {}

    def accesses(self, operation: ir.Operation) -> Iterator[Access]:
        """What an operation accesses."""
        for address, width in self._widths(operation):
            yield Access(
                operation.name,
                width,
                address.modulus,
                address.residue,
                str(operation.location),
            )

    def _widths(self, operation: ir.Operation) -> Iterator[tuple[_Known, int]]:
        """Each address that an operation accesses, and the width."""
        name, operands = operation.name, list(operation.operands)
        pointers = [value for value in operands if _is_pointer(value)]
        if name == "llvm.load":
            yield self.of(operands[0]), _width(operation.results[0].type)
        elif name == "llvm.store":
            yield self.of(operands[1]), _width(operands[0].type)
        elif name in ("memref.load", "vector.load"):
            source, *indices = operands
            yield self._element(source, indices), _width(operation.results[0].type)
        elif name in ("memref.store", "vector.store"):
            stored, target, *indices = operands
            yield self._element(target, indices), _width(stored.type)
        elif name == "llvm.inline_asm":
            asm = ir.StringAttr(operation.attributes["asm_string"]).value
            for operand, width in _widths_of_asm(asm):
                yield self.of(operands[operand]), width
        elif name in ("nvvm.ldmatrix", "nvvm.stmatrix"):
            yield self.of(pointers[0]), _VECTOR
        elif name.startswith("nvvm.cp.async.bulk.tensor"):
            shared = [value for value in pointers if _is_shared(value)]
            yield self.of(shared[0]), _TENSOR
            for barrier in shared[1:]:
                yield self.of(barrier), 8
        elif name.startswith("nvvm.mbarrier"):
            yield self.of(pointers[0]), 8
        elif name in ("nvvm.mapa", "nvvm.prefetch"):
            pass
        elif name.startswith("nvvm.") and pointers:
            raise NotImplementedError(f"how much does {name} access? {operation}")

    def _element(self, ref: ir.Value, indices: list[ir.Value]) -> _Known:
        """Address of an element of a memref."""
        strides, _ = ir.MemRefType(ref.type).get_strides_and_offset()
        found = self.ref(ref)
        offset = found.offset
        for index, stride in zip(indices, strides, strict=True):
            offset += self.of(index) * _stride(stride)
        return found.address + offset * _Known(0, _itemsize(ref.type))

    def of(self, value: ir.Value) -> _Known:
        """What is known of an integer or a pointer."""
        if value not in self._found:
            self._found[value] = _ANY  # While a loop goes round: nothing.
            self._found[value] = self._infer(value)
        return self._found[value]

    def _infer(self, value: ir.Value) -> _Known:
        owner = value.owner
        if isinstance(owner, ir.Block):
            return self._of_argument(owner, ir.BlockArgument(value).arg_number)
        operation = owner.operation
        dialect, _, name = operation.name.partition(".")
        operands = list(operation.operands)
        number = ir.OpResult(value).result_number
        if name in ("constant", "mlir.constant"):
            attribute = operation.attributes["value"]
            if isinstance(attribute, ir.IntegerAttr):
                return _Known(0, ir.IntegerAttr(attribute).value)
            return _ANY
        if name in _SAME:
            return self.of(operands[0])
        if name == "shfl.sync":
            return self.of(operands[1])
        if name == "select":
            return self.of(operands[1]) | self.of(operands[2])
        if dialect in ("arith", "llvm") and name in _BINARY:
            return _BINARY[name](*map(self.of, operands))
        if dialect == "scf":
            return self._of_results(operation, number)
        if name == "getelementptr":
            return self._of_getelementptr(operation)
        if name == "extract_aligned_pointer_as_index":
            return self.ref(operands[0]).address
        if name == "extract_strided_metadata":
            kind = ir.MemRefType(operands[0].type)
            strides, _ = kind.get_strides_and_offset()
            sizes = [_stride(size) for size in (*kind.shape, *strides)]
            return [_ANY, self.ref(operands[0]).offset, *sizes][number]
        if name == "extractvalue":
            position = list(ir.DenseI64ArrayAttr(operation.attributes["position"]))
            return self._of_field(operands[0], position)
        if name == "unrealized_conversion_cast" and not _is_ref(operands[0]):
            return self.of(operands[0])
        if name == "load" and _is_pointer(value):  # An argument of the kernel.
            return _Known(_GLOBAL)
        return _ANY

    def _of_argument(self, block: ir.Block, number: int) -> _Known:
        """Of a loop's counter, or of what it carries."""
        loop = block.owner.operation
        if loop.name != "scf.for":
            return _ANY
        start, _, step, *carried = loop.operands
        if number == 0:
            return self.of(start) + self.of(step) * _ANY
        return self.of(carried[number - 1]) | self.of(_last(block).operands[number - 1])

    def _of_results(self, operation: ir.Operation, number: int) -> _Known:
        """Of a result of a loop or of a condition."""
        if operation.name not in ("scf.for", "scf.if", "scf.index_switch"):
            return _ANY
        ends = [_last(region.blocks[0]) for region in operation.regions]
        found = [self.of(end.operands[number]) for end in ends]
        if operation.name == "scf.for":
            found.append(self.of(operation.operands[3 + number]))
        return functools.reduce(_Known.__or__, found)

    def _of_getelementptr(self, operation: ir.Operation) -> _Known:
        base, *dynamic = operation.operands
        indices = list(ir.DenseI32ArrayAttr(operation.attributes["rawConstantIndices"]))
        if len(indices) != 1:
            return _ANY
        element = ir.TypeAttr(operation.attributes["elem_type"]).value
        index = self.of(dynamic[0]) if dynamic else _Known(0, indices[0])
        return self.of(base) + index * _Known(0, _num_bytes(element))

    def _of_field(self, struct: ir.Value, position: list[int]) -> _Known:
        """Of a field of a struct, which may stand for a memref."""
        while not isinstance(struct.owner, ir.Block):
            operation = struct.owner.operation
            operands = list(operation.operands)
            if operation.name == "llvm.insertvalue":
                place = list(ir.DenseI64ArrayAttr(operation.attributes["position"]))
                struct, field = operands
                if place == position:
                    return self.of(field)
            elif operation.name == "builtin.unrealized_conversion_cast":
                if not _is_ref(operands[0]) or position not in ([0], [1], [2]):
                    return _ANY
                ref = self.ref(operands[0])
                return ref.offset if position == [2] else ref.address
            else:
                return _ANY
        return _ANY

    def ref(self, value: ir.Value) -> _Ref:
        """What is known of a memref."""
        if isinstance(value.owner, ir.Block):
            return _Ref(_ANY, _ANY)
        operation = value.owner.operation
        operands, exactly = list(operation.operands), _Known(0, 0)
        name = operation.name.partition(".")[2]
        if name == "dynamic_shared_memory":
            return _Ref(_Known(_SHARED), exactly)
        if name == "alloca":
            return _Ref(_Known(_VECTOR), exactly)
        if name == "view":
            source, shift, *_ = operands
            return _Ref(self.ref(source).address + self.of(shift), exactly)
        if name in _SAME_REF:
            return self.ref(operands[0])
        if name == "extract_strided_metadata":
            return _Ref(self.ref(operands[0]).address, exactly)
        if name == "reinterpret_cast":
            (start,) = ir.DenseI64ArrayAttr(operation.attributes["static_offsets"])
            is_dynamic = _is_dynamic(start)
            known = self.of(operands[1]) if is_dynamic else _Known(0, start)
            return _Ref(self.ref(operands[0]).address, known)
        if name == "subview":
            source, *dynamic = operands
            strides, _ = ir.MemRefType(source.type).get_strides_and_offset()
            found = self.ref(source)
            offset, following = found.offset, iter(dynamic)
            starts = ir.DenseI64ArrayAttr(operation.attributes["static_offsets"])
            for start, stride in zip(starts, strides, strict=True):
                is_dynamic = _is_dynamic(start)
                known = self.of(next(following)) if is_dynamic else _Known(0, start)
                offset += known * _stride(stride)
            return _Ref(found.address, offset)
        if name == "unrealized_conversion_cast":
            if _is_ref(operands[0]):
                return self.ref(operands[0])
            address, offset = (self._of_field(operands[0], [n]) for n in (1, 2))
            return _Ref(address, offset)
        return _Ref(_ANY, _ANY)


_SAME_REF = (
    "expand_shape",
    "collapse_shape",
    "transpose",
    "cast",
    "memory_space_cast",
)
_SAME = (
    *("index_cast", "index_castui", "extsi", "extui", "trunci"),
    *("ptrtoint", "inttoptr", "addrspacecast", "bitcast"),
    *("sext", "zext", "trunc", "mapa"),
)


def _quotient(a: _Known, by: _Known) -> _Known:
    if not by.exact or a.modulus % by.exact:
        return _ANY
    return _Known(a.modulus // by.exact, a.residue // by.exact)


def _quotient_to_zero(a: _Known, by: _Known) -> _Known:
    # Of a negative number it is another one, unless it is whole.
    if not by.exact or a.residue % by.exact:
        return _ANY
    return _quotient(a, by)


def _remainder(a: _Known, by: _Known) -> _Known:
    if not by.exact:
        return _ANY
    if a.modulus % by.exact == 0:
        return _Known(0, a.residue % by.exact)
    return _Known(math.gcd(a.modulus, by.exact), a.residue)


def _remainder_with_sign(a: _Known, by: _Known) -> _Known:
    return _Known(math.gcd(a.modulus, by.exact), a.residue) if by.exact else _ANY


def _bitwise(act: Callable[[int, int], int]) -> Callable[[_Known, _Known], _Known]:
    def of(a: _Known, b: _Known) -> _Known:
        bits = min(a.bits, b.bits)
        modulus = 0 if bits == _EXACT_BITS else 1 << bits
        return _Known(modulus, act(a.residue, b.residue))

    return of


def _and(a: _Known, b: _Known) -> _Known:
    found = _bitwise(int.__and__)(a, b)
    for mask, other in ((a, b), (b, a)):
        if mask.exact is not None and mask.exact >= 0:
            if mask.exact < 1 << other.bits:
                return _Known(0, mask.exact & other.residue)
            zeros = mask.exact & -mask.exact
            if found.modulus and zeros > found.modulus:
                found = _Known(zeros, 0)
    return found


def _power(exponent: _Known) -> _Known:
    known = exponent.exact
    return _Known(0, 1 << known) if known is not None and known >= 0 else _ANY


_BINARY: Mapping[str, Callable[[_Known, _Known], _Known]] = {
    **dict.fromkeys(("addi", "add"), _Known.__add__),
    **dict.fromkeys(("subi", "sub"), lambda a, b: a + b * _Known(0, -1)),
    **dict.fromkeys(("muli", "mul"), _Known.__mul__),
    **dict.fromkeys(("divui", "udiv"), _quotient),
    **dict.fromkeys(("divsi", "sdiv"), _quotient_to_zero),
    **dict.fromkeys(("remui", "urem"), _remainder),
    **dict.fromkeys(("remsi", "srem"), _remainder_with_sign),
    **dict.fromkeys(("minsi", "maxsi", "minui", "maxui"), _Known.__or__),
    **dict.fromkeys(("xori", "xor"), _bitwise(int.__xor__)),
    **dict.fromkeys(("ori", "or"), _bitwise(int.__or__)),
    **dict.fromkeys(("andi", "and"), _and),
    **dict.fromkeys(("shli", "shl"), lambda a, n: a * _power(n)),
    **dict.fromkeys(("shrui", "lshr"), lambda a, n: _quotient(a, _power(n))),
    **dict.fromkeys(("shrsi", "ashr"), lambda a, n: _quotient(a, _power(n))),
}


_ADDRESS = re.compile(r"\[\s*\$\{?(\d+)(?::\w+)?\}?\s*(?:\+\s*(\d+)\s*)?\]")
_TENSOR_MAP = re.compile(r"\[[^]\[]*\{[^]]*\]")
_ACCESSING = ("ld", "st", "red", "atom", "cp", "ldmatrix", "stmatrix", "mbarrier")


def _widths_of_asm(asm: str) -> Iterator[tuple[int, int]]:
    """The operands that PTX takes for addresses, and how wide it accesses them.

    Raises:
      NotImplementedError: if an address is not an operand, perhaps with a constant that
        is a multiple of the width, or if the instruction is not known here.
    """
    for peer, address in re.findall(r"mapa\S*\s+(\w+),\s*(\$\d+)", asm):
        asm = re.sub(rf"\[\s*{peer}\b", f"[{address}", asm)  # It begins alike.
    for statement in re.split(r"[;\n]", asm):
        # Without a block's braces, a predicate, and TMA's maps with their coordinates.
        text = re.sub(r"^[\s{}]*(@!?\S+\s+)?", "", statement)
        name, _, operands = text.partition(" ")
        addresses = _TENSOR_MAP.sub("", operands)
        if name.split(".")[0] not in _ACCESSING or "[" not in addresses:
            continue
        found = [(int(n), int(more or 0)) for n, more in _ADDRESS.findall(addresses)]
        if len(found) != addresses.count("["):
            raise NotImplementedError(f"what does {text} access?")
        for index, (operand, more) in enumerate(found):
            width = _width_of_asm(name, operands, index)
            if more % width:
                raise NotImplementedError(f"{text} adds {more} to an address")
            yield operand, width


def _width_of_asm(name: str, operands: str, index: int) -> int:
    """The width of the address of that index of one instruction."""
    head, *kinds = name.split(".")
    if head in ("ldmatrix", "stmatrix"):
        return _VECTOR
    if head == "mbarrier":
        return 8
    if name.startswith("cp.async.bulk.tensor"):
        return _TENSOR if index == 0 else 8
    if name.startswith("cp.async.bulk"):
        return _VECTOR if index < 2 else 8
    if name.startswith(("cp.async.ca", "cp.async.cg")):
        return int(operands.split(",")[2])
    if head in ("ld", "st", "red", "atom"):
        times = [int(kind[1:]) for kind in kinds if re.fullmatch(r"v\d", kind)]
        return math.prod(times) * int(re.sub(r"\D", "", kinds[-1])) // 8
    raise NotImplementedError(f"how much does {name} access?")


def _last(block: ir.Block) -> ir.Operation:
    return block.operations[len(block.operations) - 1].operation


def _is_dynamic(number: int) -> bool:
    return number == ir.ShapedType.get_dynamic_stride_or_offset()


def _stride(stride: int) -> _Known:
    return _ANY if _is_dynamic(stride) else _Known(0, stride)


def _is_ref(value: ir.Value) -> bool:
    return isinstance(value.type, ir.MemRefType)


def _is_pointer(value: ir.Value) -> bool:
    return str(value.type).startswith("!llvm.ptr")


def _is_shared(value: ir.Value) -> bool:
    return str(value.type) in ("!llvm.ptr<3>", "!llvm.ptr<7>")


def _itemsize(ref: ir.Type) -> int:
    return _num_bytes(ir.MemRefType(ref).element_type)


def _num_bytes(kind: ir.Type) -> int:
    """Size of a number, a pointer or a vector."""
    text = str(kind)
    if text.startswith("!llvm.ptr") or text == "index":
        return 8
    if isinstance(kind, ir.VectorType):
        vector = ir.VectorType(kind)
        bits = math.prod(vector.shape) * _bits(str(vector.element_type))
    else:
        bits = _bits(text)
    return max(1, bits // 8)


def _bits(text: str) -> int:
    found = re.match(r"(?:bf|f|i|tf)(\d+)", text)
    if not found:
        raise NotImplementedError(f"how long is {text}?")
    return int(found[1])


def _width(kind: ir.Type) -> int:
    """Of what address one access of so much is a multiple."""
    return math.gcd(_num_bytes(kind), _VECTOR)
