"""Every implementation in the registry is held to the same tests."""

import functools
import itertools

import flatbuffers  # noqa: F401  Without it jax.export serialises nothing.
import hypothesis
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import butterjax as bj
from butterjax.numerics import tolerance
from tests import gpu_interpreter, reference, strategies
from tests.covering import covering

CHAINS = [
    bj.Chain.square_dyadic(16),
    bj.Chain.monarch(24, 60),
    bj.Chain([(2, 3, 5, 4)]),
    bj.Chain([(1, 8, 8, 3), (6, 4, 16, 1)]),  # Not chainable.
]
WIDE_BLOCKS = bj.Chain([(1, 17, 48, 1)])
HALF = bj.Chain.monarch(16, 64)
DTYPES = ["float16", "bfloat16", "float64", "complex64", "complex128"]

# Kernels for GPUs run in the interpreter, each call on its own: several in one program
# wait for one another's threads where there are few.
KERNELS = [name for name in bj.implementations.names() if name.startswith("pallas")]
XLA = [name for name in bj.implementations.names() if name not in KERNELS]
KERNEL_DTYPES = ["float32", "bfloat16", "float16"]

NAMES = [*XLA, *KERNELS]
LAYOUTS = [-1, 0]

every_implementation = pytest.mark.parametrize("name", NAMES)
both_layouts = pytest.mark.parametrize("axis", LAYOUTS)
every_one_in_some_layout = pytest.mark.parametrize(
    ("name", "axis"), covering(NAMES, LAYOUTS)
)


@pytest.fixture(autouse=True)
def interpreter(request):
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or parameters.params.get("name") not in KERNELS:
        yield
        return
    with gpu_interpreter.interpreter():
        yield


def compiled(name, function):
    """The function under jit, unless it might start several kernels."""
    return function if name in KERNELS else jax.jit(function)


def call(name, axis, **kwargs):
    """`butterfly` on (batch, features) in and out, whatever the layout inside."""

    def apply(x, factors):
        if axis == 0:
            x = jnp.swapaxes(x, -1, -2)
        y = bj.butterfly(x, factors, axis=axis, implementation=name, **kwargs)
        return y if axis == -1 else jnp.swapaxes(y, -1, -2)

    return apply


def in_some_layout(cases):
    """The cases in both layouts, one of which is exhaustive."""
    return [
        pytest.param(*one.values[0], one.values[1], marks=one.marks)
        for one in covering([*cases], LAYOUTS)
    ]


def cases():
    for name in XLA:
        for chain in (*CHAINS, WIDE_BLOCKS):
            yield name, chain, "float32"
        for dtype in DTYPES:
            yield name, HALF, dtype
    for name in KERNELS:
        # The others are in the tests of each kernel: the interpreter takes its time.
        yield name, HALF, "bfloat16"
        yield name, CHAINS[3], "float32"


def more_of_kernels():
    for one in itertools.product(KERNELS, [HALF], ["float16", "float32"], LAYOUTS):
        yield pytest.param(*one, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("name", "chain", "dtype", "axis"),
    [*in_some_layout(cases()), *more_of_kernels()],
    ids=str,
)
def test_value_gradients_and_tangent(name, axis, chain, dtype):
    batch = 8 if name in KERNELS else 7  # Rows of 16 bytes, features first.
    with jax.enable_x64(dtype in ("float64", "complex128")):
        x = reference.draw((batch, chain.in_features), dtype, seed=1)
        factors = reference.draw_factors(chain, dtype, seed=2)
        dy = reference.draw((batch, chain.out_features), dtype, seed=3)
        x_dot = reference.draw(x.shape, dtype, seed=4)
        factors_dot = reference.draw_factors(chain, dtype, seed=5)
        function = call(name, axis, precision="highest")

        def evaluate(x, factors):
            y, pull_back = jax.vjp(function, x, factors)
            _, y_dot = jax.jvp(function, (x, factors), (x_dot, factors_dot))
            return y, *pull_back(dy), y_dot

        y, dx, dfactors, y_dot = compiled(name, evaluate)(x, factors)
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


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d not in KERNEL_DTYPES])
def test_kernels_refuse_other_dtypes(name, dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        x = reference.draw((8, HALF.in_features), dtype)
        factors = reference.draw_factors(HALF, dtype)
        function = call(name, -1)
        with pytest.raises(NotImplementedError, match=f"got {dtype}"):
            function(x, factors)
        with pytest.raises(NotImplementedError, match=f"got {dtype}"):
            jax.vjp(function, x, factors)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("axis", "batch", "chain"),
    [(0, 7, HALF), (-1, 8, CHAINS[1]), (-1, 8, WIDE_BLOCKS)],
    ids=str,
)
def test_kernels_refuse_rows_that_are_no_multiple_of_16_bytes(name, axis, batch, chain):
    x = reference.draw((batch, chain.in_features))
    with pytest.raises(NotImplementedError, match="16 bytes"):
        call(name, axis)(x, reference.draw_factors(chain))


