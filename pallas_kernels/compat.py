"""What leans on parts of JAX that may change from one version to the next."""

import dataclasses
from collections.abc import Sequence
from typing import Any

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


def _lower(ctx: mlir.LoweringRuleContext, x: Any) -> list[Any]:
    # The interpreter of GPU kernels, which tests run, works on a CPU too.
    interpreted = _config.pallas_tpu_interpret_mode_context_manager.value is not None
    platforms = ctx.module_context.platforms
    if not interpreted and tuple(platforms) != ("cuda",):
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


_unzip_p = Primitive("unzip_operands")
_unzip_p.multiple_results = True


@_unzip_p.def_abstract_eval
def _unzip_abstract(x: Any, *, layout: Any) -> list[Any]:
    del layout
    panels, rows, width, length = x.shape
    return [x.update(shape=(rows, panels * width))] * length


def _unzip(x: jax.Array, *, layout: Any) -> list[jax.Array]:
    del layout
    panels, rows, width, length = x.shape
    pairs = x.reshape(panels // 2, 2, rows, width, length).transpose(2, 0, 3, 1, 4)
    operands = pairs.reshape(rows, panels * width, length)
    return [operands[..., i] for i in range(length)]


mlir.register_lowering(_unzip_p, mlir.lower_fun(_unzip, multiple_results=True))


@_lowering.register_lowering_rule(_unzip_p, plgpu.LoweringSemantics.Lane)
def _unzip_lane(ctx: Any, x: Any, *, layout: Any) -> list[Any]:
    operand = layout.to_mgpu()
    shape = operand.registers_shape(ctx.avals_out[0].shape)
    # A thread has a register for each panel and for each half of 16 rows. Those of two
    # panels are the pairs of an operand, which has the halves of its rows last.
    halves = x.registers.reshape(-1, 2, 2, 2).swapaxes(2, 3).reshape(-1, 2)
    parts = []
    for i in range(x.shape[-1]):
        registers = np.empty(len(halves), dtype=object)
        for at, pair in enumerate(halves):
            registers[at] = _mgpu_utils.vector_concat(
                [_mgpu_utils.vector_slice(one, slice(i, i + 1)) for one in pair]
            )
        parts.append(
            FragmentedArray(
                _registers=registers.reshape(shape),
                _layout=operand,
                _is_signed=x.is_signed,
            )
        )
    return parts


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


def unzip_operands(x: jax.Array, m_warps: int) -> list[jax.Array]:
    """Left operands of mma.sync, (rows, 16), from as many that lie zipped.

    Of an operand's columns, each two neighbours are from two panels: column 8h + 2t + e
    is column t of panel 2h + e.

    Args:
      x: (4, rows, 4, operands): panels of four columns, in the layout
        `zipped_operands`; of 16 bits, or of float32 that is to be cut into pieces.
      m_warps: warps of a warpgroup along the rows.
    """
    layout = plgpu.Layout.MMA_LHS(jnp.bfloat16, m_warps=m_warps)
    parts: list[jax.Array] = _unzip_p.bind(x, layout=layout)
    return parts


def zipped_operands(length: int, m_warps: int) -> Any:
    """The layout in which `unzip_operands` takes so many: one vector has them all.

    Neighbouring lanes have neighbouring columns of a panel, and a thread the same one
    of each panel.
    """
    return tiled_layout(
        [
            (4, 16 * m_warps, 4, length),
            (4, 16, 4, length),
            (1, 8, 4, length),
        ],
        warp_dims=(-11, replicated(4 // m_warps)),
        lane_dims=(-3, -2),
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
