"""Every implementation in the registry is held to the same tests."""

import functools

import flatbuffers  # noqa: F401  Without it jax.export serialises nothing.
import hypothesis
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from tests import reference, strategies

CHAINS = [
    bj.Chain.square_dyadic(16),
    bj.Chain.monarch(24, 60),
    bj.Chain([(2, 3, 5, 4)]),
    bj.Chain([(1, 8, 8, 3), (6, 4, 16, 1)]),  # Not chainable.
]
WIDE_BLOCKS = bj.Chain([(1, 17, 48, 1)])
HALF = bj.Chain.monarch(16, 64)
DTYPES = ["float16", "bfloat16", "float64", "complex64", "complex128"]

# Kernels for GPUs have tests of their own, in the interpreter.
every_implementation = pytest.mark.parametrize(
    "name", [n for n in bj.implementations.names() if not n.startswith("pallas")]
)
both_layouts = pytest.mark.parametrize("axis", [-1, 0])


def call(name, axis, **kwargs):
    """`butterfly` on (batch, features) in and out, whatever the layout inside."""

    def apply(x, factors):
        if axis == 0:
            x = jnp.swapaxes(x, -1, -2)
        y = bj.butterfly(x, factors, axis=axis, implementation=name, **kwargs)
        return y if axis == -1 else jnp.swapaxes(y, -1, -2)

    return apply


