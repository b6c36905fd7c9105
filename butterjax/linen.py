"""Flax Linen module: a drop-in for `flax.linen.Dense`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.typing import Array, Dtype, Initializer, PrecisionLike

from butterjax import array_checks, checks
from butterjax.dense_like import (
    apply_layer,
    check_inputs,
    check_layer,
    check_partitioning,
    layer_chain,
)
from butterjax.initializers import checked, init_factor
from butterjax.parameters import factor_names, factors_of
from butterjax.pattern import Chain, Pattern


class Butterfly(nn.Module):
    """A linear transformation over the last axis whose matrix is a butterfly chain.

    Takes the place of `flax.linen.Dense`: y = K₁K₂…K_L x + bias, with the weights of
    each factor in a parameter of its own, `factor_00` (the leftmost), `factor_01` and
    so on, of shapes (a, b, c, d), and `bias` of shape (features,).
    `butterjax.factors_of` finds the factors in the parameters of a layer.

    Sizes that do not factor well are padded with zeros and the result is cut to size;
    `butterjax.default_chain` tells the chain used for given sizes. There is no
    `dot_general`: `implementation` takes its place.

    Attributes:
      features: number of output features.
      use_bias: whether to add a bias to the output.
      dtype: dtype of the computation (default: inferred from input and parameters), or
        its name ("bfloat16" or "bf16").
      param_dtype: dtype passed to the initialisers, or its name.
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

    def __post_init__(self) -> None:
        checks.size("Butterfly", "features", self.features)
        check_layer(
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            promote_dtype=self.promote_dtype,
            implementation=self.implementation,
            precision=self.precision,
        )
        array_checks.optional_dtype("Butterfly", "dtype", self.dtype)
        array_checks.stored_dtype("Butterfly", "param_dtype", self.param_dtype)
        if self.chain is not None:
            array_checks.chain("Butterfly", "chain", self.chain)
        super().__post_init__()

    @property
    def factors(self) -> tuple[jax.Array, ...]:
        """The factors of a bound module: what `butterjax.butterfly` takes.

        Raises:
          ValueError: if the module is not bound to parameters.
        """
        if self.scope is None or "params" not in self.variables:
            raise ValueError(
                "Butterfly: factors are those of a module bound to parameters, as "
                "layer.bind(variables) is"
            )
        return factors_of(self.variables["params"])

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
        inputs = check_inputs(inputs)
        chain = layer_chain(self.chain, inputs.shape[-1], self.features)
        param_dtype = array_checks.stored_dtype(
            "Butterfly", "param_dtype", self.param_dtype
        )

        def kernel_init(key: jax.Array, name: str, pattern: Pattern) -> jax.Array:
            if self.has_variable("params", name):
                # Flax wants no more than the shape, and whenever it is applied.
                return jnp.empty(pattern.shape, param_dtype)
            factor = init_factor(self.kernel_init, key, pattern, param_dtype)
            if isinstance(factor, nn.Partitioned):
                check_partitioning("kernel_init", factor.names)
            return factor

        factors = [
            self.param(name, kernel_init, name, pattern)
            for name, pattern in zip(factor_names(len(chain)), chain, strict=True)
        ]
        bias = None
        if self.use_bias:
            bias_init = checked(self.bias_init, caller="Butterfly", name="bias_init")
            bias = self.param("bias", bias_init, (self.features,), param_dtype)
        inputs, *factors, bias = self.promote_dtype(
            inputs,
            *factors,
            bias,
            dtype=array_checks.optional_dtype("Butterfly", "dtype", self.dtype),
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
