"""Flax Linen module: a drop-in for `flax.linen.Dense`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Array, Dtype, Initializer, PrecisionLike

from butterjax.dense_like import (
    apply_layer,
    check_chain,
    check_partitioning,
    default_chain,
)
from butterjax.initializers import init_factor
from butterjax.pattern import Chain, Pattern


class Butterfly(nn.Module):
    """A linear transformation over the last axis whose matrix is a butterfly chain.

    Takes the place of `flax.linen.Dense`: y = K₁K₂…K_L x + bias, with the weights of
    each factor in a parameter of its own, `factor_0` (the leftmost) to
    `factor_{L-1}` of shapes (a, b, c, d), and `bias` of shape (features,).

    Sizes that do not factor well are padded with zeros and the result is cut to size;
    `butterjax.default_chain` tells the chain used for given sizes. There is no
    `dot_general`: `implementation` takes its place.

    Attributes:
      features: number of output features.
      use_bias: whether to add a bias to the output.
      dtype: dtype of the computation (default: inferred from input and parameters).
      param_dtype: dtype passed to the initialisers.
      precision: as in `jax.lax.dot_general`.
      kernel_init: initialiser of the factors, called once for each block with the
        shape (c, b), that of a dense kernel (in, out), so that those of
        `flax.linen.initializers` mean what they mean for Dense. Wrapped in
        `nn.with_partitioning` it takes four names, for the axes (a, b, c, d).
      bias_init: initialiser of the bias.
      promote_dtype: function that promotes (inputs, *factors, bias) to one dtype.
      chain: the chain, of at least as many in- and out-features as the layer
        (default: `butterjax.default_chain`).
      implementation: as in `butterjax.butterfly`.
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    promote_dtype: Callable[..., Any] = promote_dtype
    chain: Chain | None = None
    implementation: str | None = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Applies the transformation.

        Args:
          inputs: array of shape (..., in_features).

        Returns:
          Array of shape (..., features).

        Raises:
          ValueError: if `chain` has too few in- or out-features, or `kernel_init` is
            partitioned by another number of names than four.
        """
        in_features = jnp.shape(inputs)[-1]
        chain = self.chain or default_chain(in_features, self.features)
        check_chain(chain, in_features, self.features)

        def kernel_init(key: jax.Array, name: str, pattern: Pattern) -> jax.Array:
            if self.has_variable("params", name):
                # Flax wants no more than the shape, and whenever it is applied.
                return jnp.empty(pattern.shape, self.param_dtype)
            factor = init_factor(self.kernel_init, key, pattern, self.param_dtype)
            if isinstance(factor, nn.Partitioned):
                check_partitioning("kernel_init", factor.names)
            return factor

        factors = [
            self.param(f"factor_{i}", kernel_init, f"factor_{i}", pattern)
            for i, pattern in enumerate(chain)
        ]
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias", self.bias_init, (self.features,), self.param_dtype
            )
        inputs, *factors, bias = self.promote_dtype(
            inputs, *factors, bias, dtype=self.dtype
        )
        return apply_layer(
            inputs,
            factors,
            bias,
            self.features,
            implementation=self.implementation,
            precision=self.precision,
            preferred_element_type=None,
        )
