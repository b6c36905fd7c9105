import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import butterjax as bj
from tests import flax_cases, reference
from tests.covering import covering


@pytest.mark.parametrize(
    ("sizes", "batch"), covering(flax_cases.SIZES, [(), (5,), (2, 3)]), ids=str
)
def test_output(sizes, batch):
    in_features, out_features, chain = sizes
    layer = bj.linen.Butterfly(
        out_features, chain=chain, bias_init=nn.initializers.normal()
    )
    x = reference.draw((*batch, in_features))
    variables = layer.init(jax.random.key(0), x)
    chain = chain or bj.default_chain(in_features, out_features)
    names = [f"factor_{i:02}" for i in range(len(chain))]
    assert set(variables["params"]) == {"bias", *names}
    factors = [variables["params"][name] for name in names]
    assert bj.Chain.of(factors) == chain
    y = layer.apply(variables, x)
    expected = flax_cases.expected_output(x, factors, variables["params"]["bias"])
    assert reference.relative_error(y, expected) < 1e-5


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("x_dtype", ["bfloat16", "float32", "int32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_dtypes_are_those_of_dense(use_bias, x_dtype, dtype, param_dtype):
    x = jnp.ones((2, 16), x_dtype)
    kwargs = {"use_bias": use_bias, "dtype": dtype, "param_dtype": param_dtype}
    outputs, parameters = [], []
    for layer in (nn.Dense(16, **kwargs), bj.linen.Butterfly(16, **kwargs)):
        y, variables = layer.init_with_output(jax.random.key(0), x)
        outputs.append((y.shape, y.dtype))
        leaves = jax.tree.leaves(variables)
        parameters.append(({leaf.dtype for leaf in leaves}, "bias" in variables))
    assert outputs[0] == outputs[1]
    assert parameters[0] == parameters[1]


def test_partitioning_metadata():
    layer = bj.linen.Butterfly(
        16,
        kernel_init=nn.with_partitioning(
            nn.initializers.orthogonal(), ("blocks", None, None, "stride")
        ),
        bias_init=nn.with_partitioning(nn.initializers.zeros, ("features",)),
    )
    x = jnp.ones((2, 16))
    variables = layer.init(jax.random.key(0), x)
    spec = nn.get_partition_spec(variables)["params"]
    expected = jax.sharding.PartitionSpec("blocks", None, None, "stride")
    assert spec["factor_00"] == spec["factor_01"] == expected
    assert spec["bias"] == jax.sharding.PartitionSpec("features")
    w = reference.dense([variables["params"][f"factor_{i:02}"].value for i in (0, 1)])
    np.testing.assert_allclose(w @ w.T, np.eye(16), atol=1e-5)
    assert layer.apply(variables, x).shape == (2, 16)


def test_flax_initializers_scale_as_for_dense():
    x = reference.draw((256, 400))
    gains = []
    for init in (nn.initializers.lecun_normal(), nn.initializers.he_normal()):
        layer = bj.linen.Butterfly(400, kernel_init=init)
        gains.append(np.std(layer.init_with_output(jax.random.key(0), x)[0]))
    # He draws twice the variance of LeCun, once in each of the two factors.
    assert gains == pytest.approx([1, 2], rel=0.1)


@pytest.mark.parametrize("layer", [nn.Dense, bj.linen.Butterfly])
def test_a_model_swaps_dense_by_the_class_name(layer):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(layer(48, use_bias=False, param_dtype=jnp.float32)(x))
            x = nn.remat(layer)(features=48, name="hidden")(x)
            return layer(3, bias_init=nn.initializers.ones)(x)

    model = Model()
    x = reference.draw((64, 36))
    labels = np.argmax(x[:, :3], axis=1)
    params = model.init(jax.random.key(0), x)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def loss(params):
            logits = model.apply(params, x)
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[1]

    losses = train(params)
    assert losses[-1] < 0.2 * losses[0]


def test_implementation_and_precision_reach_butterfly():
    x = jnp.ones((2, 16))
    with pytest.raises(ValueError, match="got 'nonsense'"):
        bj.linen.Butterfly(16, implementation="nonsense")
    layer = bj.linen.Butterfly(16, implementation="einsum", precision="highest")
    jaxpr = jax.make_jaxpr(lambda x: layer.init_with_output(jax.random.key(0), x))(x)
    assert "HIGHEST" in str(jaxpr)


def test_chain_too_small():
    layer = bj.linen.Butterfly(20, chain=bj.Chain.square_dyadic(16))
    message = "chain maps 16 -> 16 features, too few for a layer of 10 -> 20"
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.ones((2, 10)))


def test_apply_draws_no_weights():
    drawn = []

    def init(key, shape, dtype):
        drawn.append(shape)
        return jnp.ones(shape, dtype)

    layer = bj.linen.Butterfly(16, kernel_init=init)
    variables = layer.init(jax.random.key(0), jnp.ones((2, 16)))
    assert len(drawn) == 2
    layer.apply(variables, jnp.ones((2, 16)))
    assert len(drawn) == 2
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r"\(4, 4, 4, 1\)"):
        bj.linen.Butterfly(16, chain=bj.Chain([(2, 8, 8, 1)])).apply(
            {"params": {"factor_00": jnp.ones((4, 4, 4, 1)), "bias": jnp.ones(16)}},
            jnp.ones((2, 16)),
        )


@pytest.mark.parametrize("names", [("in", "out"), jax.P("in", "out"), "blocks"])
def test_a_factor_has_four_partitioning_names(names):
    names_it = nn.with_partitioning(nn.initializers.ones, names)
    layer = bj.linen.Butterfly(16, kernel_init=names_it)
    message = r"kernel_init has . partitioning names, .*four axes, \(a, b, c, d\)"
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.ones((2, 16)))