# Kernels refuse most of these, which are small; their own tests have patterns for them.
@pytest.mark.parametrize("name", XLA)
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


@pytest.mark.parametrize(
    ("name", "in_axes", "axis"),
    [
        *in_some_layout(itertools.product(XLA, [(0, None), (None, 0), (0, 0)])),
        ("pallas", (0, 0), -1),
        ("pallas", (0, None), 0),
        ("pallas_chain", (0, None), -1),
        ("pallas_chain", (None, 0), 0),
    ],
    ids=str,
)
def test_vmap(name, axis, in_axes):
    xs = reference.draw((3, 8, HALF.in_features))
    stacks = [reference.draw_factors(HALF, seed=seed) for seed in (10, 20, 30)]
    dys = reference.draw((3, 8, HALF.out_features), seed=2)
    x = xs if in_axes[0] == 0 else xs[0]
    stacked = jax.tree.map(lambda *one: jnp.stack(one), *stacks)
    factors = stacked if in_axes[1] == 0 else stacks[0]

    # JAX raises TypeError for those of its own sparse products.
    has_gradients = (name, in_axes) != ("bcsr", (None, 0))

    def evaluate(x, factors):
        mapped = jax.vmap(call(name, axis, precision="highest"), in_axes=in_axes)
        if not has_gradients:
            return mapped(x, factors), None, None
        y, pull_back = jax.vjp(mapped, x, factors)
        return y, *pull_back(dys)

    y, dx, dfactors = compiled(name, evaluate)(x, factors)
    each = [
        (x[i] if in_axes[0] == 0 else x, stacks[i if in_axes[1] == 0 else 0], dys[i])
        for i in range(3)
    ]
    expected = np.stack([reference.apply(x, factors) for x, factors, _ in each])
    assert reference.relative_error(y, expected) < 2e-6
    if not has_gradients:
        return
    all_dx, all_dfactors = zip(
        *(reference.gradients(*one) for one in each), strict=True
    )
    expected_dx = np.stack(all_dx) if in_axes[0] == 0 else np.sum(all_dx, 0)
    assert reference.relative_error(dx, expected_dx) < 2e-6
    for actual, *wanted in zip(dfactors, *all_dfactors, strict=True):
        expected = np.stack(wanted) if in_axes[1] == 0 else np.sum(wanted, 0)
        assert reference.relative_error(actual, expected) < 2e-6


@every_one_in_some_layout
def test_second_derivatives(name, axis):
    kernel = name in KERNELS
    chain = HALF if kernel else bj.Chain.square_dyadic(4)
    dtype = "float32" if kernel else "float64"
    with jax.enable_x64(not kernel):
        x = reference.draw((4, chain.in_features), dtype)
        factors = reference.draw_factors(chain, dtype)
        function = call(name, axis, precision="highest")

        def loss(x, factors):
            return (function(x, factors) ** 2).sum() / 2

        hessian = compiled(name, jax.jacfwd(jax.grad(loss)))(x, factors)
    w = reference.dense(factors)
    expected = np.einsum("mn,ij->minj", np.eye(4), w.T @ w)
    bound = 2 * tolerance(dtype, len(chain))
    assert reference.relative_error(hessian, expected) < bound


