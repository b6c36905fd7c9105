"""`butterfly`: checks its arguments, picks an implementation, applies the chain."""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from butterjax import array_checks, checks, implementations, links, planning
from butterjax.implementations.batches import unsharded
from butterjax.links import LinkLike
from butterjax.pattern import Chain
from pallas_kernels.common.epilogue import ACTIVATIONS, Activation


def butterfly(
    x: ArrayLike,
    factors: Iterable[LinkLike],
    *,
    axis: int = -1,
    bias: ArrayLike | None = None,
    activation: Activation | None = None,
    implementation: str | None = None,
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
) -> jax.Array:
    """Applies a chain of butterfly factors: y = activation(K₁K₂…K_L x + bias).

    Each (Kronecker-sparse) factor of shape (a, b, c, d) maps x (a·c·d) to y (a·b·d) by
    y[i,j,k] = Σ_l w[i,j,l,k] · x[i,l,k] (arXiv 2405.15013).

    x and the factors are promoted to one dtype, as in `jnp.matmul`. Products
    accumulate in float32 for 16-bit types, and are rounded to that dtype between
    two factors. The bias takes no part in the promotion: it is added, and the
    activation applied, in the type that products accumulate in.

    Args:
      x: array with in_features = a·c·d of the last factor along `axis` and any batch
        axes around it, none and empty ones included.
      factors: arrays of shapes (a, b, c, d), in the order of the matrix product: the
        last one touches x first. `butterjax.Permutation`s and `butterjax.Diagonal`s
        may stand among them; each run of factors between them is a chain of its own.
      axis: the feature axis of x and of the result. -1 is feature-last, as in Flax;
        0 is feature-first, batch last, a layout of its own and often the fast one.
      bias: (out_features,), or None for none.
      activation: "relu", "gelu" (the tanh form), "silu", or None for none.
      implementation: one of `butterjax.implementations.names()`; None takes the one
        that `butterjax.planning.choose` expects to be fastest.
      precision: as in `jax.lax.dot_general`, of the products here and in all gradients.
        For float32 on a GPU the default allows TF32; "highest" does not.
      preferred_element_type: dtype of the result, or its name ("bfloat16" or "bf16");
        None for that of the operands.

    Returns:
      Array of the shape of x, with out_features = a·b·d of the first factor along
      `axis`.

    Raises:
      ValueError: if sizes or ranks do not fit, or `implementation`, `activation` or
        `precision` is unknown.
      TypeError: if an argument is of another kind (`factors` a dict, x a string), a
        dtype is not supported, or an activation is asked of complex numbers.
      NotImplementedError: if the named implementation does not support the case.
    """
    x = array_checks.array("butterfly", "x", x)
    runs = array_checks.links("butterfly", factors)
    axis = checks.integer("butterfly", "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(
            f"butterfly: axis={axis} is out of range for x of shape {x.shape}"
        )
    last = runs[-1][-1]
    _, in_features = links.features(last)
    if x.shape[axis] != in_features:
        takes = "a·c·d" if links.is_factor(last) else "n"
        raise ValueError(
            f"butterfly: x of shape {x.shape} has {x.shape[axis]} features along "
            f"axis {axis}, but the last {links.kind(last)}, of shape {last.shape}, "
            f"takes {takes} = {in_features}"
        )
    arrays = links.arrays(runs)
    dtype = array_checks.operands_dtype("butterfly", "x and factors", x, *arrays)
    out_dtype = dtype
    if preferred_element_type is not None:
        out_dtype = array_checks.dtype(
            "butterfly", "preferred_element_type", preferred_element_type
        )
        if _is_complex(dtype) and not _is_complex(out_dtype):
            raise TypeError(
                f"butterfly: preferred_element_type={out_dtype.name} drops the "
                f"imaginary part of operands of dtype {dtype.name}"
            )
    if bias is not None:
        bias = _check_bias(bias, links.features(runs[0][0])[0], out_dtype)
    _check_activation(activation, out_dtype)
    names = (None, *implementations.names())
    checks.choice("butterfly", "implementation", implementation, names)
    array_checks.precision("butterfly", precision)
    axis %= x.ndim
    y: jax.Array = x
    for run in reversed(runs):
        ends = run is runs[0]  # What follows the product, follows its first run.
        y = _apply(
            _implementation(implementation, run, y.shape, axis),
            y,
            run,
            bias if ends else None,
            axis=axis,
            dtype=dtype,
            activation=activation if ends else None,
            precision=precision,
            out_dtype=out_dtype if ends else dtype,
        )
    return y


