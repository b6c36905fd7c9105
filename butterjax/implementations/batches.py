"""Batch axes and how they are sharded: what implementations need not know."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.sharding import NamedSharding, PartitionSpec


def merge_batch(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Decorator that merges the batch axes of x, for what takes a matrix.

    Where explicit mesh axes shard the batch, each device applies the function to its
    own part. Automatic mesh axes cannot be seen here: XLA brings the batch together
    first, unless this is called under `jax.shard_map`.

    Args:
      function: an `Implementation` or `FusedImplementation` that takes x of two axes,
        (batch, n) for axis=-1 or (n, batch) for axis=0.
    """

    @functools.wraps(function)
    def apply(
        x: jax.Array,
        factors: tuple[jax.Array, ...],
        *,
        axis: Literal[0, -1],
        **options: Any,
    ) -> jax.Array:
        arrays = {key: options.pop(key) for key in ("bias",) if key in options}

        def of_part(x: jax.Array, factors: Any, arrays: Any) -> jax.Array:
            batch = x.shape[:-1] if axis == -1 else x.shape[1:]
            rows, features = math.prod(batch), x.shape[axis]
            matrix = x.reshape((rows, features) if axis == -1 else (features, rows))
            y = function(matrix, factors, axis=axis, **options, **arrays)
            features = y.shape[axis]
            return y.reshape((*batch, features) if axis == -1 else (features, *batch))

        sharding = jax.typeof(x).sharding
        if not any(sharding.spec):
            return of_part(x, factors, arrays)
        return jax.shard_map(
            of_part,
            mesh=sharding.mesh,
            in_specs=(sharding.spec, PartitionSpec(), PartitionSpec()),
            out_specs=sharding.spec,
            check_vma=False,  # JAX's sparse products do not tell what varies.
        )(x, *jax.tree.map(unsharded, (factors, arrays)))

    return apply


def unsharded(array: jax.Array, *axes: int) -> jax.Array:
    """The array with no explicit mesh axis along some of its axes.

    Args:
      array: any array; how its other axes are sharded stays.
      *axes: none for all.
    """
    sharding = jax.typeof(array).sharding
    partitions = [*sharding.spec]
    for axis in axes or range(array.ndim):
        partitions[axis] = None
    if partitions == [*sharding.spec]:
        return array
    whole = NamedSharding(sharding.mesh, PartitionSpec(*partitions))
    moved: jax.Array = jax.sharding.reshard(array, whole)
    return moved
