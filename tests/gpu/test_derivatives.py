"""Derivatives of kernels, with a stand-in for a kernel that runs anywhere.

The truth is a dense matrix in float64, differentiated by JAX.
"""

import functools

import flatbuffers  # noqa: F401  Without it jax.export serialises nothing.
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import AxisType, PartitionSpec

import butterjax as bj
from butterjax.gpu.derivatives import (
    formula,
    with_derivatives,
    xla_gradients,
)
from tests import reference
from tests.covering import covering

CHAIN = bj.Chain([(1, 3, 2, 4), (2, 4, 3, 1)])
X = reference.draw((5, CHAIN.in_features))
FACTORS = reference.draw_factors(CHAIN, seed=1)
BIAS = reference.draw((CHAIN.out_features,), seed=3)


# Stands for a kernel, which JAX cannot differentiate: x itself.
opaque_p = Primitive("opaque")
opaque_p.def_impl(lambda x: x)
opaque_p.def_abstract_eval(lambda x: x)
batching.defvectorized(opaque_p)
mlir.register_lowering(opaque_p, lambda ctx, x: [x])
opaque = opaque_p.bind


def make_fake():
    """An implementation, and what was wanted each time its backward pass was traced."""
    wanted_then = []

    def backward(operands, dy, *, wanted, **options):
        wanted_then.append(wanted)
        return jax.tree.map(opaque, xla_gradients(options, wanted, operands, dy))

    @with_derivatives(backward)
    def kernel(x, factors, *, bias, **options):
        return opaque(formula(x, factors, bias=bias, **options))

    return kernel, wanted_then


@pytest.fixture
def fake():
    return make_fake()


def apply_by(kernel):
    def apply(x, factors, bias):
        return kernel(
            x,
            factors,
            bias=bias,
            axis=-1,
            precision="highest",
            preferred_element_type=x.dtype,
            activation="silu",
        )

    return apply


@functools.cache
def basis(shape):
    """The matrix of a factor as a linear map: (rows, columns, *shape)."""
    size = int(np.prod(shape))
    units = np.eye(size).reshape(size, *shape)
    return np.stack([reference.matrix(unit) for unit in units], -1).reshape(
        *reference.matrix(units[0]).shape, *shape
    )


def truth(x, factors, bias):
    for factor in reversed(factors):
        x = x @ jnp.tensordot(basis(factor.shape), factor, 4).T
    return jax.nn.silu(x + bias)


def loss_by(apply):
    return lambda x, factors, bias: (apply(x, factors, bias) ** 2).sum()


def gradient(loss):
    return jax.grad(loss, (0, 1, 2))


def tangent(loss):
    return lambda *at: jax.jvp(loss, at, at)[1]


def square(function):
    return lambda *at: sum((leaf**2).sum() for leaf in jax.tree.leaves(function(*at)))


OF_A_LOSS = {
    "gradient": gradient,
    "tangent": tangent,
    "gradient of gradient": lambda loss: gradient(square(gradient(loss))),
    "gradient of tangent": lambda loss: gradient(tangent(loss)),
    "tangent of gradient": lambda loss: tangent(square(gradient(loss))),
    "tangent of tangent": lambda loss: tangent(tangent(loss)),
}


def check(transform, kernel, *at):
    """Compares what a transformation of the loss gives with float64."""
    actual = transform(apply_by(kernel))(*at)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), at)
        expected = jax.jit(transform(truth))(*wide)
    for one, other in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
    ):
        assert one.dtype == jnp.float32
        assert reference.relative_error(one, other) < 2e-5


@pytest.mark.parametrize(("name", "compile_it"), covering([*OF_A_LOSS], [True, False]))
def test_derivatives(fake, name, compile_it):
    kernel, backwards = fake

    def transform(apply):
        made = OF_A_LOSS[name](loss_by(apply))
        return jax.jit(made) if compile_it else made

    check(transform, kernel, X, FACTORS, BIAS)
    assert bool(backwards) == ("gradient" in name)


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        (0, (True, (False, False), False)),
        (1, (False, (True, True), False)),
        (2, (False, (False, False), True)),
    ],
)
def test_only_what_is_wanted(fake, argument, wanted):
    kernel, backwards = fake
    check(lambda apply: jax.grad(loss_by(apply), argument), kernel, X, FACTORS, BIAS)
    assert backwards == [wanted]


@pytest.mark.parametrize("batched", [(0,), (1,), (2,), (0, 1, 2)])
def test_vmap(fake, batched):
    kernel, backwards = fake
    axes = tuple(0 if argument in batched else None for argument in range(3))
    at = [
        operand if axis is None else jax.tree.map(lambda o: np.stack([o, -o]), operand)
        for operand, axis in zip((X, FACTORS, BIAS), axes, strict=True)
    ]

    def total(apply):
        mapped = jax.vmap(apply, in_axes=axes)
        return lambda *at: (mapped(*at) ** 2).sum()

    check(lambda apply: gradient(total(apply)), kernel, *at)
    check(lambda apply: tangent(total(apply)), kernel, *at)
    check(lambda apply: jax.vmap(gradient(loss_by(apply)), in_axes=axes), kernel, *at)
    assert len(backwards) == 2


