import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import butterjax as bj
from tests import flax_cases, reference
from tests.covering import covering


def factors_of(layer):
    return [getattr(layer, f"factor_{i:02}")[...] for i in range(len(layer.chain))]


@pytest.mark.parametrize(
    ("sizes", "batch"), covering(flax_cases.SIZES, [(), (2, 3)]), ids=str
)
def test_output(sizes, batch):
    in_features, out_features, chain = sizes
    layer = bj.nnx.Butterfly(
        in_features,
        out_features,
        chain=chain,
        bias_init=nnx.initializers.normal(),
        rngs=nnx.Rngs(0),
    )
    chain = chain or bj.default_chain(in_features, out_features)
    names = {path[0] for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))}
    assert names == {"bias", *(f"factor_{i:02}" for i in range(len(chain)))}
    assert bj.Chain.of(factors_of(layer)) == chain
    x = reference.draw((*batch, in_features))
    assert layer.bias is not None
    expected = flax_cases.expected_output(x, factors_of(layer), layer.bias[...])
    for call in (lambda m, x: m(x), nnx.jit(lambda m, x: m(x))):
        assert reference.relative_error(call(layer, x), expected) < 1e-5


def test_same_parameters_same_numbers_as_linen():
    x = reference.draw((3, 31))
    layer = bj.nnx.Butterfly(31, 47, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    y = bj.linen.Butterfly(47).apply({"params": state}, x)
    np.testing.assert_array_equal(y, layer(x))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("x_dtype", ["bfloat16", "float32", "int32"])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("preferred", [None, "float32"])
def test_dtypes_are_those_of_linear(use_bias, x_dtype, dtype, preferred):
    kwargs = {
        "use_bias": use_bias,
        "dtype": dtype,
        "param_dtype": jnp.bfloat16,
        "preferred_element_type": preferred,
        "rngs": nnx.Rngs(0),
    }
    x = jnp.ones((2, 16), x_dtype)
    one, other = nnx.Linear(16, 16, **kwargs), bj.nnx.Butterfly(16, 16, **kwargs)
    assert (one(x).shape, one(x).dtype) == (other(x).shape, other(x).dtype)
    assert (one.bias is None) == (other.bias is None)
    dtypes = [
        {leaf.dtype for leaf in jax.tree.leaves(nnx.state(m))} for m in (one, other)
    ]
    assert dtypes[0] == dtypes[1]


def test_partitioning_metadata():
    mesh = jax.make_mesh(
        (1, 1), ("blocks", "stride"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    names = ("blocks", None, None, "stride")
    init = nnx.initializers.orthogonal()
    with jax.set_mesh(mesh):
        layers = [
            bj.nnx.Butterfly(
                16,
                16,
                kernel_init=nnx.with_partitioning(init, names),
                rngs=nnx.Rngs(0),
            ),
            bj.nnx.Butterfly(
                16,
                16,
                kernel_init=init,
                kernel_metadata={"out_sharding": names},
                rngs=nnx.Rngs(0),
            ),
        ]
    for layer in layers:
        spec = nnx.get_partition_spec(nnx.state(layer))
        assert spec["factor_01"].get_value() == jax.sharding.PartitionSpec(*names)
        w = reference.dense(factors_of(layer))
        np.testing.assert_allclose(w @ w.T, np.eye(16), atol=1e-5)
    np.testing.assert_array_equal(*(layer.factor_00[...] for layer in layers))


@pytest.mark.parametrize("linear", [nnx.Linear, bj.nnx.Butterfly])
def test_a_model_swaps_linear_by_the_class_name(linear):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.hidden = linear(36, 48, use_bias=False, rngs=rngs)
            self.out = linear(48, 3, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.hidden(x)))

    x = reference.draw((64, 36))
    labels = np.argmax(x[:, :3], axis=1)
    model = Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                model(x), labels
            ).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    losses = [step(model, optimizer) for _ in range(100)]
    assert losses[-1] < 0.2 * losses[0]


def test_errors():
    with pytest.raises(ValueError, match="too few for a layer of 10 -> 20"):
        bj.nnx.Butterfly(10, 20, chain=bj.Chain.square_dyadic(16), rngs=nnx.Rngs(0))
    layer = bj.nnx.Butterfly(31, 47, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"shape \(2, 32\) must have in_features=31"):
        layer(jnp.ones((2, 32)))


@pytest.mark.parametrize("names", [("in", "out"), jax.P("in", "out")], ids=["", "P"])
def test_a_factor_has_four_partitioning_names(names):
    message = r"2 partitioning names, \('in', 'out'\), but a factor has four axes"
    init = nnx.with_partitioning(nnx.initializers.ones, names)
    with pytest.raises(ValueError, match="kernel_init has " + message):
        bj.nnx.Butterfly(16, 16, kernel_init=init, rngs=nnx.Rngs(0))
    metadata = {"out_sharding": names}
    with pytest.raises(ValueError, match="kernel_metadata has " + message):
        bj.nnx.Butterfly(16, 16, kernel_metadata=metadata, rngs=nnx.Rngs(0))