@every_implementation
def test_scan_and_remat(name):
    chain = bj.Chain.square_dyadic(8)
    x = reference.draw((5, 8))
    factors = reference.draw_factors(chain)
    w = reference.dense(factors)
    expected = reference.wide(x) @ w.T @ w.T
    bound = 2 * tolerance("float32", len(chain))
    function = twice(name)
    assert reference.relative_error(function(x, factors), expected) < bound
    if name in KERNELS:  # JAX has no gradient of remat in the interpreter.
        function = twice(name, remat=False)
    dx = jax.grad(lambda x: function(x, factors).sum())(x)
    expected_dx = np.ones_like(expected) @ w @ w
    assert reference.relative_error(dx, expected_dx) < bound


def twice(name, *, remat=True):
    """A layer and the same again."""

    @jax.jit
    def apply(x, factors):
        step = call(name, -1, precision="highest")
        if remat:
            step = jax.checkpoint(step)
        y, _ = jax.lax.scan(lambda c, _: (step(c, factors), None), x, None, length=2)
        return y

    return apply


@pytest.mark.parametrize("name", XLA)
def test_export(name):
    chain = bj.Chain.square_dyadic(8)
    x = reference.draw((5, 8))
    factors = reference.draw_factors(chain)
    # JAX promises no compatibility for its sparse products across versions.
    sparse = jax.export.DisabledSafetyCheck.custom_call("cpu_csr_sparse_dense_ffi")
    unchecked = [sparse] if name == "bcsr" else []
    exported = jax.export.export(twice(name), disabled_checks=unchecked)(x, factors)
    loaded = jax.export.deserialize(exported.serialize())
    y = loaded.call(x, factors)
    w = reference.dense(factors)
    expected = reference.wide(x) @ w.T @ w.T
    bound = 2 * tolerance("float32", len(chain))
    assert reference.relative_error(y, expected) < bound


SYMBOLIC = bj.Chain.square_dyadic(64)  # Of blocks for which the batch matters.


def symbolic_batch(axis):
    """x of two batch axes whose sizes nobody knows."""
    shape = [*jax.export.symbolic_shape("rows, columns")]
    shape.insert(axis % 3, SYMBOLIC.in_features)
    return jax.ShapeDtypeStruct(shape, "float32")


@pytest.mark.parametrize(("name", "axis"), covering([*XLA, None], [-1, 0, 1]))
def test_export_for_any_batch(name, axis):
    factors = reference.draw_factors(SYMBOLIC)
    bias = reference.draw((64,), seed=7)

    @jax.jit
    def step(x):
        def loss(x):
            y = bj.butterfly(
                x,
                factors,
                bias=bias,
                axis=axis,
                implementation=name,
                precision="highest",
            )
            return (y**2).sum() / 2, y

        return jax.grad(loss, has_aux=True)(x)

    sparse = jax.export.DisabledSafetyCheck.custom_call("cpu_csr_sparse_dense_ffi")
    exported = jax.export.export(step, disabled_checks=[sparse])(symbolic_batch(axis))
    x = reference.draw((15, 64), seed=8)
    dx, y = exported.call(np.moveaxis(x.reshape(3, 5, 64), -1, axis))
    expected = reference.apply(x, factors) + reference.wide(bias)
    expected_dx, _ = reference.gradients(x, factors, expected)
    bound = 2 * tolerance("float32", len(SYMBOLIC))
    for actual, truth in [(y, expected), (dx, expected_dx)]:
        actual = np.moveaxis(actual, axis, -1).reshape(15, 64)
        assert reference.relative_error(actual, truth) < bound


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_export_for_any_batch_and_a_gpu(axis):
    factors = reference.draw_factors(SYMBOLIC)

    def exported(name):
        step = functools.partial(bj.butterfly, axis=axis, implementation=name)
        export = jax.export.export(jax.jit(step), platforms=["cuda"])
        return export(symbolic_batch(axis), factors)

    assert "rows" in str(exported(None).out_avals)
    for kernel in KERNELS:
        message = f"'{kernel}' is a kernel.*every size as a number, but x has .*rows"
        with pytest.raises(NotImplementedError, match=message):
            exported(kernel)


