"""Features change hands within a cluster, without races."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import cluster
from tests import gpu_interpreter


def exchange_twice(x, shares, *, warpgroups):
    """x (outer, inner[, minor], rows) held by outer, pulled by inner, and pulled back.

    Returns what each CTA held by inner, (S, outer, inner/S·minor, rows), and x again.
    """
    outer, inner, *minor, rows = x.shape
    size = shares.shares
    part_outer, part_inner = shares.part
    by_inner_shape = (outer, part_inner * shares.minor, rows)

    def body(x_ref, seen_ref, y_ref, by_outer, by_inner, loaded, phase):
        wg = jax.lax.axis_index("wg")
        me = jax.lax.axis_index("share") if size > 1 else 0
        mine = pl.ds(me * part_outer, part_outer)
        pulls = {"shares": shares, "warpgroup": wg, "warpgroups": warpgroups}

        def meet():
            plgpu.barrier_arrive(phase)
            plgpu.barrier_wait(phase)

        @pl.when(wg == 0)
        def _():
            plgpu.copy_gmem_to_smem(x_ref.at[mine], by_outer, loaded)
            plgpu.barrier_wait(loaded)

        meet()
        cluster.pull_by_inner(by_outer, by_inner, **pulls)
        plgpu.commit_smem()
        meet()
        cluster.pull_by_outer(by_inner, by_outer, **pulls)
        plgpu.commit_smem()
        meet()

        @pl.when(wg == 0)
        def _():
            plgpu.copy_smem_to_gmem(by_inner, seen_ref.at[me])
            plgpu.copy_smem_to_gmem(by_outer, y_ref.at[mine])
            plgpu.wait_smem_to_gmem(0)

        meet()

    barrier = plgpu.Barrier(num_arrivals=warpgroups)
    options = {}
    if size > 1:
        barrier = plgpu.ClusterBarrier(
            collective_axes=("share",), num_arrivals=warpgroups
        )
        options = {"cluster": (size,), "cluster_names": ("share",)}
    return plgpu.kernel(
        body,
        out_type=[
            jax.ShapeDtypeStruct((size, *by_inner_shape), x.dtype),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
        ],
        scratch_types=[
            plgpu.SMEM((part_outer, inner, *minor, rows), x.dtype),
            plgpu.SMEM(by_inner_shape, x.dtype),
            plgpu.Barrier(),
            barrier,
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(1,),
        grid_names=("tile",),
        num_threads=warpgroups,
        thread_name="wg",
        **options,
    )(x)


@pytest.mark.parametrize(
    ("outer", "inner", "minor", "rows", "size", "warpgroups"),
    [
        (8, 16, 1, 64, 1, 1),
        (8, 16, 1, 64, 2, 2),
        (16, 24, 1, 32, 4, 1),
        (4, 8, 1, 128, 2, 1),
        (12, 8, 1, 16, 2, 1),
        (4, 4, 4, 64, 2, 1),
        (2, 4, 16, 128, 2, 2),
    ],
)
def test_features_change_hands(outer, inner, minor, rows, size, warpgroups):
    shares = cluster.Shares(outer, inner, rows, size, "share", minor)
    shape = (outer, inner, rows) if minor == 1 else (outer, inner, minor, rows)
    x = np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape)
    x = jnp.asarray(x, jnp.uint16)
    seen, y = gpu_interpreter.run(
        lambda x: exchange_twice(x, shares, warpgroups=warpgroups), x
    )
    expected = np.asarray(x).reshape(outer, size, -1, rows).swapaxes(0, 1)
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(y, x)


def test_parts_that_cannot_be_shared_out():
    with pytest.raises(NotImplementedError, match="multiples"):
        cluster.Shares(6, 16, 64, 4, "share")
    with pytest.raises(NotImplementedError, match="power of two"):
        cluster.Shares(8, 16, 48, 4, "share")
