"""Small Pallas kernels, each of which keeps one part of a GPU busy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat

ROWS, RUNS = 8, 64  # Of a box that `copy_runs` moves: rows, and runs in each.
LOAD_ROWS, LOAD_BYTES = 128, 16  # Of a load of `strided_loads`: a row for each thread.
_RING = 200_000  # Bytes of shared memory for boxes, at most.
MEMBERS = 4  # Warpgroups that `meet` meets with.
_M, _N, _K = 64, 32, 16  # Of a product of `multiply`, by a warpgroup.
SUMS = 4  # Products of `multiply` that do not wait for one another.


def _launch(body: Any, out_type: Any, scratch: Any, *, ctas: int, threads: int) -> Any:
    return plgpu.kernel(
        body,
        out_type=out_type,
        scratch_types=scratch,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,
        ),
        grid=(ctas,),
        grid_names=("cta",),
        num_threads=threads,
        thread_name="wg",
    )


def copy_runs(x: jax.Array, *, run: int, times: int, ctas: int) -> jax.Array:
    """Copies x by TMA in boxes of `ROWS` by `RUNS` runs of so many bytes.

    Args:
      x: (rows, features) in 16 bits: whole boxes.
      run: bytes of a run: 16, 32, 64 or 128.
      times: how often all is copied, over and over.
      ctas: that share the boxes; box after box if there are fewer.

    Returns:
      x, copied.
    """
    rows, features = x.shape
    width = run // 2
    view = x.reshape(rows, RUNS, features // RUNS)
    across = view.shape[2] // width
    boxes = rows // ROWS * across
    stages = min(8, _RING // (ROWS * RUNS * run))
    ctas = min(ctas, boxes)

    def body(x_ref: Any, y_ref: Any, ring: Any, loaded: Any) -> None:
        cta = jax.lax.axis_index("cta")
        each = (boxes // ctas + (cta < boxes % ctas)) * times

        def at(ref: Any, n: jax.Array) -> Any:
            box = jax.lax.rem(cta + n * ctas, boxes)
            row, column = jax.lax.div(box, across), jax.lax.rem(box, across)
            return ref.at[pl.ds(row * ROWS, ROWS), :, pl.ds(column * width, width)]

        def load(n: jax.Array) -> None:
            slot = jax.lax.rem(n, stages)
            plgpu.copy_gmem_to_smem(at(x_ref, n), ring.at[slot], loaded.at[slot])

        def step(n: jax.Array, carry: None) -> None:
            slot = jax.lax.rem(n, stages)
            plgpu.barrier_wait(loaded.at[slot])
            plgpu.copy_smem_to_gmem(ring.at[slot], at(y_ref, n))
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)
            # The slot before is free again: its copy out has been read.
            following = n - 1 + stages
            pl.when((n > 0) & (following < each))(lambda: load(following))
            return carry

        for n in range(stages):
            pl.when(n < each)(functools.partial(load, jnp.int32(n)))
        jax.lax.fori_loop(0, each, step, None)
        plgpu.wait_smem_to_gmem(0)

    scratch = [
        plgpu.SMEM((stages, ROWS, RUNS, width), x.dtype),
        plgpu.Barrier(num_barriers=stages),
    ]
    out = jax.ShapeDtypeStruct(view.shape, x.dtype)
    y: jax.Array = _launch(body, out, scratch, ctas=ctas, threads=1)(view)
    return y.reshape(x.shape)


def strided_loads(x: jax.Array, *, times: int, ctas: int) -> jax.Array:
    """Loads 16 bytes of each row by a thread, column after column, and adds them up.

    Args:
      x: (ctas · `LOAD_ROWS`, features) in float32: rows of whole lines.
      times: how often all is loaded, over and over.
      ctas: of one warpgroup each.

    Returns:
      (ctas · `LOAD_ROWS`, 4): sums over the columns that are alike modulo four.
    """
    width = LOAD_BYTES // 4
    columns = x.shape[1] // width
    layout = compat.tiled_layout(
        [(LOAD_ROWS, width), (LOAD_ROWS // 4, width), (1, width)],
        warp_dims=(-6,),
        lane_dims=(-4,),
        vector_dim=-1,
    )

    def body(x_ref: Any, y_ref: Any) -> None:
        rows = pl.ds(jax.lax.axis_index("cta") * LOAD_ROWS, LOAD_ROWS)

        def step(n: jax.Array, total: jax.Array) -> jax.Array:
            column = jax.lax.rem(n, columns) * width
            part = x_ref.at[rows, pl.ds(column, width)]
            return total + plgpu.load(part, layout=layout, optimized=False)

        zero = plgpu.layout_cast(jnp.zeros((LOAD_ROWS, width), x.dtype), layout)
        total = jax.lax.fori_loop(0, times * columns, step, zero)
        y_ref[rows, :] = total

    out = jax.ShapeDtypeStruct((ctas * LOAD_ROWS, width), x.dtype)
    y: jax.Array = _launch(body, out, (), ctas=ctas, threads=1)(x)
    return y


def meet(*, times: int, ctas: int) -> jax.Array:
    """Has `MEMBERS` warpgroups meet at a barrier so often, then returns zeros."""

    def body(y_ref: Any, met: Any) -> None:
        def step(_: jax.Array, carry: None) -> None:
            plgpu.barrier_arrive(met)
            plgpu.barrier_wait(met)
            return carry

        jax.lax.fori_loop(0, times, step, None)

        @pl.when(jax.lax.axis_index("wg") == 0)
        def _() -> None:
            y_ref[jax.lax.axis_index("cta"), :] = _zeros((128,))

    scratch = [plgpu.Barrier(num_arrivals=MEMBERS)]
    out = jax.ShapeDtypeStruct((ctas, 128), jnp.float32)
    y: jax.Array = _launch(body, out, scratch, ctas=ctas, threads=MEMBERS)()
    return y


def _zeros(shape: tuple[int, ...]) -> jax.Array:
    zero: jax.Array = plgpu.layout_cast(
        jnp.zeros(shape, jnp.float32), plgpu.Layout.WG_STRIDED(shape, vec_size=1)
    )
    return zero


def multiply(a: jax.Array, b: jax.Array, *, times: int, ctas: int) -> jax.Array:
    """Adds the same product of 16-bit numbers up by mma.sync, so often in each warp.

    Args:
      a: (64, 16).
      b: (16, 32).
      times: how often each of `SUMS` sums is added to.
      ctas: of `MEMBERS` warpgroups each.

    Returns:
      (ctas, 64, 32) in float32: times · a b.
    """
    dtype = a.dtype
    layouts = {
        name: getattr(plgpu.Layout, f"MMA_{name}")(dtype, m_warps=4)
        for name in ("LHS", "RHS", "ACC")
    }

    def body(
        a_ref: Any, b_ref: Any, y_ref: Any, a_slab: Any, b_slab: Any, at: Any
    ) -> None:
        @pl.when(jax.lax.axis_index("wg") == 0)
        def _() -> None:
            plgpu.copy_gmem_to_smem(a_ref, a_slab, at)
            plgpu.copy_gmem_to_smem(b_ref, b_slab, at)

        plgpu.barrier_wait(at)
        left = plgpu.load(a_slab, layout=layouts["LHS"], optimized=False)
        right = plgpu.load(b_slab, layout=layouts["RHS"], optimized=False)
        zero = plgpu.layout_cast(jnp.zeros((_M, _N), jnp.float32), layouts["ACC"])

        def step(_: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
            return [plgpu.mma(one, left, right) for one in sums]

        sums = jax.lax.fori_loop(0, times, step, [zero] * SUMS)
        # All sums are used, lest they be left out.
        total = functools.reduce(jnp.add, sums) * (1 / SUMS)

        @pl.when(jax.lax.axis_index("wg") == 0)
        def _() -> None:
            y_ref[jax.lax.axis_index("cta")] = total

    scratch = [
        plgpu.SMEM(a.shape, dtype),
        plgpu.SMEM(b.shape, dtype),
        plgpu.Barrier(num_arrivals=2),
    ]
    out = jax.ShapeDtypeStruct((ctas, _M, _N), jnp.float32)
    y: jax.Array = _launch(body, out, scratch, ctas=ctas, threads=MEMBERS)(a, b)
    return y


def products(*, times: int, ctas: int) -> int:
    """Products of 16 × 8 × 16 that `multiply` makes."""
    return MEMBERS * SUMS * times * ctas * _M * _N * _K // (16 * 8 * 16)
