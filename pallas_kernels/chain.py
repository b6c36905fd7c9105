"""`chain`: a whole chain of factors in one launch, intermediates in shared memory.

    x in HBM ──TMA──▶ slab ──ldmatrix──▶ registers ─┐
                                                    ├─ mma.sync, f32 sums
    weights (L2) ──TMA──▶ ring ──ldmatrix──▶ regs ──┘        │ rounded
                                                             ▼
      next factor ◀──ldmatrix.trans── buffer ◀──stmatrix.trans
           │              (features first, batch innermost)
           └─▶ slab ──TMA──▶ y in HBM

One CTA takes `rows` vectors of the batch at a time and keeps taking more until there
are none. A factor of shape (a, b, c, d) is a·d products of a (rows × c) by a (c × b)
tile; they are dealt out to the CTA's warpgroups. Each warpgroup fetches what its own
products need, x and weights alike, by TMA `stages` units ahead, across the ends of
factors and tiles, so that warpgroups wait for one another only between two factors.

In the buffer a block of any factor, contiguous or not, is a slice with the batch
contiguous, which is what ldmatrix and stmatrix want; so nothing is ever permuted in
HBM. Features-first arrays are read and written that way at once. Of a batch-first
array that holds only where d = 1, so a first factor with d > 1 is preceded, and a
last one followed, by a pass that transposes in shared memory: one such pass for a
Monarch chain (1, b, c, d)(a, b', c', 1). The same passes cut float32 into bfloat16
pieces on the way in, which all else then has two or three of, and add them up on the
way out. Bias and activation are applied to the last factor's sums in registers.

*Clusters.* What outgrows a multiprocessor is shared out to a thread-block cluster, all
of whose CTAs work on the same tile. Left and right of a cut in the chain each CTA
applies a chain of its own, of its share of the blocks, with the steps above:

    x share ─▶ (a/S, b, c, d) … ─▶ M ══ all CTAs' M ══▶ M ─▶ … (a, b, c, d/S) ─▶ y share

and at the cut each pulls what it needs from the others' shared memory, 16 bytes at a
time (`pallas_kernels.cluster`). That goes through registers into the memory M that it
came from: with two buffers, a CTA would have room for half the vectors. Features
first, shares of x and y are blocks as before. Features last, a CTA's share of y (or of
x, in a transposed chain) is runs of d/S features, which TMA copies as they are, 16
bytes at least.

A CTA needs only its share of the weights. `resident` factors' stay in shared memory for
the whole launch; the others' are fetched for each tile.

*The order of weights.* TMA copies those of d = 1 as they are given. Those of d > 1 lie
interleaved in w, and float32 is multiplied in pieces. Where such weights stay, a CTA
reads its share of w as given, once before the first tile, up to 16 bytes along d at a
time, and stores it in order (`pallas_kernels.arrangement`): nothing is copied, and
nothing else launched. For those that are fetched for each tile, and for blocks that are
embedded in larger ones, XLA writes a copy in order beforehand, in a launch for each
factor. The bias is read as given where d = 1, and copied elsewhere.

Bytes moved per vector, with n₀ = n_in, …, n_L = n_out and s = itemsize; exactly what
`pallas_kernels.traffic` counts, for all CTAs of a cluster together:

    HBM     s·(n_in + n_out), read once and written once: the floor
    L2      the same, and s·(weights that are not resident) / rows; runs shorter than 32
            bytes count as 32
    SMEM    each factor: s·n read 4 / m_warps times, s·n written, its weights read
            m_warps times; each transposing pass and the exchange: s·n read and written;
            by TMA what L2 gives and takes
    peers   s·n·(S - 1) / S, from other CTAs' shared memory

and for each launch, from L2, resident weights once for each CTA, of which runs of d or
fewer that are shorter than 32 bytes count as 32 too; and what XLA copies, from HBM and
back.

Shared memory: one buffer of about s·rows·n / S for each intermediate (factors with
b = c work in place), slabs of `stages` blocks of x for each warpgroup, s·rows·c, as
many of the largest block's weights, s·b·c, `out_stages` slabs of y, s·rows·b, and
resident weights.

*Bank conflicts*: none, by construction. Slabs are as wide as a TMA swizzle of 128, 64
or 32 bytes, in which eight rows of a column of 16 bytes lie in different banks. In the
buffer, features and rows are padded so that neighbouring features, of a run or of a
block, are an odd number of 16 bytes apart. The accesses of float32 slabs, 8 bytes per
thread, meet the same swizzle. Tiles of 64 rows are pulled in whole lines of all banks;
those of 32, four lanes of which go on to the next feature, meet two banks twice. Only
features-first slabs of more than 64 rows have no swizzle.

*Which ceiling binds*, predicted and not measured: for the configuration that
`default_config` takes at a batch of 25,088; kilobytes and nanoseconds per vector, with
the rates that `pallas_kernels.chips` assumes of an H200, of which 128 multiprocessors
of 132 are taken to serve clusters. S: CTAs of a cluster; kept: factors with resident
weights. `all` adds fetches that come late, waiting between factors, and each vector's
part of what precedes the first tile; `apart` is what HBM alone needs for the factors in
a launch each. Monarch chains of bfloat16, features first or last; three factors as
`Chain.from_shape` has them.

                              KB                  ns
    n            S rows kept   HBM   L2 SMEM peer   HBM    L2  SMEM  peer   all apart
    256, last     1   32    1     1 1.25 6.25    0  0.24  0.23  0.22  0.00  0.29  0.48
    512, last     1   64    1     2  2.5   12    0  0.48  0.47  0.43  0.00  0.60  0.95
    1024, last    1   64    0     4    6   26    0  0.95  1.12  0.93  0.00  1.32  1.91
    2048, first   8   64    1     8   12   56  3.5  1.91  2.23  2.06  1.42  2.46  3.81
    2048, last    8   64    1     8   16   64  3.5  1.91  2.98  2.35  1.42  3.25  3.81
    4096, first  16  128    1    16   20  100  7.5  3.81  3.72  3.68  3.05  5.24  7.62
    4096, last    4   64    0    16   32  160    6  3.81  5.96  5.88  2.44  7.18  7.62
    8192, first  16   64    0    32   80  304   15  7.62  14.9  11.2  6.09  17.2  15.2
    8192, last   16   64    0    32   96  336   15  7.62  17.9  12.4  6.09  20.7  15.2
    16384, first 16   32    0    64  320  960   30  15.2  59.6  35.3  12.2  64.1  30.5
    three factors:
    4096, first  16  128    0    16   19   95  7.5  3.81  3.54  3.49  3.05  5.63  11.4
    4096, last   16   64    3    16   16  120  7.5  3.81  2.98  4.41  3.05  7.79  11.4
    8192, first  16   64    2    32   40  248   15  7.62  7.45  9.12  6.09  13.7  22.9
    8192, last   16   32    3    32   32  304   15  7.62  5.96  11.2  6.09  17.9  22.9
    16384, first 16   32    0    64  144  656   30  15.2  26.8  24.1  12.2  52.6  45.7
    float32:
    512, last     1   64    1     4    5 29.5    0  0.95  0.93  1.05  0.00  1.35  1.91
    1024, last    1   32    0     8   16   80    0  1.91  2.98  2.85  0.00  3.47  3.81
    2048, last    8   64    1    16   24  156    7  3.81  4.47  5.74  2.84  7.74  7.62

So up to n = 1024 one CTA should come near the floor. At 2048 and 4096 a cluster should
beat two launches; what it waits for is shared memory and meeting: a tile of the whole
cluster takes a few microseconds, and those who meet lose one or two. Features last,
runs of 16 bytes allow no more than d/8 CTAs: 8 at n = 4096, with 128 KB of weights
each, so these are fetched for each tile after all. At n = 8192 and 16384 the weights of
two factors, 3 and 8 MB, are too many for a cluster to keep, and its tile too small for
so many to be fetched: a launch for each should win, but one for three factors at 8192.

*Arranged or ordered*, predicted too: microseconds for Monarch chains of bfloat16, with
the best configuration in which the kernel arranges the weights of d > 1, and the best
one in which XLA orders them: one CTA's, or a cluster's where that is a fifth faster.

    batch             512          4096         25088
                   arr.  ord.   arr.  ord.   arr.  ord.
    512, first      2.6   4.7    3.8   6.1   14.2  16.9
    512, last       3.6   6.4    4.1   6.4   15.1  17.8
    1024, first     3.3   4.9    7.3   6.9   32.5  32.2
    1024, last      4.9   5.7    7.6   9.9   34.3  33.1
    2048, first     3.9   5.5   11.5  13.0   61.8  72.4
    2048, last      4.9   6.5   14.0  16.5   81.6  90.7
    4096, first     7.2   7.4   24.3  25.9  131.4 145.1
    4096, last      9.1  10.0   34.7  30.4  192.2 180.1

So a copy pays only where weights that stay would take the room that a larger tile
needs: in large batches at n = 1024, of 64 vectors instead of 32, by 1 to 4 %; and
features last at 4096, where they fit into CTAs of clusters of 8, but not of 4, whose
runs of y are whole sectors. The 6.9 are a cluster's, not a fifth faster than one CTA's
7.3.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import (
    arguments,
    chain_plan,
    compat,
    slabs,
)
from pallas_kernels.blocks import bias_blocks, loadable, weight_blocks
from pallas_kernels.chain_config import (
    Config,
    check,
    check_runs,
    default_config,
    plan_for,
    predicted_seconds,
    types_of,
)
from pallas_kernels.chain_kernel import Kernel
from pallas_kernels.chain_plan import Plan, Step
from pallas_kernels.epilogue import Activation

__all__ = ["Config", "chain", "default_config", "predicted_seconds"]


def chain(
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    axis: Literal[0, -1] = -1,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Applies a chain of factors, y = activation(K₁K₂…K_L x + bias), in one launch.

    Products accumulate in float32 and are rounded to the dtype of x after each factor;
    after the last one the bias is added and the activation applied before that.
    float32 is multiplied as sums of bfloat16 pieces (`pallas_kernels.pieces`), so an
    infinity becomes NaN. A block may be embedded in a larger one with zeros for
    weights, so a NaN or an infinity in x may reach more outputs of its own vector than
    it would otherwise; it never reaches another vector.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16, float16 or
        float32.
      factors: arrays (a, b, c, d) of the dtype of x, in the order of the matrix
        product: the last one touches x first.
      axis: the feature axis of x and of the result.
      bias: (n_out,) or None; taken as float32.
      activation: see `pallas_kernels.epilogue.activate`.
      out_dtype: of the result, one of those of x; None for that of x.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`. Products of 16-bit numbers are exact in
        float32. For float32 the default is three products of pieces, which keep 2⁻¹⁶,
        more than TF32; "highest" is six, as exact as float32.

    Returns:
      (batch, n_out) or (n_out, batch), of `out_dtype`.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    shapes, batch, n_out = arguments.check("chain", x, factors, bias, axis)
    types = types_of(x.dtype, out_dtype, precision)
    if batch == 0:
        return jnp.zeros((0, n_out) if axis == -1 else (n_out, 0), types.y)
    check_runs(shapes, types, batch, axis)
    if config is None:
        config = default_config(
            shapes, x.dtype, batch, axis=axis, out_dtype=out_dtype, precision=precision
        )
    plan = plan_for(shapes, types, config, axis)
    check(plan, config)
    return _launch(
        compat.gpu_only(x),
        [_weights(factor, plan, index) for index, factor in enumerate(factors)],
        None if bias is None else _bias(bias, plan),
        activation,
        plan,
        config,
        axis,
        batch,
    )


def _weights(factor: jax.Array, plan: Plan, index: int) -> jax.Array:
    """Weights as the kernel gets them; only *ordered* ones are moved.

    Returns:
      (a·d, pieces, b, c), or for weights that are arranged (a, b, c, d).
    """
    match plan.arrival(index):
        case "arranged":
            return factor
        case "fetched":
            a, b, c, _ = factor.shape
            return factor.reshape(a, 1, b, c)
        case "ordered":
            return weight_blocks(factor, plan.whole[index], plan.types.pieces)


def _bias(bias: jax.Array, plan: Plan) -> jax.Array:
    """The bias as the kernel gets it, (a·d, b); moved only if d > 1."""
    last = plan.whole[0]
    if last.d > 1:
        return bias_blocks(bias, last)
    return loadable(bias).reshape(last.a, last.b)


def _launch(
    x: jax.Array,
    weights: Sequence[jax.Array],
    bias: jax.Array | None,
    activation: Activation | None,
    plan: Plan,
    config: Config,
    axis: Literal[0, -1],
    batch: int,
) -> jax.Array:
    """Calls the kernel on weights and a bias as `_weights` and `_bias` return them."""
    types, rows = plan.types, config.rows
    last, first = plan.whole[0], plan.whole[-1]
    n_out = last.a * last.b * last.d
    y_shape: tuple[int, ...] = (batch, n_out)
    if axis == 0:
        x = x.reshape(first.a, first.c, first.d, batch)
        y_shape = (last.a, last.b, last.d, batch)
    num_tiles = pl.cdiv(batch, rows)
    clusters = min(max(1, config.ctas // plan.cluster), num_tiles)
    lanes = config.warpgroups * config.stages

    def slab(
        count: int, features: int, dtype: str, *, run: int = 0, width: int = 0
    ) -> Any:
        extents = (rows, features) if axis == -1 else (features, rows)
        if axis == 0 or not run:
            run = extents[1]
        width = width or slabs.panel(run, jnp.dtype(dtype).itemsize)
        shape = (extents[1] // width, extents[0], width)
        return slabs.slab((config.warpgroups * count, *shape), dtype)

    def scratch(step: Step) -> dict[str, Any]:
        refs = {}
        multiplies = step.kind == "multiply"
        # Where features come first, all vectors of a tile are one operand.
        whole = rows if multiplies and axis == 0 else 0
        if step.slab_in:
            width = plan.depth if multiplies and axis == -1 else whole
            refs["slab_in"] = slab(
                config.stages, step.slab_in, types.x, run=step.run, width=width
            )
            copies = refs["slab_in"].shape[1]
            refs["x_loaded"] = plgpu.Barrier(num_arrivals=copies, num_barriers=lanes)
        if step.slab_out:
            refs["slab_out"] = slab(
                config.out_stages, step.slab_out, types.y, run=step.run, width=whole
            )
        if multiplies:
            copies = types.pieces * plan.factors[step.factor].c // plan.depth
            barriers = lanes
            if step.resident:
                shape = (step.units, step.weights // plan.depth, plan.depth)
                refs["weights"] = slabs.slab(shape, types.operand)
                copies *= pl.cdiv(step.units, config.warpgroups)
                barriers = config.warpgroups
            if plan.arrival(step.factor) != "arranged":
                refs["weights_loaded"] = plgpu.Barrier(
                    num_arrivals=copies, num_barriers=barriers
                )
        return refs

    def ring() -> list[Any]:
        if not plan.slab_weights:
            return []
        shape = (lanes, plan.slab_weights // plan.depth, plan.depth)
        return [slabs.slab(shape, types.operand)]

    def barriers() -> list[Any]:
        if plan.cluster == 1:
            return []
        barrier = plgpu.ClusterBarrier(
            collective_axes=(chain_plan.SHARE,), num_arrivals=config.warpgroups
        )
        assert plan.shares is not None
        shape = (config.warpgroups, *plan.shares.tile, rows)
        return [barrier, barrier, plgpu.SMEM(shape, types.operand)]

    def memory(group: Sequence[int]) -> Any:
        """Memory for buffers that take turns in it."""
        refs = [
            plgpu.SMEM(plan.buffers[index].shape, plan.buffers[index].dtype)
            for index in group
        ]
        return plgpu.RefUnion(*refs) if len(refs) > 1 else refs[0]

    def body(x_ref: Any, *refs: Any) -> None:
        *inputs, y_ref, groups, slab_weights, steps, phase, exchanged = refs
        buffers = dict(
            pair
            for group, refs in zip(plan.groups, groups, strict=True)
            for pair in zip(group, refs if len(group) > 1 else [refs], strict=True)
        )
        written, loaded, last_loaded = exchanged or (None, None, None)
        Kernel(
            plan,
            config,
            axis,
            x_ref,
            y_ref,
            buffers,
            activation,
            num_tiles,
            clusters,
            inputs[: len(weights)],
            inputs[len(weights)] if bias is not None else None,
            slab_weights[0] if slab_weights else None,
            steps,
            phase,
            written,
            loaded,
            last_loaded,
        ).run()

    y = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(y_shape, types.y),
        scratch_types=[
            [memory(group) for group in plan.groups],
            ring(),
            [scratch(step) for step in plan.steps],
            plgpu.Barrier(num_arrivals=config.warpgroups),
            barriers(),
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(clusters,),
        grid_names=("tile",),
        num_threads=config.warpgroups,
        thread_name="wg",
        cluster=(plan.cluster,) if plan.cluster > 1 else (),
        cluster_names=(chain_plan.SHARE,) if plan.cluster > 1 else (),
    )(x, *weights, *([] if bias is None else [bias]))
    y = compat.varying_as(y, x, *weights)
    return y if axis == -1 else y.reshape(n_out, batch)