@pytest.mark.parametrize("kernel", KERNELS)  # Not in the interpreter.
def test_export_for_a_gpu_with_gradients(kernel):
    x = reference.draw((5, 8))
    factors = reference.draw_factors(bj.Chain.square_dyadic(8))

    @jax.jit
    def step(x, factors):
        return jax.grad(lambda *at: twice(kernel)(*at).sum(), (0, 1))(x, factors)

    exported = jax.export.export(step, platforms=["cuda"])(x, factors)
    loaded = jax.export.deserialize(exported.serialize())
    assert "mosaic_gpu" in loaded.mlir_module()
    assert [aval.shape for aval in loaded.out_avals] == [
        array.shape for array in (x, *factors)
    ]


@pytest.mark.parametrize(
    ("implementation", "chain", "axis"),  # Not in the interpreter.
    in_some_layout(itertools.product(NAMES, [HALF, bj.Chain([(1, 32, 32, 4)])])),
    ids=str,
)
def test_precision_is_that_of_gradients_too(implementation, chain, axis):
    x = jax.ShapeDtypeStruct((64, chain.in_features), "float32")
    factors = [jax.ShapeDtypeStruct(shape, "float32") for shape in chain.shapes]
    function = call(implementation, axis, precision="highest", activation="silu")

    def step(x, factors):
        y, pull_back = jax.vjp(function, x, factors)
        return y, pull_back(y)

    lowered = jax.jit(step).trace(x, factors).lower(lowering_platforms=("cuda",))
    lines = lowered.as_text().splitlines()
    # Where nothing is summed, XLA multiplies entry by entry.
    outer = "contracting_dims = [] x []"
    products = [line for line in lines if "dot_general" in line and outer not in line]
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products
    assert products or implementation in ("bcsr", "elementwise")


@every_one_in_some_layout
def test_empty_batch(name, axis):
    x = jnp.zeros((0, HALF.in_features))
    factors = reference.draw_factors(HALF)
    function = call(name, axis)
    assert function(x, factors).shape == (0, HALF.out_features)
    gradients = jax.grad(lambda f: function(x, f).sum())(factors)
    for gradient, factor in zip(gradients, factors, strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(factor))


ACTIVATIONS = [None, "relu", "gelu", "silu"]


@pytest.mark.parametrize(
    ("name", "activation", "axis"),
    in_some_layout(
        [
            *itertools.product(XLA, ACTIVATIONS),
            *zip(itertools.cycle(KERNELS), ["relu", "gelu", "silu"], strict=False),
        ]
    ),
)
def test_bias_and_activation(name, axis, activation):
    x = reference.draw((8, HALF.in_features))
    factors = reference.draw_factors(HALF)
    bias = reference.draw((HALF.out_features,), seed=7)
    dy = reference.draw((8, HALF.out_features), seed=8)

    def evaluate(x, factors, bias):
        function = functools.partial(
            call_with_bias, name, axis, activation=activation, precision="highest"
        )
        y, pull_back = jax.vjp(function, x, factors, bias)
        return y, *pull_back(dy)

    y, dx, dfactors, dbias = compiled(name, evaluate)(x, factors, bias)
    bound = tolerance("float32", len(HALF))
    sums = reference.apply(x, factors) + reference.wide(bias)
    assert reference.relative_error(y, reference.activate(sums, activation)) < bound
    dsums = reference.wide(dy) * reference.slope(sums, activation)
    expected_dx, expected_dfactors = reference.gradients(x, factors, dsums)
    assert reference.relative_error(dx, expected_dx) < bound
    assert reference.relative_error(dbias, dsums.sum(0)) < bound
    for actual, expected in zip(dfactors, expected_dfactors, strict=True):
        assert reference.relative_error(actual, expected) < bound


