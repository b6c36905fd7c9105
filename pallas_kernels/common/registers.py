"""Instructions of a thread in Lane semantics: registers, shared memory, mma.sync.

`plgpu.mma` wants one operand for all four warps of a warpgroup. Kernels in which every
warp has blocks of its own are written with these, inside `by_lanes`. Numbers are LLVM
values of 32 bits, or Python integers where only a constant is given. Code for a lane
takes this module as an argument, so that tests run it on NumPy arrays of 32 lanes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector

from pallas_kernels.common import compat

_SHARED, _GLOBAL = 3, 1  # Address spaces.
_PTX = {"bfloat16": "bf16", "float16": "f16"}


def by_lanes(
    arrays: Callable[..., Any], *, arg_types: Sequence[Any], return_type: Any = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A part of a kernel by lanes, which the interpreter does with arrays.

    Args:
      arrays: does in the interpreter what the decorated function does on a chip.
      arg_types, return_type: as `plgpu.inline_mgpu` takes them.
    """

    def decorate(lanes: Callable[..., Any]) -> Callable[..., Any]:
        if compat.is_interpreted():
            return arrays
        on_chip: Callable[..., Any] = plgpu.inline_mgpu(
            arg_types=tuple(arg_types), return_type=return_type
        )(lanes)
        return on_chip

    return decorate


def kept_type(count: int, dtype: jax.typing.DTypeLike) -> Any:
    """The type of so many registers of each thread, for `by_lanes`."""
    return plgpu.ShapeDtypeStruct(
        (128 * count,), jnp.dtype(dtype), layout=kept_layout(count)
    )


def kept_layout(count: int) -> Any:
    """The layout of so many registers of each thread, for `by_lanes`."""
    return plgpu.Layout.WG_STRIDED((128 * count,), vec_size=1)


def keep(registers: Sequence[Any]) -> Any:
    """Registers as an array, to be carried around or changed entry by entry."""
    kind = ir.VectorType.get((1,), registers[0].type)
    vectors = np.empty(len(registers), dtype=object)
    for at, register in enumerate(registers):
        vectors[at] = vector.broadcast(kind, register)
    return mgpu.FragmentedArray(
        _registers=vectors,
        _layout=kept_layout(len(registers)).to_mgpu(),
        _is_signed=True if registers[0].type == _i32() else None,
    )


def kept(array: Any) -> list[Any]:
    """The inverse of `keep`."""
    return [_entry(register, 0) for register in array.registers.flat]


def scalar(array: Any) -> Any:
    """The number that a splat argument of `by_lanes` is."""
    (register,) = array.registers.flat
    return register


def words(array: Any) -> np.ndarray:
    """Each register's words of 32 bits, or its float32, (registers, words)."""
    flat = list(array.registers.flat)
    length = mgpu.utils.bitwidth(flat[0].type) // 32
    floats = array.mlir_dtype == ir.F32Type.get()
    found = np.empty((len(flat), length), dtype=object)
    for at, register in enumerate(flat):
        whole = register if floats else llvm.bitcast(_words(length), register)
        found[at] = [_entry(whole, n) for n in range(length)]
    return found


def array(entries: np.ndarray, shape: Sequence[int], layout: Any, dtype: Any) -> Any:
    """An array of which each register's entries are given, or its words of 32 bits.

    Args:
      entries: (..., entries of a register), in the order of the layout's registers.
      shape, layout, dtype: of the array.
    """
    rows = entries.reshape(-1, entries.shape[-1])
    found = np.empty(len(rows), dtype=object)
    kind = ir.VectorType.get((rows.shape[1],), rows[0, 0].type)
    tiled = layout.to_mgpu()
    final = ir.VectorType.get(
        (tiled.vector_length,), mgpu.utils.dtype_to_ir_type(jnp.dtype(dtype))
    )
    for at, row in enumerate(rows):
        register = vector.from_elements(kind, list(row))
        found[at] = register if kind == final else llvm.bitcast(final, register)
    return mgpu.FragmentedArray(
        _registers=found.reshape(tiled.registers_shape(tuple(shape))),
        _layout=tiled,
        _is_signed=None,
    )


THREAD = plgpu.Layout.WG_STRIDED((128,), vec_size=1)


