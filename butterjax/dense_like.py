"""What the Flax modules share: a chain for any sizes, padding and slicing."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from butterjax import array_checks, checks, implementations
from butterjax.apply import butterfly
from butterjax.implementations.batches import unsharded
from butterjax.pattern import Chain
from butterjax.sizes import divisors


def default_chain(in_features: int, out_features: int) -> Chain:
    """The chain a Butterfly layer takes when it is given none.

    A Monarch chain (`Chain.monarch`) of these sizes, each raised to the next multiple
    of 8 that is a product of two integers within a factor of four of one another
    where the size itself is not; or one dense factor where that has fewer weights.

    Args:
      in_features: at least 1.
      out_features: at least 1.

    Returns:
      A chain of at least these in- and out-features.

    Raises:
      TypeError: if a size is no integer.
      ValueError: if it is below 1 or above 2³¹ - 1.
    """
    in_features = checks.size("default_chain", "in_features", in_features)
    out_features = checks.size("default_chain", "out_features", out_features)
    dense = Chain([(1, out_features, in_features, 1)])
    monarch = Chain.monarch(_balanced_size(in_features), _balanced_size(out_features))
    return min(dense, monarch, key=lambda chain: chain.num_weights)


def layer_chain(chain: Chain | None, in_features: int, out_features: int) -> Chain:
    """The chain of a layer, `default_chain` where it is given none.

    Raises:
      TypeError: if `chain` is no chain.
      ValueError: if a layer of these sizes does not fit into it.
    """
    if chain is None:
        return default_chain(in_features, out_features)
    array_checks.chain("Butterfly", "chain", chain)
    if chain.in_features < in_features or chain.out_features < out_features:
        raise ValueError(
            f"Butterfly: chain maps {chain.in_features} -> {chain.out_features} "
            f"features, too few for a layer of {in_features} -> {out_features}"
        )
    return chain


def check_layer(
    *,
    use_bias: bool,
    kernel_init: Any,
    bias_init: Any,
    promote_dtype: Any,
    implementation: str | None,
    precision: jax.lax.PrecisionLike,
) -> None:
    """Checks what both Flax modules are made with; raises TypeError or ValueError."""
    checks.boolean("Butterfly", "use_bias", use_bias)
    checks.function("Butterfly", "kernel_init", kernel_init)
    checks.function("Butterfly", "bias_init", bias_init)
    checks.function("Butterfly", "promote_dtype", promote_dtype)
    names = (None, *implementations.names())
    checks.choice("Butterfly", "implementation", implementation, names)
    array_checks.precision("Butterfly", precision)


def check_inputs(inputs: Any) -> jax.Array:
    """The input of a layer as an array; raises ValueError where it has no axis."""
    x = array_checks.array("Butterfly", "inputs", inputs)
    if x.ndim == 0:
        raise ValueError(
            "Butterfly: inputs must have the features as their last axis, got shape ()"
        )
    return x


def check_partitioning(argument: str, names: Any) -> None:
    """Raises ValueError unless there is one name for each axis of a factor, or none.

    Args:
      argument: of the layer, where the names were given.
      names: mesh axes, as a tuple, a PartitionSpec or a NamedSharding.
    """
    given = names.spec if isinstance(names, NamedSharding) else names
    if isinstance(given, str):
        given = (given,)
    what = "four names of mesh axes"
    given = checks.sequence("Butterfly", f"partitioning of {argument}", given, what)
    if len(given) not in (0, 4):
        raise ValueError(
            f"Butterfly: {argument} has {len(given)} partitioning names, {given}, but "
            "a factor has four axes, (a, b, c, d) of its pattern: give four names, "
            "None for an axis that is not to be sharded"
        )


@functools.partial(
    jax.jit,
    static_argnames=(
        "out_features",
        "implementation",
        "precision",
        "preferred_element_type",
        "out_sharding",
    ),
    inline=True,
)
def apply_layer(
    x: jax.Array,
    factors: Sequence[jax.Array],
    bias: jax.Array | None,
    out_features: int,
    *,
    implementation: str | None,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: jax.typing.DTypeLike | None,
    out_sharding: NamedSharding | PartitionSpec | None = None,
) -> jax.Array:
    """y = W x + bias on the last axis, x padded with zeros and y cut to size.

    Compiled, also where its caller is not: one program then does it all.

    Args:
      x: (..., in_features).
      factors: of a chain of at least in_features and out_features.
      bias: (out_features,) or None.
      out_features: features of the result.
      implementation: as in `butterfly`.
      precision: as in `butterfly`.
      preferred_element_type: as in `butterfly`.
      out_sharding: of the result, over explicit mesh axes; None for that of the batch
        axes of x.

    Returns:
      Array of shape (..., out_features).
    """
    chain = Chain.of(factors)
    x = unsharded(x, x.ndim - 1)
    if padding := chain.in_features - x.shape[-1]:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    if bias is not None:
        # As if it were added to the product, which widens the result.
        result = preferred_element_type or jnp.result_type(x, *factors)
        preferred_element_type = jnp.promote_types(result, bias.dtype)
        bias = jnp.pad(bias, (0, chain.out_features - out_features))
    y = butterfly(
        x,
        factors,
        bias=bias,
        implementation=implementation,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if chain.out_features > out_features:
        y = y[..., :out_features]
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def _balanced_size(n: int) -> int:
    """n if it is a product of two balanced integers, else the next multiple of 8."""
    above = itertools.count((n // 8 + 1) * 8, 8)
    return next(m for m in itertools.chain([n], above) if _is_balanced(m))


def _is_balanced(n: int) -> bool:
    """Whether n = p·q with 1 < p <= q <= 4p."""
    return any(p > 1 and p * p <= n <= 4 * p * p for p in divisors(n))