@pytest.mark.parametrize("name", XLA)
@both_layouts
def test_no_ranks_are_promoted(name, axis):
    factors = reference.draw_factors(HALF)
    bias = reference.draw((HALF.out_features,), seed=7)
    x = reference.draw((2, 3, HALF.in_features))
    x = np.moveaxis(x, -1, axis)

    def loss(*at):
        x, factors, bias = at
        y = bj.butterfly(
            x, factors, bias=bias, axis=axis, activation="gelu", implementation=name
        )
        return y.sum(), y

    with jax.numpy_rank_promotion("raise"):
        _, y = jax.grad(loss, (0, 1, 2), has_aux=True)(x, factors, bias)
    rows = np.moveaxis(x, axis, -1).reshape(6, -1)
    sums = reference.apply(rows, factors) + reference.wide(bias)
    actual = np.moveaxis(y, axis, -1).reshape(6, -1)
    error = reference.relative_error(actual, reference.activate(sums, "gelu"))
    assert error < tolerance("float32", len(HALF), tf32=True)


def call_with_bias(name, axis, x, factors, bias, **kwargs):
    return call(name, axis, bias=bias, **kwargs)(x, factors)


@every_one_in_some_layout
def test_16_bit_sums_accumulate_in_float32(name, axis):
    # A sum of 64 · 1/64 after 256: bfloat16 sums would stick at 256.
    factor = jnp.ones((1, 8, 64, 1), "bfloat16")
    x = jnp.full((8, 64), 1.0, "bfloat16").at[:, 0].set(256.0)
    y = call(name, axis)(x, (factor,))
    assert (y == jnp.asarray(256 + 63, "bfloat16")).all()
    y = call(name, axis, preferred_element_type="float32")(x, (factor,))
    assert y.dtype == "float32"
    assert (y == 256 + 63).all()


@every_implementation
def test_nan_input_reaches_the_outputs_it_touches(name):
    chain = bj.Chain([(2, 4, 4, 1)])
    x = jnp.ones((2, 8)).at[0, 0].set(jnp.nan)
    y = bj.butterfly(x, reference.draw_factors(chain), implementation=name)
    first, second = np.isnan(np.asarray(y))
    assert first[:4].all() and not second.any()
    if name != "dense" and name not in KERNELS:  # Those multiply by zeros as well.
        assert not first[4:].any()


def test_elementwise_takes_tall_blocks():
    x, dy = reference.draw((2, 3, 2)), reference.draw((2, 3, 65), seed=1)
    factors = reference.draw_factors(bj.Chain([(1, 65, 2, 1)]))
    apply = functools.partial(bj.butterfly, implementation="elementwise")
    _, pull_back = jax.vjp(apply, x, factors)
    dx, (dfactor,) = pull_back(dy)
    rows = x.reshape(6, 2), factors, dy.reshape(6, 65)
    expected_dx, (expected_dfactor,) = reference.gradients(*rows)
    assert reference.relative_error(dx.reshape(6, 2), expected_dx) < 1e-6
    assert reference.relative_error(dfactor, expected_dfactor) < 1e-6


def test_elementwise_refuses_wide_blocks():
    factors = reference.draw_factors(bj.Chain([(1, 2, 65, 1)]))
    with pytest.raises(NotImplementedError, match="at most 64, got c = 65"):
        bj.butterfly(np.ones((1, 65)), factors, implementation="elementwise")


def test_registered_function_is_selectable(monkeypatch):
    registry = bj.implementations.registry
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @bj.implementations.register("vmap")
    def vmap(x, factors, *, axis, precision, preferred_element_type):
        assert axis == -1 and x.ndim == 2
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
    with pytest.raises(ValueError, match="name='vmap' must be new"):
        bj.implementations.register("vmap")(vmap)