def thread() -> jax.Array:
    """Each thread's number in the CTA, of layout `THREAD`, for `kept`.

    Compilers do not know that it is always the same. So what is computed from it, say
    addresses for a loop, takes no registers before.
    """

    @by_lanes(
        lambda: jnp.zeros(128, jnp.int32),
        arg_types=(),
        return_type=kept_type(1, jnp.int32),
    )
    def anew(ctx: Any) -> Any:
        del ctx
        number = llvm.inline_asm(
            _i32(),
            [mgpu.utils.thread_idx()],
            "shfl.sync.idx.b32 $0, $1, $1, 31, 0xffffffff;",
            "=r,r",
            has_side_effects=True,
        )
        return keep([number])

    found: jax.Array = anew()
    return found


# --- Integers -------------------------------------------------------------------------


def warp() -> Any:
    """Number of the warp in the CTA."""
    return shift_right(mgpu.utils.thread_idx(), 5)


def lane() -> tuple[Any, Any]:
    """Parts g and t of the lane 4g + t, as the fragments of mma.sync name them."""
    number = bit_and(mgpu.utils.thread_idx(), 31)
    return shift_right(number, 2), bit_and(number, 3)


def add(x: Any, y: Any) -> Any:
    return arith.addi(_value(x), _value(y))


def multiply(x: Any, y: Any) -> Any:
    return arith.muli(_value(x), _value(y))


def divide(x: Any, by: int) -> Any:
    """Quotient of numbers that are not negative."""
    return arith.divui(_value(x), _value(by))


def remainder(x: Any, by: int) -> Any:
    """What is left of `divide`."""
    return arith.remui(_value(x), _value(by))


def minimum(x: Any, y: Any) -> Any:
    return arith.minui(_value(x), _value(y))


def bit_and(x: Any, y: Any) -> Any:
    return arith.andi(_value(x), _value(y))


def bit_xor(x: Any, y: Any) -> Any:
    return arith.xori(_value(x), _value(y))


def shift_left(x: Any, by: int) -> Any:
    return arith.shli(_value(x), _value(by))


def shift_right(x: Any, by: int) -> Any:
    return arith.shrui(_value(x), _value(by))


# --- Tensor core ----------------------------------------------------------------------


def mma(
    sums: Sequence[Any] | None, a: Sequence[Any], b: Sequence[Any], dtype: Any
) -> list[Any]:
    """mma.sync m16n8k16 or m16n8k8 of a warp: sums + a b.

    Args:
      sums: 4 registers of float32, or None for zeros.
      a: left operand (16, 16) or (16, 8), 4 or 2 registers with two entries each.
      b: right operand (16, 8) or (8, 8), 2 registers or 1.
      dtype: of the operands, bfloat16 or float16.
    """
    f32, kind = ir.F32Type.get(), _PTX[jnp.dtype(dtype).name]
    if sums is None:
        sums = [mgpu.utils.c(0.0, f32)] * 4
    places = iter(range(4 + len(a) + len(b) + 4))
    fragments = ", ".join(
        "{" + ",".join(f"${next(places)}" for _ in range(count)) + "}"
        for count in (4, len(a), len(b), 4)
    )
    found = llvm.inline_asm(
        llvm.StructType.get_literal([f32] * 4),
        [*a, *b, *sums],
        f"mma.sync.aligned.m16n8k{4 * len(a)}.row.col.f32.{kind}.{kind}.f32 "
        f"{fragments};",
        ",".join(["=f"] * 4 + ["r"] * (len(a) + len(b)) + ["f"] * 4),
        has_side_effects=False,
    )
    return [llvm.extractvalue(f32, found, [n]) for n in range(4)]


def pair(low: Any, high: Any, half: int) -> Any:
    """Lower (half = 0) or upper halves of two registers, side by side in one."""
    return llvm.inline_asm(
        _i32(),
        [low, high],
        f"prmt.b32 $0, $1, $2, {0x7632 if half else 0x5410:#x};",
        "=r,r,r",
        has_side_effects=False,
    )


def add_floats(x: Any, y: Any) -> Any:
    """Sum of two float32."""
    return arith.addf(x, y)


