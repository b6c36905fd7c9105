"""Flax NNX module: a drop-in for `flax.nnx.Linear`."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Array, Dtype, Initializer, PrecisionLike
from jax.sharding import NamedSharding, PartitionSpec

from butterjax import array_checks, checks
from butterjax.dense_like import (
    apply_layer,
    check_inputs,
    check_layer,
    check_partitioning,
    layer_chain,
)
from butterjax.initializers import checked, init_factor
from butterjax.parameters import factor_names
from butterjax.pattern import Chain, Pattern

default_kernel_init = nnx.initializers.lecun_normal()
default_bias_init = nnx.initializers.zeros_init()


class Butterfly(nnx.Module):
    """A linear transformation over the last axis whose matrix is a butterfly chain.

    Takes the place of `flax.nnx.Linear`: y = K₁K₂…K_L x + bias, with the weights of
    each factor in a parameter of its own, `factor_00` (the leftmost), `factor_01` and
    so on, of shapes (a, b, c, d), and `bias` of shape (out_features,). `factors` is the
    tuple of them, and `butterjax.factors_of` finds them in a layer's state.

    Sizes that do not factor well are padded with zeros and the result is cut to size;
    `butterjax.default_chain` tells the chain used for given sizes. There is no
    `dot_general`: `implementation` takes its place.

    Args:
      in_features: number of input features.
      out_features: number of output features.
      use_bias: whether to add a bias to the output.
      dtype: dtype of the computation (default: inferred from input and parameters), or
        its name ("bfloat16" or "bf16").
      param_dtype: dtype passed to the initialisers, or its name.
      precision: as in `jax.lax.dot_general`.
      kernel_init: initialiser of the factors, called once for each block with the
        shape (c, b), that of a dense kernel (in, out), so that those of
        `flax.nnx.initializers` mean what they mean for Linear. Wrapped in
        `nnx.with_partitioning` it takes four names, for the axes (a, b, c, d).
      bias_init: initialiser of the bias.
      promote_dtype: function that promotes (inputs, *factors, bias) to one dtype.
      preferred_element_type: dtype of the product's result, or its name.
      rngs: rng streams; the `params` stream draws the parameters.
      kernel_metadata: metadata of the factors' `nnx.Param`; its "out_sharding" has four
        names too.
      bias_metadata: metadata of the bias' `nnx.Param`.
      chain: the chain, of at least as many in- and out-features as the layer
        (default: `butterjax.default_chain`).
      implementation: as in `butterjax.butterfly`.

    Raises:
      ValueError: if `chain` has too few in- or out-features, or factors are partitioned
        by another number of names than four.
      TypeError: if an argument is of another kind.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: Dtype | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        chain: Chain | None = None,
        implementation: str | None = None,
    ) -> None:
        in_features = checks.size("Butterfly", "in_features", in_features)
        out_features = checks.size("Butterfly", "out_features", out_features)
        check_layer(
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=bias_init,
            promote_dtype=promote_dtype,
            implementation=implementation,
            precision=precision,
        )
        checks.instance("Butterfly", "rngs", rngs, nnx.Rngs, "an nnx.Rngs")
        checks.instance("Butterfly", "kernel_metadata", kernel_metadata, Mapping)
        checks.instance("Butterfly", "bias_metadata", bias_metadata, Mapping)
        check_partitioning("kernel_metadata", _names_in(kernel_metadata))
        param_dtype = array_checks.stored_dtype("Butterfly", "param_dtype", param_dtype)
        chain = layer_chain(chain, in_features, out_features)
        for name, pattern in zip(factor_names(len(chain)), chain, strict=True):
            factor = _init_factor(kernel_init, rngs.params(), pattern, param_dtype)
            setattr(self, name, nnx.Param(factor, **kernel_metadata))
        self.bias: nnx.Param[jax.Array] | None
        if use_bias:
            draw = checked(
                bias_init, caller="Butterfly", name="bias_init", content=_content
            )
            bias = draw(rngs.params(), (out_features,), param_dtype)
            self.bias = nnx.Param(bias, **bias_metadata)
        else:
            self.bias = nnx.data(None)
        self.in_features = in_features
        self.out_features = out_features
        self.use_bias = use_bias
        self.dtype = array_checks.optional_dtype("Butterfly", "dtype", dtype)
        self.param_dtype = param_dtype
        self.precision = precision
        self.promote_dtype = promote_dtype
        self.preferred_element_type = array_checks.optional_dtype(
            "Butterfly", "preferred_element_type", preferred_element_type
        )
        self.chain = chain
        self.implementation = implementation

    @property
    def factors(self) -> tuple[jax.Array, ...]:
        """The factors: what `butterjax.butterfly` takes."""
        names = factor_names(len(self.chain))
        return tuple(getattr(self, name)[...] for name in names)

    def __call__(
        self, inputs: Array, out_sharding: NamedSharding | PartitionSpec | None = None
    ) -> Array:
        """Applies the transformation.

        Args:
          inputs: array of shape (..., in_features).
          out_sharding: of the result, over explicit mesh axes; None keeps that of the
            batch axes of `inputs`.

        Returns:
          Array of shape (..., out_features).
        """
        inputs = check_inputs(inputs)
        if inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"Butterfly: inputs of shape {inputs.shape} must have "
                f"in_features={self.in_features} along the last axis"
            )
        factors = self.factors
        bias = self.bias[...] if self.bias is not None else None
        inputs, *factors, bias = self.promote_dtype(
            (inputs, *factors, bias), dtype=self.dtype
        )
        return apply_layer(
            inputs,
            factors,
            bias,
            self.out_features,
            implementation=self.implementation,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            out_sharding=out_sharding,
        )


def _content(made: Any) -> list[Any]:
    """What an initialiser returned, out of its box if it is in one."""
    return [made.raw_value if isinstance(made, nnx.VariableMetadata) else made]


def _init_factor(
    kernel_init: Initializer, key: jax.Array, pattern: Pattern, dtype: Dtype
) -> Any:
    """`init_factor` for initialisers that wrap their result in `VariableMetadata`."""
    boxes: list[nnx.VariableMetadata[jax.Array]] = []

    def unboxed(
        key: jax.Array, shape: Any, dtype: Any = None, out_sharding: Any = None
    ) -> Any:
        block: Any = kernel_init(key, shape, dtype)
        if isinstance(block, nnx.VariableMetadata):
            boxes.append(block)
            block = block.raw_value
        return block

    factor = init_factor(unboxed, key, pattern, dtype)
    if not boxes:
        return factor
    check_partitioning("kernel_init", _names_in(boxes[0].metadata))
    return dataclasses.replace(boxes[0], raw_value=factor)


def _names_in(metadata: Mapping[str, Any]) -> Any:
    """The names of mesh axes that a variable's metadata have, under Flax's names."""
    keys = ("out_sharding", "sharding_names", "sharding")
    return next((metadata[key] for key in keys if metadata.get(key)), ())
