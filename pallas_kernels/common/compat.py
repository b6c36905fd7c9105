"""What leans on parts of JAX that may change from one version to the next."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import ad_util as _ad_util
from jax._src import config as _config
from jax._src.lax.lax import canonicalize_precision as _canonicalize_precision
from jax._src.pallas.mosaic_gpu import lowering as _lowering
from jax._src.state.types import ReshapeTransform, TransformedRef
from jax.experimental.mosaic.gpu import utils as _mgpu_utils
from jax.experimental.mosaic.gpu.fragmented_array import (
    FragmentedArray,
    Replicated,
    TiledLayout,
)
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

_gpu_only_p = Primitive("gpu_only")
_gpu_only_p.def_abstract_eval(lambda x: x)
_gpu_only_p.def_impl(jax.jit(_gpu_only_p.bind))
batching.defvectorized(_gpu_only_p)


def is_interpreted() -> bool:
    """Whether kernels traced here will run in JAX's interpreter of GPU kernels."""
    return _config.pallas_tpu_interpret_mode_context_manager.value is not None


def _lower(ctx: mlir.LoweringRuleContext, x: Any) -> list[Any]:
    # The interpreter of GPU kernels, which tests run, works on a CPU too.
    platforms = ctx.module_context.platforms
    if not is_interpreted() and tuple(platforms) != ("cuda",):
        raise NotImplementedError(
            "the kernel is for NVIDIA GPUs, from Hopper on, but was lowered for "
            f"{', '.join(platforms)}"
        )
    return [x]


mlir.register_lowering(_gpu_only_p, _lower)


def canonicalize_precision(precision: jax.lax.PrecisionLike) -> Any:
    """The precision for both operands as a pair, with the default of JAX's config.

    Returns:
      A pair of `jax.lax.Precision`, a `jax.lax.DotAlgorithm` or preset, or None.

    Raises:
      ValueError: if it is none of what `jax.lax.dot_general` takes.
    """
    return _canonicalize_precision(precision)


def gpu_only(x: jax.Array) -> jax.Array:
    """x itself; raises NotImplementedError where it is lowered for no NVIDIA GPU.

    Where a function is traced says nothing about where it will run, so that is the
    first moment to tell.
    """
    y: jax.Array = _gpu_only_p.bind(x)
    return y


_unstack_p = Primitive("unstack_vector")
_unstack_p.multiple_results = True


@_unstack_p.def_abstract_eval
def _unstack_abstract(x: Any) -> list[Any]:
    return [x.update(shape=x.shape[:-1])] * x.shape[-1]


_stack_p = Primitive("stack_vector")


@_stack_p.def_abstract_eval
def _stack_abstract(*parts: Any, layout: Any) -> Any:
    del layout
    return parts[0].update(shape=(*parts[0].shape, len(parts)))


mlir.register_lowering(
    _unstack_p,
    mlir.lower_fun(
        lambda x: [x[..., i] for i in range(x.shape[-1])], multiple_results=True
    ),
)
mlir.register_lowering(
    _stack_p,
    mlir.lower_fun(
        lambda *parts, layout: jnp.stack(parts, axis=-1), multiple_results=False
    ),
)


@_lowering.register_lowering_rule(_unstack_p, plgpu.LoweringSemantics.Lane)
def _unstack_lane(ctx: Any, x: Any) -> list[Any]:
    axis = len(x.shape) - 1
    layout = x.layout.reduce((axis,))
    shape = layout.registers_shape(x.shape[:-1])
    parts = []
    for i in range(x.shape[-1]):
        registers = np.empty(x.registers.size, dtype=object)
        for at, register in enumerate(x.registers.flat):
            registers[at] = _mgpu_utils.vector_slice(register, slice(i, i + 1))
        parts.append(
            FragmentedArray(
                _registers=registers.reshape(shape),
                _layout=layout,
                _is_signed=x.is_signed,
            )
        )
    return parts


@_lowering.register_lowering_rule(_stack_p, plgpu.LoweringSemantics.Lane)
def _stack_lane(ctx: Any, *parts: Any, layout: Any) -> Any:
    vectors = layout.to_mgpu()
    [aval] = ctx.avals_out
    registers = np.empty(parts[0].registers.size, dtype=object)
    for at, pieces in enumerate(zip(*(p.registers.flat for p in parts), strict=True)):
        registers[at] = _mgpu_utils.vector_concat(pieces)
    return FragmentedArray(
        _registers=registers.reshape(vectors.registers_shape(aval.shape)),
        _layout=vectors,
        _is_signed=parts[0].is_signed,
    )