_link = implementations.with_epilogue(links.apply_link)


def _implementation(
    name: str | None, run: links.Run, shape: tuple[Any, ...], axis: int
) -> implementations.FusedImplementation:
    """What applies one run to x of the given shape."""
    if not links.is_factor(run[0]):
        return _link
    if name is None:
        name = planning.choose(
            Chain.of(run),
            batch=_known_size(shape[:axis] + shape[axis + 1 :]),
            axis=-1 if axis == len(shape) - 1 else 0,
        )
    return implementations.get(name)


def _known_size(shape: tuple[Any, ...]) -> int | None:
    """Elements of an array, None where `jax.export` leaves a size open."""
    size = math.prod(shape)
    return size if isinstance(size, int) else None


def _check_bias(given: ArrayLike, out_features: int, out_dtype: jnp.dtype) -> jax.Array:
    bias = array_checks.array("butterfly", "bias", given)
    if bias.shape != (out_features,):
        raise ValueError(
            f"butterfly: bias must have the shape (out_features,) = ({out_features},), "
            f"got {bias.shape}"
        )
    dtype = array_checks.operands_dtype("butterfly", "bias", bias)
    if _is_complex(dtype) and not _is_complex(out_dtype):
        raise TypeError(
            f"butterfly: a bias of dtype {dtype.name} does not fit a result of dtype "
            f"{out_dtype.name}"
        )
    return bias


def _check_activation(activation: str | None, out_dtype: jnp.dtype) -> None:
    checks.choice("butterfly", "activation", activation, (None, *ACTIVATIONS))
    if activation is not None and _is_complex(out_dtype):
        raise TypeError(
            f"butterfly: activation={activation!r} is not defined for {out_dtype.name}"
        )


def _is_complex(dtype: DTypeLike) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


@functools.partial(
    jax.jit,
    static_argnames=(
        "implementation",
        "axis",
        "dtype",
        "activation",
        "precision",
        "out_dtype",
    ),
    inline=True,
)
def _apply(
    implementation: implementations.FusedImplementation,
    x: jax.Array,
    factors: links.Run,
    bias: jax.Array | None,
    *,
    axis: int,
    dtype: jnp.dtype,
    activation: Activation | None,
    precision: jax.lax.PrecisionLike,
    out_dtype: jnp.dtype,
) -> jax.Array:
    """Brings the features to one end of x and hands it to the implementation.

    Explicit mesh axes may shard the batch. Features mix in every factor: those and the
    factors are brought together first.
    """
    x = unsharded(x, axis).astype(dtype)
    factors = jax.tree.map(lambda leaf: unsharded(leaf).astype(dtype), factors)
    apply = functools.partial(
        implementation,
        factors=factors,
        bias=bias,
        activation=activation,
        precision=precision,
        preferred_element_type=out_dtype,
    )
    if axis == x.ndim - 1:
        return apply(x, axis=-1)
    features_first = functools.partial(apply, axis=0)
    sharded = any(jax.typeof(x).sharding.spec[:axis])
    if sharded or _known_size(x.shape[:axis]) is None:
        # Sparse products and `shard_map` cannot be mapped over such axes.
        return jnp.moveaxis(features_first(jnp.moveaxis(x, axis, 0)), 0, axis)
    for _ in range(axis):
        features_first = jax.vmap(features_first)
    return features_first(x)
