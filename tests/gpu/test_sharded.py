"""The GPU kernels under `jax.shard_map`, lowered for GPUs that are not there."""

import functools

import jax
import jax.export
import pytest
from jax.sharding import AxisType, PartitionSpec

import butterjax as bj


@pytest.mark.parametrize(
    ("name", "chain", "dtype"),
    [
        ("pallas", bj.Chain.monarch(256, 256), "bfloat16"),
        ("pallas_chain", bj.Chain.monarch(256, 256), "bfloat16"),
        ("pallas_chain", bj.Chain.monarch(1024, 1024), "bfloat16"),
        ("pallas_chain", bj.Chain.square_dyadic(64), "float32"),
    ],
    ids=["pallas", "pallas_chain", "one launch back", "radix"],
)
def test_batch_and_gradients_over_a_mesh(name, chain, dtype):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    apply = functools.partial(bj.butterfly, implementation=name, precision="highest")
    batch, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(apply, mesh=mesh, in_specs=(batch, whole), out_specs=batch)
    x = jax.ShapeDtypeStruct((64, chain.in_features), dtype)
    factors = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in chain.shapes)

    @jax.jit
    def gradients(x, factors, dy):
        y, pull_back = jax.vjp(sharded, x, factors)
        return y, pull_back(dy)

    dy = jax.ShapeDtypeStruct((64, chain.out_features), dtype)
    export = jax.export.export(gradients, platforms=["cuda"])
    exported = export(x, factors, dy)
    assert exported.nr_devices == 2
    program = exported.mlir_module()
    assert "mosaic_gpu" in program
    assert f"tensor<32x{chain.in_features}x" in program  # Half of the batch each.
    y, (dx, dfactors) = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert (y.shape, dx.shape) == (dy.shape, x.shape)
    assert [d.shape for d in dfactors] == list(chain.shapes)