def _entry(registers: Any, place: tuple[int, ...], entry: int, length: int) -> Any:
    """One of a thread's entries along the last axis of registers of that length."""
    register, at = divmod(entry, length)
    return _mgpu_utils.vector_slice(registers[(*place, register)], slice(at, at + 1))


def _of_entries(
    shape: tuple[int, ...], entries: Any, like: Any, layout: Any, array_shape: Any
) -> FragmentedArray:
    """An array, given its registers' shape and the entries of each register."""
    registers = np.empty(shape, dtype=object)
    for place in np.ndindex(*shape):
        registers[place] = _mgpu_utils.vector_concat(entries(*place))
    return FragmentedArray(
        _registers=registers.reshape(layout.registers_shape(array_shape)),
        _layout=layout,
        _is_signed=like.is_signed,
    )


_unzip_p = Primitive("unzip_operands")
_unzip_p.multiple_results = True


@_unzip_p.def_abstract_eval
def _unzip_abstract(x: Any, *, operand: str, blocks: int, layout: Any) -> list[Any]:
    del layout
    shape = (x.shape[1], 16) if operand == "LHS" else (16, x.shape[1])
    return [x.update(shape=shape)] * blocks


def _unzip(x: jax.Array, *, operand: str, blocks: int, layout: Any) -> list[jax.Array]:
    del layout
    panels, rows = x.shape[:2]
    x = x.reshape(panels, rows, 4, -1, blocks).transpose(1, 0, 3, 2, 4)
    x = x.reshape(rows, 2, 2, 4, blocks).swapaxes(2, 3).reshape(rows, 16, blocks)
    parts = [x[..., k] for k in range(blocks)]
    return parts if operand == "LHS" else [part.T for part in parts]


mlir.register_lowering(_unzip_p, mlir.lower_fun(_unzip, multiple_results=True))


