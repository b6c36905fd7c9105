"""The GPU kernels over a mesh of devices, lowered for GPUs that are not there."""

import functools

import jax
import jax.export
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

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


@pytest.mark.parametrize(
    ("name", "kind", "axis", "mine"),
    [
        ("pallas", AxisType.Explicit, -1, "256x256"),
        ("pallas", AxisType.Explicit, 0, "256x16x16"),
        ("pallas", AxisType.Explicit, 1, "256x16x16"),
        ("pallas", AxisType.Manual, -1, "256x256"),
        ("pallas", AxisType.Manual, 1, "16x256x16"),
        ("pallas_chain", AxisType.Explicit, -1, "256x256"),
    ],
    ids=str,
)
def test_each_device_launches_for_its_part_of_two_batch_axes(name, kind, axis, mine):
    chain = bj.Chain.monarch(256, 256)
    spec = ["data", "model"]
    spec.insert(axis % 3, None)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    shape = [64, 32]
    shape.insert(axis % 3, 256)

    def apply(x, factors):
        return bj.butterfly(x, factors, axis=axis, implementation=name)

    if kind == AxisType.Manual:
        batch, whole = PartitionSpec(*spec), PartitionSpec()
        apply = jax.shard_map(
            apply, mesh=mesh, in_specs=(batch, whole), out_specs=batch
        )

    def loss(x, factors):
        return apply(x, factors).astype("float32").sum()

    x, *factors = (
        jax.ShapeDtypeStruct(
            shape, "bfloat16", sharding=NamedSharding(mesh, PartitionSpec(*spec))
        )
        for shape, spec in [(shape, spec), *((shape, ()) for shape in chain.shapes)]
    )
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, tuple(factors))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    dx, _ = traced.out_info
    assert dx.sharding.spec == PartitionSpec(*spec)
    assert "mosaic_gpu" in program
    assert f"tensor<{mine}xbf16>" in program
