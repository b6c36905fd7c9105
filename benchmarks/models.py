"""Networks with dense or butterfly layers in the places that arXiv 2405.15013 uses.

Each is a Flax module that takes the layers it is made of as an argument, so that two of
one kind differ in nothing else.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.typing import DTypeLike

import butterjax as bj
from benchmarks.cases import PAPER_CHAINS
from benchmarks.units import Count

Place = Literal["qkvo", "up", "down"]

_PATCH = 16


class Linear(Protocol):
    """Makes the linear layer for a place in a network."""

    def __call__(
        self,
        place: Place,
        features: int,
        *,
        dtype: DTypeLike | None,
        name: str | None = None,
        use_bias: bool = True,
    ) -> nn.Module: ...


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a network.

    Attributes:
      depth: number of blocks.
      width: features between blocks.
      heads: of the attention; 0 for no attention.
      hidden: features inside an MLP.
      tokens: of a sequence; for images the patches, and one.
      classes: that are told apart; for text the vocabulary; 0 for no such end.
    """

    depth: Count
    width: Count
    heads: Count
    hidden: Count
    tokens: Count
    classes: Count


class Attention(nn.Module):
    """Multi-head attention with four linear layers."""

    sizes: Sizes
    linear: Linear
    is_causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def linear(name: str) -> nn.Module:
            return self.linear("qkvo", self.sizes.width, dtype=self.dtype, name=name)

        heads = (*x.shape[:-1], self.sizes.heads, -1)
        q, k, v = (linear(name)(x).reshape(heads) for name in "qkv")
        y = jax.nn.dot_product_attention(q, k, v, is_causal=self.is_causal)
        return linear("o")(y.reshape(x.shape))


class Transformer(nn.Module):
    """Blocks of attention and MLP, each normalised before and added to its input."""

    sizes: Sizes
    linear: Linear
    is_causal: bool
    dtype: DTypeLike | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(self.sizes.depth):
            y = nn.LayerNorm(dtype=self.dtype)(x)
            x += Attention(self.sizes, self.linear, self.is_causal, self.dtype)(y)
            y = nn.LayerNorm(dtype=self.dtype)(x)
            up = self.linear("up", self.sizes.hidden, dtype=self.dtype)
            down = self.linear("down", self.sizes.width, dtype=self.dtype)
            x += down(nn.gelu(up(y)))
        return nn.LayerNorm(dtype=self.dtype)(x)


class Vit(nn.Module):
    """Vision transformer: images (batch, side, side, 3) -> (batch, classes)."""

    sizes: Sizes
    linear: Linear
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        patch = (_PATCH, _PATCH)
        x = nn.Conv(self.sizes.width, patch, strides=patch, dtype=self.dtype)(images)
        x = x.reshape(len(images), -1, self.sizes.width)
        normal = nn.initializers.normal(0.02)
        first = self.param("class", normal, (1, 1, self.sizes.width), x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, first.size)), x], 1)
        x += self.param("positions", normal, (1, *x.shape[1:]), x.dtype)
        x = Transformer(self.sizes, self.linear, False, self.dtype)(x)
        return nn.Dense(self.sizes.classes, dtype=self.dtype)(x[:, 0])


class Gpt2(nn.Module):
    """Language model: tokens (batch, tokens) -> (batch, tokens, classes)."""

    sizes: Sizes
    linear: Linear
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        words = nn.Embed(self.sizes.classes, self.sizes.width, dtype=self.dtype)
        places = nn.Embed(self.sizes.tokens, self.sizes.width, dtype=self.dtype)
        x = words(tokens) + places(jnp.arange(tokens.shape[1]))
        x = Transformer(self.sizes, self.linear, True, self.dtype)(x)
        return words.attend(x)


class LlamaMlp(nn.Module):
    """Gated MLP blocks as in Llama: (batch, tokens, width) -> the same."""

    sizes: Sizes
    linear: Linear
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        linear = functools.partial(self.linear, dtype=self.dtype, use_bias=False)
        for _ in range(self.sizes.depth):
            y = nn.RMSNorm(dtype=self.dtype)(x)
            gate = linear("up", self.sizes.hidden)
            up = linear("up", self.sizes.hidden)
            down = linear("down", self.sizes.width)
            x += down(nn.silu(gate(y)) * up(y))
        return x