@_lowering.register_lowering_rule(_unzip_p, plgpu.LoweringSemantics.Lane)
def _unzip_lane(
    ctx: Any, x: Any, *, operand: str, blocks: int, layout: Any
) -> list[Any]:
    panels = x.shape[0]
    inputs = 4 // panels
    halves = 2 if operand == "LHS" else 1  # Of 16 rows, or of 8.
    length = x.layout.vector_length
    x_registers = x.registers.reshape(-1, panels, halves, inputs * blocks // length)

    def part(k: int) -> FragmentedArray:
        def entries(tile: int, half_of_columns: int, half: int) -> list[Any]:
            pair = (2 * half_of_columns, 2 * half_of_columns + 1)
            return [
                _entry(
                    x_registers,
                    (tile, one // inputs, half),
                    one % inputs * blocks + k,
                    length,
                )
                for one in pair
            ]

        shape = (len(x_registers), 2, halves)
        return _of_entries(shape, entries, x, layout.to_mgpu(), ctx.avals_out[k].shape)

    return [part(k) for k in range(blocks)]


_unzip_bias_p = Primitive("unzip_bias")
_unzip_bias_p.multiple_results = True


@_unzip_bias_p.def_abstract_eval
def _unzip_bias_abstract(x: Any, *, blocks: int, layout: Any) -> list[Any]:
    del layout
    return [x.update(shape=(8 * x.shape[0],))] * blocks


mlir.register_lowering(
    _unzip_bias_p,
    mlir.lower_fun(
        lambda x, blocks, layout: [x.reshape(-1, blocks)[:, k] for k in range(blocks)],
        multiple_results=True,
    ),
)


@_lowering.register_lowering_rule(_unzip_bias_p, plgpu.LoweringSemantics.Lane)
def _unzip_bias_lane(ctx: Any, x: Any, *, blocks: int, layout: Any) -> list[Any]:
    length = x.layout.vector_length
    x_registers = x.registers.reshape(-1, 2 * blocks // length)

    def part(k: int) -> FragmentedArray:
        def entries(panel: int) -> list[Any]:
            return [
                _entry(x_registers, (panel,), e * blocks + k, length) for e in range(2)
            ]

        shape = (len(x_registers),)
        return _of_entries(shape, entries, x, layout.to_mgpu(), ctx.avals_out[k].shape)

    return [part(k) for k in range(blocks)]


_zip_p = Primitive("zip_sums")


@_zip_p.def_abstract_eval
def _zip_abstract(*parts: Any, shape: tuple[int, ...], layout: Any) -> Any:
    del layout
    return parts[0].update(shape=shape)


def _zip(*parts: jax.Array, shape: tuple[int, ...], layout: Any) -> jax.Array:
    del layout
    rows, columns = parts[0].shape
    x = jnp.stack(parts, axis=-1).reshape(rows, columns // 8, 8 * len(parts))
    return x.swapaxes(0, 1).reshape(shape)


mlir.register_lowering(_zip_p, mlir.lower_fun(_zip, multiple_results=False))


@_lowering.register_lowering_rule(_zip_p, plgpu.LoweringSemantics.Lane)
def _zip_lane(ctx: Any, *parts: Any, shape: tuple[int, ...], layout: Any) -> Any:
    zipped, blocks = layout.to_mgpu(), len(parts)
    length = zipped.vector_length
    # Tiles down, tiles across, halves of 16 rows; and tiles across first.
    down = parts[0].shape[0] // parts[0].layout.base_tile_shape[0]
    sums = [part.registers.reshape(down, -1, 2, 1) for part in parts]

    def entries(across: int, tile: int, half: int, register: int) -> list[Any]:
        first = register * length
        return [
            _entry(sums[n % blocks], (tile, across, half), n // blocks, 2)
            for n in range(first, first + length)
        ]

    registers = (sums[0].shape[1], down, 2, 2 * blocks // length)
    return _of_entries(registers, entries, parts[0], zipped, shape)


# Adds up the derivatives of what is used twice.
@_lowering.register_lowering_rule(_ad_util.add_any_p, plgpu.LoweringSemantics.Lane)
def _add_any_lane(ctx: Any, x: Any, y: Any) -> Any:
    del ctx
    return x + y


def unstack_vector(x: jax.Array) -> list[jax.Array]:
    """The slices x[..., i] of an array in a GPU kernel.

    The last axis must be the vector of its layout, so that a thread holds all of it.
    """
    parts: list[jax.Array] = _unstack_p.bind(x)
    return parts


def stack_vector(parts: Sequence[jax.Array], layout: Any) -> jax.Array:
    """The inverse of `unstack_vector`, in a layout whose vector is the last axis."""
    x: jax.Array = _stack_p.bind(*parts, layout=layout)
    return x


def unzip_operands(
    x: jax.Array, operand: Literal["LHS", "RHS"], blocks: int, m_warps: int
) -> list[jax.Array]:
    """Operands of mma.sync for neighbouring blocks, from what lies zipped.

    Four neighbouring lanes share a row of a panel, and each has what follows one
    another of one to four inputs: all blocks' entries. So column 8h + 2t + e of an
    operand is one of the inputs of lane t, number 2h + e of those it has in all panels.
    With two inputs for a lane they are in order.

    Args:
      x: 16 inputs, in panels: (panels, rows, 4·inputs·blocks); of 16 bits, or float32
        that is to be cut into pieces; in the layout `zipped_operands`.
      operand: left (rows, 16) or right (16, rows).
      blocks: how many.
      m_warps: warps of a warpgroup along the rows of the product.
    """
    layout = getattr(plgpu.Layout, f"MMA_{operand}")(jnp.bfloat16, m_warps=m_warps)
    parts: list[jax.Array] = _unzip_p.bind(
        x, operand=operand, blocks=blocks, layout=layout
    )
    return parts


def zipped_operands(
    operand: Literal["LHS", "RHS"], shape: Sequence[int], m_warps: int, itemsize: int
) -> Any:
    """The layout in which `unzip_operands` takes an array of that shape."""
    panels, _, width = shape
    down = 16 * m_warps if operand == "LHS" else 8 * (4 // m_warps)
    rows = 16 if operand == "LHS" else 8
    tiles = [
        (panels, down, width),
        (panels, rows, width),
        (1, 8, width),
        (1, 1, width // 4),
        (math.gcd(width // 4, 16 // itemsize),),
    ]
    warps = (-12, replicated(4 // m_warps))
    if operand == "RHS":
        warps = (replicated(m_warps), -12)
    return tiled_layout(tiles, warp_dims=warps, lane_dims=(-6, -5), vector_dim=-1)


def unzip_bias(x: jax.Array, blocks: int, layout: Any) -> list[jax.Array]:
    """The bias of each of neighbouring blocks' outputs, from what lies zipped.

    Args:
      x: (panels, 8·blocks), of eight outputs each, in the layout `zipped_bias`.
      blocks: how many.
      layout: of the sums' columns.
    """
    parts: list[jax.Array] = _unzip_bias_p.bind(x, blocks=blocks, layout=layout)
    return parts


def zipped_bias(shape: Sequence[int], m_warps: int, itemsize: int) -> Any:
    """The layout in which `unzip_bias` takes an array of that shape."""
    _, width = shape
    tiles = [
        (4 // m_warps, width),
        (1, width),
        (1, width // 4),
        (math.gcd(width // 4, 16 // itemsize),),
    ]
    return tiled_layout(
        tiles,
        warp_dims=(replicated(m_warps), -7),
        lane_dims=(replicated(8), -4),
        vector_dim=-1,
    )


def zip_sums(
    parts: Sequence[jax.Array], shape: Sequence[int], m_warps: int
) -> jax.Array:
    """The inverse of `unzip_operands`, for sums (rows, columns) of all blocks.

    Args:
      parts: one for each of the neighbouring blocks.
      shape: (columns / 8, rows, 8·blocks).
      m_warps: warps of a warpgroup along the rows.
    """
    layout = zipped_sums(shape, m_warps, parts[0].dtype.itemsize)
    x: jax.Array = _zip_p.bind(*parts, shape=tuple(shape), layout=layout)
    return x


def zipped_sums(shape: Sequence[int], m_warps: int, itemsize: int) -> Any:
    """The layout in which `zip_sums` returns an array of that shape."""
    _, _, width = shape
    tiles = [
        (4 // m_warps, 16 * m_warps, width),
        (1, 16, width),
        (1, 8, width),
        (1, 1, width // 4),
        (math.gcd(width // 4, 16 // itemsize),),
    ]
    return tiled_layout(
        tiles,
        warp_dims=(-12, -13),
        lane_dims=(-6, -5),
        vector_dim=-1,
    )


def replicated(times: int) -> Any:
    """An axis of `tiled_layout` along which so many warps, or lanes, hold the same."""
    return Replicated(times)


def tiled_layout(
    tiles: Sequence[Sequence[int]],
    *,
    warp_dims: Sequence[Any],
    lane_dims: Sequence[Any],
    vector_dim: int,
) -> Any:
    """`plgpu.Layout.TILED`, which by itself wants its tiling in canonical form.

    Among the axes may be some that are `replicated`.
    """
    layout = TiledLayout(
        plgpu.Tiling(tuple(map(tuple, tiles))),
        tuple(warp_dims),
        tuple(lane_dims),
        vector_dim,
        _check_canonical=False,
    ).canonicalize()
    return plgpu.Layout.TILED(
        layout.tiling, layout.warp_dims, layout.lane_dims, layout.vector_dim
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Untiled(ReshapeTransform):
    """Takes a tiled ref for rows: the shape is the one that it has without tiles."""


def wgmma_sums(shape: tuple[int, int]) -> Any:
    """float32 sums that wgmma adds to, for `jax.experimental.pallas.run_scoped`."""
    return plgpu.ACC(shape, jnp.float32)  # type: ignore[attr-defined]


def untiled(ref: Any) -> Any:
    """What wgmma reads, a tiled and swizzled ref, without its tiles, as TMA fills it.

    Where rows are as long as the swizzle, tiles of 8 rows follow one another, and the
    bytes are those of a ref that is swizzled only. TMA copies to tiles only from arrays
    that consist of whole ones, and to rows from any, filling up with zeros.
    """
    swizzle, _ = ref.transforms
    rows = Untiled(ref.shape)  # type: ignore[abstract]
    return TransformedRef(ref.ref, (swizzle, rows))


def with_unit_axis(layout: Any) -> Any:
    """The layout of an array (n, 1), of which `unstack_vector` makes one (n,).

    Args:
      layout: that of the array (n,), in which a thread holds single entries.
    """
    flat = layout.to_mgpu()

    def axes(found: Sequence[Any]) -> list[Any]:
        return [axis if isinstance(axis, Replicated) else 2 * axis for axis in found]

    return tiled_layout(
        [(*tile, 1) for tile in flat.tiling.tiles],
        warp_dims=axes(flat.warp_dims),
        lane_dims=axes(flat.lane_dims),
        vector_dim=-1,
    )


def varying_as(y: jax.Array, *operands: jax.Array) -> jax.Array:
    """A kernel's result, marked as varying over the mesh axes that its operands do.

    Under `jax.shard_map` an array's type tells over which axes of the mesh it varies,
    and that of a kernel's result says none.
    """
    types = [jax.typeof(operand).manual_axis_type for operand in operands]
    axes = {axis for one in types for axis in one.varying}
    missing = tuple(axes - jax.typeof(y).manual_axis_type.varying)
    return jax.lax.pcast(y, missing, to="varying") if missing else y
