"""Batches and features over a mesh of eight devices, beside what `nn.Dense` does."""

import collections
import functools
import itertools
import math
import re

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import butterjax as bj
from tests import flax_cases, reference
from tests.covering import covering

CHAIN = bj.Chain.monarch(64, 64)
FACTORS = reference.draw_factors(CHAIN, seed=1)
BIAS = reference.draw((64,), seed=3)
X = reference.draw((8, 4, 64))
DY = reference.draw(X.shape, seed=4)
XLA = [name for name in bj.implementations.names() if not name.startswith("pallas")]

# Of x and of the result, features last.
SPECS = {
    "batch": (("data", "model", None), ("data", "model", None)),
    "features": (("data", None, "model"), ("data", None, None)),
}
explicit_and_auto = pytest.mark.parametrize(
    "kind", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"]
)


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))


def placed(array, mesh, spec):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


def moved(spec, axis):
    """The entries for features along `axis`, of those for features last."""
    *batch, features = spec
    batch.insert(axis % len(spec), features)
    return tuple(batch)


def traffic(compiled):
    """Bytes that each kind of collective moves: an all-reduce gathers and scatters."""
    found = collections.Counter()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    for result, kind in re.findall(
        rf"= (.+?) ({kinds})(?:-start)?\(", compiled.as_text()
    ):
        for sizes in re.findall(r"f32\[([\d,]*)\]", result):
            size = math.prod(int(size) for size in sizes.split(",") if size)
            found[kind] += 4 * size * (2 if kind == "all-reduce" else 1)
    return found


def step(function):
    """y and all gradients."""

    def apply(x, weights, dy):
        y, pull_back = jax.vjp(function, x, weights)
        return y, pull_back(dy)

    return apply


@functools.cache
def dense_traffic(kind, sharded):
    mesh, (x_spec, y_spec) = mesh_of(kind), SPECS[sharded]

    def dense(x, weights):
        kernel, bias = weights
        return nn.Dense(64).apply({"params": {"kernel": kernel, "bias": bias}}, x)

    weights = np.ones((64, 64), "float32"), BIAS
    x, dy = placed(X, mesh, x_spec), placed(DY, mesh, y_spec)
    with jax.set_mesh(mesh):
        compiled = jax.jit(step(dense)).lower(x, weights, dy).compile()
        y, _ = compiled(x, weights, dy)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*y_spec)), 3)
    return traffic(compiled)


@functools.cache
def expected():
    y = reference.apply(X, FACTORS) + reference.wide(BIAS)
    rows = X.reshape(-1, 64), FACTORS, DY.reshape(-1, 64)
    dx, dfactors = reference.gradients(*rows)
    return y, (dx.reshape(X.shape), (dfactors, DY.sum((0, 1), float)))


@pytest.mark.parametrize(
    ("case", "axis"),
    covering(
        [*itertools.product(XLA, SPECS, [AxisType.Explicit, AxisType.Auto])],
        [-1, 0, 1],
    ),
    ids=str,
)
def test_batch_axes_stay_where_they_are(case, axis):
    name, sharded, kind = case
    mesh = mesh_of(kind)
    x_spec, y_spec = (moved(spec, axis) for spec in SPECS[sharded])

    def apply(x, weights):
        factors, bias = weights
        return bj.butterfly(
            x, factors, bias=bias, axis=axis, implementation=name, precision="highest"
        )

    x = placed(np.moveaxis(X, -1, axis), mesh, x_spec)
    dy = placed(np.moveaxis(DY, -1, axis), mesh, y_spec)
    with jax.set_mesh(mesh):
        compiled = jax.jit(step(apply)).lower(x, (FACTORS, BIAS), dy).compile()
        y, (dx, dweights) = compiled(x, (FACTORS, BIAS), dy)
    actual = np.moveaxis(y, axis, -1), (np.moveaxis(dx, axis, -1), dweights)
    for one, other in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected()), strict=True
    ):
        assert reference.relative_error(one, other) < 3e-6
    if name == "bcsr" and kind == AxisType.Auto:
        return  # XLA cannot share out JAX's sparse products.
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*y_spec)), 3)
    found, allowed = traffic(compiled), dense_traffic(kind, sharded)
    if sharded == "batch":
        assert found.keys() == allowed.keys() == {"all-reduce"}  # Of the weights alone.
    # Features are gathered where Dense reduces; `elementwise` takes slices of them.
    assert found.total() <= 1.25 * allowed.total()


@pytest.mark.parametrize("name", XLA)
def test_explicitly_sharded_weights_are_brought_together(name):
    mesh = mesh_of(AxisType.Explicit)
    last, first = FACTORS
    factors = (
        placed(last, mesh, (None, None, "model", "data")),
        placed(first, mesh, (("data", "model"), None, None, None)),
    )
    x, bias = placed(X, mesh, ("data", None, None)), placed(BIAS, mesh, ("model",))

    def loss(factors, bias):
        y = bj.butterfly(
            x, factors, bias=bias, implementation=name, precision="highest"
        )
        return (y * DY).sum()

    with jax.set_mesh(mesh):
        gradients = jax.jit(jax.grad(loss, (0, 1)))(factors, bias)
    _, (_, (dfactors, dbias)) = expected()
    for one, other, array in zip(
        jax.tree.leaves(gradients), (*dfactors, dbias), (*factors, bias), strict=True
    ):
        assert reference.relative_error(one, other) < 3e-6
        assert one.sharding == array.sharding


@explicit_and_auto
@pytest.mark.parametrize("sharded", SPECS)
def test_padded_layers_shard_as_dense_ones(sharded, kind):
    mesh = mesh_of(kind)
    x = placed(reference.draw((8, 4, 62)), mesh, SPECS[sharded][0])
    results = [jax.jit(layer)(x) for layer in flax_cases.layers(62, 62)]
    for one, other in zip(results[::2], results[1::2], strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, 3)
        if sharded == "batch":
            assert (one + x).sharding.is_equivalent_to(x.sharding, 3)


def test_out_sharding_is_that_of_linear():
    mesh = mesh_of(AxisType.Explicit)
    *_, butterfly, linear = flax_cases.layers(62, 62)
    for spec in (PartitionSpec("data", None, "model"), PartitionSpec(None, "model")):
        x = placed(reference.draw((8, 4, 62)), mesh, ("data", None, None))
        with jax.set_mesh(mesh):
            for sharding in (spec, NamedSharding(mesh, spec)):
                y = butterfly(x, out_sharding=sharding)
                np.testing.assert_allclose(y, butterfly(x), atol=1e-6)
                assert y.sharding == linear(x, out_sharding=sharding).sharding
    mesh = mesh_of(AxisType.Auto)
    for layer in (butterfly, linear):
        with jax.set_mesh(mesh), pytest.raises(ValueError, match="Auto"):
            layer(X[..., :62], out_sharding=PartitionSpec("data"))