def round_pair(low: Any, high: Any, dtype: Any) -> Any:
    """Two float32 rounded to bfloat16 or float16, in one register."""
    return llvm.inline_asm(
        _i32(),
        [high, low],
        f"cvt.rn.{_PTX[jnp.dtype(dtype).name]}x2.f32 $0, $1, $2;",
        "=r,f,f",
        has_side_effects=False,
    )


# --- Memory ---------------------------------------------------------------------------


def fence() -> None:
    """What follows is not moved before it: loads stay behind products before them."""
    llvm.inline_asm(
        ir.Type.parse("!llvm.void"),
        [],
        "bar.warp.sync 0xffffffff;",
        "~{memory}",
        has_side_effects=True,
    )


def address(ref: Any) -> Any:
    """Where in shared memory a ref begins."""
    return llvm.ptrtoint(_i32(), mgpu.utils.memref_ptr(ref))


def load_shared(at: Any, offset: int, words: int) -> list[Any]:
    """1, 2 or 4 registers from an address that is a multiple of their size."""
    found = llvm.load(_words(words), _pointer(at, offset), alignment=4 * words)
    return [_entry(found, n) for n in range(words)]


def store_shared(at: Any, offset: int, registers: Sequence[Any]) -> None:
    """The inverse of `load_shared`."""
    words = vector.from_elements(_words(len(registers)), list(registers))
    llvm.store(words, _pointer(at, offset), alignment=4 * len(registers))


def load_wide(ref: Any, element: Any, count: int) -> list[Any]:
    """Neighbouring entries of an array in HBM, of a float type, as float32.

    Args:
      ref: the array; its bytes must be aligned to those of the entries together.
      element: number of the first one, below 2**31.
      count: how many.
    """
    kind = ir.MemRefType(ref.type).element_type
    start = llvm.addrspacecast(
        llvm.PointerType.get(_GLOBAL), mgpu.utils.memref_ptr(ref)
    )
    at = llvm.getelementptr(
        start.type, start, [element], [-(2**31)], kind, llvm.GEPNoWrapFlags.none
    )
    size = count * mgpu.utils.bitwidth(kind) // 8
    found = llvm.load(ir.VectorType.get((count,), kind), at, alignment=min(size, 16))
    f32 = ir.F32Type.get()
    if kind != f32:
        found = arith.extf(ir.VectorType.get((count,), f32), found)
    return [_entry(found, n) for n in range(count)]


def store_wide(
    ref: Any, row: Any, extent: int, column: Any, entries: Sequence[Any]
) -> None:
    """Neighbouring words of a row of an array (rows, extent) of 16 bits in HBM.

    Args:
      ref: the array, of any shape in that order.
      row, extent, column: of the first entry; its bytes must be aligned to those of the
        words together.
      entries: 1, 2 or 4 words of 32 bits.
    """
    i64 = ir.IntegerType.get_signless(64)
    wide = [arith.extui(i64, one) for one in (row, column)]
    size = mgpu.utils.c(extent, i64)
    at = arith.addi(arith.muli(wide[0], size), wide[1])
    start = llvm.addrspacecast(
        llvm.PointerType.get(_GLOBAL), mgpu.utils.memref_ptr(ref)
    )
    kind = ir.MemRefType(ref.type).element_type
    place = llvm.getelementptr(
        start.type, start, [at], [-(2**31)], kind, llvm.GEPNoWrapFlags.none
    )
    found = vector.from_elements(_words(len(entries)), list(entries))
    llvm.store(found, place, alignment=4 * len(entries))


def less(x: Any, y: Any) -> Any:
    """Whether x < y, neither of them negative."""
    return arith.cmpi(arith.CmpIPredicate.ult, _value(x), _value(y))


def where(condition: Any, then: Callable[[], None]) -> None:
    """Does something in those lanes only in which the condition holds."""
    with mgpu.when(condition):
        then()


def _i32() -> Any:
    return ir.IntegerType.get_signless(32)


def _value(x: Any) -> Any:
    if isinstance(x, int | np.integer):
        return mgpu.utils.c(int(x), _i32())
    return x


def _words(count: int) -> Any:
    return ir.VectorType.get((count,), _i32())


def _entry(of: Any, at: int) -> Any:
    return vector.extract(of, dynamic_position=[], static_position=[at])


def _pointer(at: Any, offset: int) -> Any:
    at = add(at, offset) if offset else at
    return llvm.inttoptr(llvm.PointerType.get(_SHARED), at)