@every_implementation
@both_layouts
@pytest.mark.parametrize(
    ("chain", "dtype"),
    [(chain, "float32") for chain in (*CHAINS, WIDE_BLOCKS)]
    + [(HALF, dtype) for dtype in DTYPES],
    ids=lambda value: str(value),
)
def test_value_gradients_and_tangent(name, axis, chain, dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        x = reference.draw((7, chain.in_features), dtype, seed=1)
        factors = reference.draw_factors(chain, dtype, seed=2)
        dy = reference.draw((7, chain.out_features), dtype, seed=3)
        x_dot = reference.draw(x.shape, dtype, seed=4)
        factors_dot = reference.draw_factors(chain, dtype, seed=5)
        function = call(name, axis, precision="highest")

        @jax.jit
        def evaluate(x, factors):
            y, pull_back = jax.vjp(function, x, factors)
            _, y_dot = jax.jvp(function, (x, factors), (x_dot, factors_dot))
            return y, *pull_back(dy), y_dot

        y, dx, dfactors, y_dot = evaluate(x, factors)
    assert y.dtype == dx.dtype == y_dot.dtype == dtype
    bound = tolerance(dtype, len(chain))
    assert reference.relative_error(y, reference.apply(x, factors)) < bound
    expected_y_dot = reference.tangent(x, factors, x_dot, factors_dot)
    assert reference.relative_error(y_dot, expected_y_dot) < bound
    expected_dx, expected_dfactors = reference.gradients(x, factors, dy)
    assert reference.relative_error(dx, expected_dx) < bound
    for actual, expected in zip(dfactors, expected_dfactors, strict=True):
        assert actual.dtype == dtype
        assert reference.relative_error(actual, expected) < bound


@every_implementation
@hypothesis.settings(max_examples=6, deadline=None)
@hypothesis.given(chain=strategies.chains(max_factors=3))
def test_any_chain(name, chain):
    x = reference.draw((3, chain.in_features))
    factors = reference.draw_factors(chain, seed=1)
    expected = reference.apply(x, factors)
    for axis in (-1, 0):
        y = jax.jit(call(name, axis, precision="highest"))(x, factors)
        error = reference.relative_error(y, expected)
        assert error < tolerance("float32", len(chain))


@every_implementation
@both_layouts
def test_vmap(name, axis):
    xs = reference.draw((3, 5, HALF.in_features))
    stacks = [reference.draw_factors(HALF, seed=seed) for seed in (10, 20, 30)]
    stacked = jax.tree.map(lambda *one: jnp.stack(one), *stacks)
    function = call(name, axis, precision="highest")
    for in_axes in [(0, None), (None, 0), (0, 0)]:
        x = xs if in_axes[0] == 0 else xs[0]
        factors = stacked if in_axes[1] == 0 else stacks[0]
        y = jax.jit(jax.vmap(function, in_axes=in_axes))(x, factors)
        expected = [
            reference.apply(
                xs[i] if in_axes[0] == 0 else xs[0],
                stacks[i] if in_axes[1] == 0 else stacks[0],
            )
            for i in range(3)
        ]
        assert reference.relative_error(y, np.stack(expected)) < 2e-6


@every_implementation
@both_layouts
def test_second_derivatives(name, axis):
    chain = bj.Chain.square_dyadic(4)
    with jax.enable_x64(True):
        x = reference.draw((2, 4), "float64")
        factors = reference.draw_factors(chain, "float64")
        function = call(name, axis)

        def loss(x, factors):
            return (function(x, factors) ** 2).sum() / 2

        hessian = jax.jit(jax.jacfwd(jax.grad(loss)))(x, factors)
    w = reference.dense(factors)
    expected = np.einsum("mn,ij->minj", np.eye(2), w.T @ w)
    assert reference.relative_error(hessian, expected) < 1e-13


@every_implementation
def test_scan_remat_and_export(name):
    chain = bj.Chain.square_dyadic(8)
    x = reference.draw((5, 8))
    factors = reference.draw_factors(chain)

    @jax.jit
    def twice(x, factors):
        step = jax.checkpoint(call(name, -1, precision="highest"))
        y, _ = jax.lax.scan(lambda c, _: (step(c, factors), None), x, None, length=2)
        return y

    w = reference.dense(factors)
    expected = reference.wide(x) @ w.T @ w.T
    bound = 2 * tolerance("float32", len(chain))
    assert reference.relative_error(twice(x, factors), expected) < bound
    dx = jax.grad(lambda x: twice(x, factors).sum())(x)
    expected_dx = np.ones_like(expected) @ w @ w
    assert reference.relative_error(dx, expected_dx) < bound

    # JAX promises no compatibility for its sparse products across versions.
    sparse = jax.export.DisabledSafetyCheck.custom_call("cpu_csr_sparse_dense_ffi")
    unchecked = [sparse] if name == "bcsr" else []
    exported = jax.export.export(twice, disabled_checks=unchecked)(x, factors)
    loaded = jax.export.deserialize(exported.serialize())
    y = loaded.call(x, factors)
    assert reference.relative_error(y, expected) < bound


@every_implementation
@both_layouts
def test_empty_batch(name, axis):
    x = jnp.zeros((0, HALF.in_features))
    factors = reference.draw_factors(HALF)
    function = call(name, axis)
    assert function(x, factors).shape == (0, HALF.out_features)
    gradients = jax.grad(lambda f: function(x, f).sum())(factors)
    for gradient, factor in zip(gradients, factors, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(factor))


@every_implementation
@both_layouts
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
def test_bias_and_activation(name, axis, activation):
    x = reference.draw((5, HALF.in_features))
    factors = reference.draw_factors(HALF)
    bias = reference.draw((HALF.out_features,), seed=7)
    function = call(name, axis, bias=bias, activation=activation, precision="highest")
    y = jax.jit(function)(x, factors)
    sums = reference.apply(x, factors) + reference.wide(bias)
    expected = reference.activate(sums, activation)
    assert reference.relative_error(y, expected) < tolerance("float32", len(HALF))


@every_implementation
@both_layouts
def test_16_bit_sums_accumulate_in_float32(name, axis):
    # A sum of 64 · 1/64 after 256: bfloat16 sums would stick at 256.
    factor = jnp.ones((1, 1, 64, 1), "bfloat16")
    x = jnp.full((1, 64), 1.0, "bfloat16").at[0, 0].set(256.0)
    y = call(name, axis)(x, (factor,))
    assert float(y.item()) == float(jnp.asarray(256 + 63, "bfloat16"))
    y = call(name, axis, preferred_element_type="float32")(x, (factor,))
    assert y.dtype == "float32"
    assert y.item() == 256 + 63


@every_implementation
def test_nan_input_reaches_the_outputs_it_touches(name):
    chain = bj.Chain([(2, 2, 2, 1)])
    x = jnp.ones((1, 4)).at[0, 0].set(jnp.nan)
    y = bj.butterfly(x, reference.draw_factors(chain), implementation=name)
    touched = {"dense": [True] * 4}.get(name, [True, True, False, False])
    np.testing.assert_array_equal(np.isnan(np.asarray(y[0])), touched)


def test_elementwise_refuses_wide_blocks():
    factors = reference.draw_factors(bj.Chain([(1, 2, 65, 1)]))
    with pytest.raises(NotImplementedError, match="at most 64, got c = 65"):
        bj.butterfly(np.ones((1, 65)), factors, implementation="elementwise")


def test_registered_function_is_selectable(monkeypatch):
    registry = bj.implementations.registry
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @bj.implementations.register("vmap")
    def vmap(x, factors, *, axis, precision, preferred_element_type):
        assert axis == -1
        for w in reversed(factors):
            a, b, c, d = w.shape
            block = functools.partial(jnp.einsum, "l,jl->j", precision=precision)
            over_d = jax.vmap(block, in_axes=(1, 2), out_axes=1)
            over_blocks = jax.vmap(over_d)
            over_batch = jax.vmap(over_blocks, in_axes=(0, None))
            x = over_batch(x.reshape(-1, a, c, d), w).reshape(-1, a * b * d)
        return x.astype(preferred_element_type)

    x = reference.draw((3, 24))
    factors = reference.draw_factors(CHAINS[1])
    y = bj.butterfly(x, factors, implementation="vmap")
    assert reference.relative_error(y, reference.apply(x, factors)) < 2e-6
    with pytest.raises(ValueError, match="an implementation named 'vmap' exists"):
        bj.implementations.register("vmap")(vmap)