@dataclasses.dataclass(frozen=True)
class Network:
    """A network to measure.

    Attributes:
      module: made of sizes, layers and the dtype that is computed in.
      sizes: the network's own.
      chains: of the butterfly layers, by place; None for `butterjax.default_chain`.
        Places that are not named have dense layers.
      num_products: linear layers that an input goes through, in each block.
    """

    module: Callable[..., nn.Module]
    sizes: Sizes
    chains: Mapping[Place, bj.Chain | None]
    num_products: int


NETWORKS = {
    "vit_s16": Network(
        Vit,
        Sizes(depth=12, width=384, heads=6, hidden=1536, tokens=197, classes=1000),
        {
            "qkvo": PAPER_CHAINS["vit_s16_qkvo"],
            "up": PAPER_CHAINS["vit_s16_up"],
            "down": PAPER_CHAINS["vit_s16_down"],
        },
        num_products=4,
    ),
    "gpt2_medium": Network(
        Gpt2,
        Sizes(depth=24, width=1024, heads=16, hidden=4096, tokens=1024, classes=50257),
        {"down": PAPER_CHAINS["gpt2_medium_down"]},
        num_products=4,
    ),
    "llama_mlp": Network(
        LlamaMlp,
        Sizes(depth=1, width=4096, heads=0, hidden=11008, tokens=2048, classes=0),
        {"up": None, "down": None},
        num_products=2,
    ),
}


def dense(place: Place, features: int, **options: Any) -> nn.Module:
    """A `Linear` that makes dense layers everywhere."""
    return nn.Dense(features, **options)


def butterfly(
    chains: Mapping[Place, bj.Chain | None], implementation: str | None
) -> Linear:
    """A `Linear` that makes butterfly layers in the places that are named."""

    def linear(place: Place, features: int, **options: Any) -> nn.Module:
        if place not in chains:
            return nn.Dense(features, **options)
        return bj.linen.Butterfly(
            features, chain=chains[place], implementation=implementation, **options
        )

    return linear


def inputs(
    network: str, sizes: Sizes, batch: int, dtype: DTypeLike, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Random input, and what the network is to make of it.

    Raises:
      ValueError: if the patches of an image are not a square of them.
    """
    first, second = jax.random.split(key)
    if network == "gpt2_medium":
        tokens = jax.random.randint(first, (batch, sizes.tokens + 1), 0, sizes.classes)
        return tokens[:, :-1], tokens[:, 1:]
    if network == "vit_s16":
        side = math.isqrt(sizes.tokens - 1)
        if side**2 != sizes.tokens - 1:
            raise ValueError(
                f"vit_s16: tokens must be a square number and one, got {sizes.tokens}"
            )
        side *= _PATCH
        labels = jax.random.randint(second, (batch,), 0, sizes.classes)
        return jax.random.normal(first, (batch, side, side, 3), dtype), labels
    shape = (batch, sizes.tokens, sizes.width)
    return (
        jax.random.normal(first, shape, dtype),
        jax.random.normal(second, shape, dtype),
    )


def loss(output: Any, target: jax.Array) -> jax.Array:
    """Cross-entropy for integer targets, mean squared error for others."""
    wide = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    if jnp.issubdtype(target.dtype, jnp.integer):
        losses = optax.softmax_cross_entropy_with_integer_labels(wide, target)
    else:
        losses = jnp.square(wide - target.astype(wide.dtype))
    return losses.mean()


def optimizer() -> optax.GradientTransformation:
    """What the training step uses."""
    return optax.adamw(1e-3)


def training_step(module: nn.Module) -> Callable[..., Any]:
    """One step: (parameters, state, input, target) -> (parameters, state, loss)."""

    def step(parameters: Any, state: Any, x: jax.Array, target: jax.Array) -> Any:
        def of(parameters: Any) -> jax.Array:
            return loss(module.apply(parameters, x), target)

        value, gradients = jax.value_and_grad(of)(parameters)
        updates, state = optimizer().update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return step
