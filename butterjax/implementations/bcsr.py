"""`bcsr`: each factor as a compressed-row matrix of `jax.experimental.sparse`."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jax.typing import DTypeLike

from butterjax.implementations.batches import merge_batch
from butterjax.implementations.registry import FeatureAxis, one_by_one, register
from butterjax.numerics import accumulation_dtype


@register("bcsr")
@merge_batch
@one_by_one
def bcsr(
    x: jax.Array,
    factor: jax.Array,
    *,
    axis: FeatureAxis,
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """One sparse-dense product per factor; the sparse matrix is on the left.

    On CPU `jax.export` takes it only with the check of the custom call
    `cpu_csr_sparse_dense_ffi` disabled: JAX may change it between versions. XLA does
    not share it out over automatic mesh axes, and under `jax.shard_map` its gradients
    need `check_vma=False`: JAX's sparse products do not tell what varies.
    """
    a, b, c, d = factor.shape
    i, _, k, column = np.ix_(range(a), range(b), range(d), range(c))
    indices = np.broadcast_to((i * c + column) * d + k, (a, b, d, c)).reshape(-1)
    pointers = np.arange(a * b * d + 1) * c
    # Cast first: XLA has sparse products for no 16-bit type.
    accumulator = accumulation_dtype(x.dtype, preferred_element_type)
    data = jnp.swapaxes(factor, 2, 3).reshape(-1).astype(accumulator)
    matrix = sparse.BCSR(
        (data, jnp.asarray(indices, jnp.int32), jnp.asarray(pointers, jnp.int32)),
        shape=(a * b * d, a * c * d),
    )
    y = sparse.bcsr_dot_general(
        matrix,
        (x.T if axis == -1 else x).astype(accumulator),
        dimension_numbers=(((1,), (0,)), ((), ())),
        precision=cast(None, precision),  # Annotated as None alone.
    ).astype(preferred_element_type)
    return y.T if axis == -1 else y
