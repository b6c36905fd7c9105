import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import butterjax as bj
from tests import reference


def linen_params(boxed):
    """Of every kind of parameter; where boxed, in Flax's boxes."""
    init, zeros = nn.initializers.ones, nn.initializers.ones
    if boxed:
        init = nn.with_partitioning(init, ("a", None, None, None))
        zeros = nn.with_partitioning(zeros, ("b",))
    model = nn.Sequential(
        [
            nn.Embed(5, 16),
            bj.linen.Butterfly(
                16, chain=bj.Chain.square_dyadic(16), kernel_init=init, bias_init=zeros
            ),
            nn.LayerNorm(),
            nn.Dense(4, bias_init=zeros),
        ]
    )
    return model.init(jax.random.key(0), jnp.ones((2,), "int32"))


class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.hidden = bj.nnx.Butterfly(16, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(16, 4, rngs=rngs)])
        self.embed = nnx.Embed(5, 16, rngs=rngs)


def factors():
    return bj.init(jax.random.key(0), bj.Chain.monarch(16, 16))


TREES = {
    "linen": lambda: linen_params(boxed=False),
    "linen boxes": lambda: linen_params(boxed=True),
    "nnx": lambda: nnx.state(Model(), nnx.Param),
    "nnx dict": lambda: nnx.to_pure_dict(nnx.state(Model(), nnx.Param)),
    "nnx module": Model,
    "tuples": lambda: {"layers": [{"w": factors(), "bias": jnp.ones(16)}]},
    "factors": factors,
}


@pytest.mark.parametrize("name", TREES)
def test_kernels_and_factors_decay_and_nothing_else(name):
    """Told apart by what the arrays are: all that has more axes than a bias or a scale.

    But for the embedding, of two axes, which Dense's usual masks leave out as well.
    """
    params = TREES[name]()
    mask = bj.optim.decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    for path, decays in jax.tree.leaves_with_path(mask):
        leaf = dict(jax.tree.leaves_with_path(params))[path]
        is_embedding = "embedding" in jax.tree_util.keystr(path)
        assert decays == (leaf.ndim > 1 and not is_embedding), path
    assert any(jax.tree.leaves(mask))


def test_adamw_takes_it():
    params = linen_params(boxed=False)
    optimizer = optax.adamw(1.0, weight_decay=0.5, mask=bj.optim.decay_mask)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    updates, params = updates["params"], params["params"]
    factor = params["layers_1"]["factor_03"]
    error = reference.relative_error(updates["layers_1"]["factor_03"], -0.5 * factor)
    assert error < 1e-6
    np.testing.assert_array_equal(updates["layers_1"]["bias"], np.zeros(16))
