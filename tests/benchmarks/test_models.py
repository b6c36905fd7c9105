import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from benchmarks import models


def count(network, linear, **changes):
    """Parameters of a network of its full size."""
    known = models.NETWORKS[network]
    sizes = dataclasses.replace(known.sizes, **changes)
    module = known.module(sizes, linear)

    def init(key):
        x, _ = models.inputs(network, sizes, 1, "float32", key)
        return module.init(key, x)

    shapes = jax.eval_shape(init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("network", "num_weights"),
    [
        ("vit_s16", 22_050_664),  # As timm's vit_small_patch16_224 has.
        ("gpt2_medium", 354_823_168),  # As OpenAI's has, its embedding used twice.
        ("llama_mlp", 3 * 4096 * 11008 + 4096),  # One of Llama 7B's.
    ],
)
def test_networks_are_the_ones_they_are_named_after(network, num_weights):
    assert count(network, models.dense) == num_weights


@pytest.mark.parametrize(
    ("network", "replaced"),
    [
        ("vit_s16", {"qkvo": (4, 384 * 384), "up": (1, 384 * 1536)}),
        ("gpt2_medium", {"down": (1, 1024 * 4096)}),
    ],
)
def test_butterflies_take_the_places_of_dense_layers(network, replaced):
    known = models.NETWORKS[network]
    chains = {place: known.chains[place] for place in replaced}
    sizes = {
        "qkvo": {(384, 384)},
        "up": {(384, 1536)},
        "down": {(1536, 384), (4096, 1024)},
    }
    for place, chain in known.chains.items():
        assert (chain.in_features, chain.out_features) in sizes[place]
    saved = sum(
        times * (dense - chains[place].num_weights)
        for place, (times, dense) in replaced.items()
    )
    before = count(network, models.dense, depth=2)
    after = count(network, models.butterfly(chains, None), depth=2)
    assert before - after == 2 * saved


def tiny(network):
    classes = 0 if network == "llama_mlp" else 7
    return models.Sizes(
        depth=1, width=16, heads=2, hidden=32, tokens=5, classes=classes
    )


@pytest.mark.parametrize("network", models.NETWORKS)
def test_outputs_and_loss(network):
    sizes = tiny(network)
    module = models.NETWORKS[network].module(sizes, models.dense)
    x, target = models.inputs(network, sizes, 3, "float32", jax.random.key(0))
    y, _ = jax.jit(module.init_with_output)(jax.random.key(1), x)
    shapes = {"vit_s16": (3, 7), "gpt2_medium": (3, 5, 7), "llama_mlp": (3, 5, 16)}
    assert y.shape == shapes[network]
    y, target = np.asarray(y, float), np.asarray(target)
    if network == "llama_mlp":
        expected = np.mean((y - target) ** 2)
    else:
        assert np.array_equal(target.shape, y.shape[:-1])
        p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
        expected = -np.mean(np.log(np.take_along_axis(p, target[..., None], -1)))
    assert float(models.loss(y, target)) == pytest.approx(expected, rel=1e-5)


def test_a_language_model_does_not_look_ahead():
    sizes = tiny("gpt2_medium")
    module = models.Gpt2(sizes, models.dense)
    parameters = jax.jit(module.init)(jax.random.key(1), np.arange(5)[None])
    apply = jax.jit(module.apply)
    y = apply(parameters, np.array([[0, 1, 2, 3, 4]]))
    changed = apply(parameters, np.array([[0, 1, 2, 6, 4]]))
    assert np.array_equal(changed[0, :3], y[0, :3])
    assert not np.allclose(changed[0, 3:], y[0, 3:])


def test_target_of_a_language_model_is_the_next_token():
    x, target = models.inputs(
        "gpt2_medium", tiny("gpt2_medium"), 3, "float32", jax.random.key(0)
    )
    assert np.array_equal(x[:, 1:], target[:, :-1])


def test_training_makes_the_loss_smaller():
    sizes = tiny("llama_mlp")
    module = models.LlamaMlp(sizes, models.butterfly({"up": None, "down": None}, None))
    x, target = models.inputs("llama_mlp", sizes, 4, "float32", jax.random.key(0))
    parameters = jax.jit(module.init)(jax.random.key(1), x)
    state = jax.jit(models.optimizer().init)(parameters)
    step = jax.jit(models.training_step(module))
    losses = []
    for _ in range(20):
        parameters, state, loss = step(parameters, state, x, target)
        losses.append(float(loss))
    assert all(later < sooner for sooner, later in itertools.pairwise(losses))


def test_patches_of_an_image_are_a_square():
    sizes = dataclasses.replace(tiny("vit_s16"), tokens=6)
    with pytest.raises(ValueError, match="tokens must be a square number and one"):
        models.inputs("vit_s16", sizes, 1, "float32", jax.random.key(0))