def test_examples_become_one_batch():
    batches = []

    def kernel(x, factors, *, bias, **options):
        batches.append(x.shape)
        return opaque(formula(x, factors, bias=bias, **options))

    def backward(operands, dy, *, wanted, **options):
        batches.append((operands[0].shape, dy.shape))
        return jax.tree.map(opaque, xla_gradients(options, wanted, operands, dy))

    made = with_derivatives(backward)(kernel)
    n_in, n_out = CHAIN.in_features, CHAIN.out_features

    def total(apply):
        one_by_one = jax.vmap(jax.vmap(apply, (1, None, None)), (0, None, None))
        return lambda *at: (one_by_one(*at) ** 2).sum()

    x = reference.draw((2, 3, 4, n_in)).swapaxes(1, 2)  # The middle one is mapped.
    check(lambda apply: gradient(total(apply)), made, x, FACTORS, BIAS)
    assert batches[-2:] == [(2 * 4 * 3, n_in), ((2 * 4 * 3, n_in), (2 * 4 * 3, n_out))]
    check(lambda apply: tangent(total(apply)), made, x, FACTORS, BIAS)
    assert batches[-1] == (2 * 4 * 3, n_in)


def test_scan_and_remat(fake):
    kernel, _ = fake
    chain = bj.Chain.square_dyadic(8)
    x, bias = reference.draw((5, 8)), reference.draw((8,), seed=9)

    def total(apply):
        step = jax.checkpoint(apply)

        def loss(x, factors, bias):
            y, _ = jax.lax.scan(
                lambda y, _: (step(y, factors, bias), None), x, length=3
            )
            return (y**2).sum()

        return loss

    at = x, reference.draw_factors(chain, seed=1), bias
    for make in (gradient, tangent, OF_A_LOSS["tangent of gradient"]):
        check(lambda apply, make=make: jax.jit(make(total(apply))), kernel, *at)


def test_jacobians(fake):
    kernel, _ = fake
    for jacobian in (jax.jacfwd, jax.jacrev):
        check(
            lambda apply, jacobian=jacobian: jacobian(apply, (0, 1)),
            kernel,
            X,
            FACTORS,
            BIAS,
        )


@pytest.mark.parametrize("name", ["gradient", "tangent", "tangent of gradient"])
def test_shard_map(fake, name):
    kernel, _ = fake
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    batch, whole = PartitionSpec("data"), PartitionSpec()

    def transform(apply):
        if apply is not truth:
            apply = jax.shard_map(
                apply, mesh=mesh, in_specs=(batch, whole, whole), out_specs=batch
            )
        return jax.jit(OF_A_LOSS[name](loss_by(apply)))

    check(transform, kernel, np.concatenate([X, -X]), FACTORS, BIAS)


def test_gradients_inside_shard_map(fake):
    kernel, _ = fake
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    batch, whole = PartitionSpec("data"), PartitionSpec()

    def transform(apply):
        of_factors = jax.grad(loss_by(apply), 1)
        if apply is truth:
            return of_factors
        return jax.shard_map(
            of_factors, mesh=mesh, in_specs=(batch, whole, whole), out_specs=whole
        )

    check(transform, kernel, np.concatenate([X, -X]), FACTORS, BIAS)


@pytest.mark.parametrize("name", ["gradient", "tangent"])
def test_export(fake, name):
    kernel, _ = fake

    def transform(apply):
        made = jax.jit(OF_A_LOSS[name](loss_by(apply)))
        if apply is truth:
            return made
        exported = jax.export.export(made)(X, FACTORS, BIAS)
        return jax.export.deserialize(exported.serialize()).call

    check(transform, kernel, X, FACTORS, BIAS)


def test_no_bias_and_gradients_of_the_dtype_of_each_operand(fake):
    kernel, _ = fake
    x, *factors = (jnp.asarray(leaf, "bfloat16") for leaf in (X, *FACTORS))

    def total(x, factors, bias):
        y = kernel(
            x,
            factors,
            bias=bias,
            axis=-1,
            precision=None,
            preferred_element_type="float32",
            activation=None,
        )
        return y.sum()

    for bias in (None, jnp.asarray(BIAS)):
        gradients = gradient(total)(x, tuple(factors), bias)
        wanted = jax.tree.map(lambda leaf: leaf.dtype, (x, tuple(factors), bias))
        assert jax.tree.map(lambda leaf: leaf.dtype, gradients) == wanted
