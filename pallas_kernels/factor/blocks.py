"""A factor's weights and bias, block by block, as kernels fetch them; done by XLA."""

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, pieces, tiles


def weight_blocks(
    factor: jax.Array, embedded: tiles.Factor, num_pieces: int
) -> jax.Array:
    """Pieces of a factor's blocks, (a·d, pieces, b, c), embedded in larger ones."""
    a, b, c, d = factor.shape
    u, v = embedded.merged_a, embedded.merged_d
    w = factor.reshape(a // u, u, b, c, v, d // v)
    w = w.transpose(0, 5, 1, 2, 4, 3)  # (a/u, d/v, u, b, v, c)
    if u * v > 1:
        same_u = jnp.eye(u, dtype=bool)[:, None, None, :, None, None]
        same_v = jnp.eye(v, dtype=bool)[None, None, :, None, None, :]
        # (…, u, b, v, u', c, v'): a selection, so that no NaN spreads.
        w = jnp.where(same_u & same_v, w[:, :, :, :, :, None, :, None], 0)
    w = w.reshape(embedded.num_blocks, 1, embedded.b, embedded.c)
    if num_pieces == 1:
        return w
    return jnp.concatenate(pieces.split(w, num_pieces), axis=1)


def loadable(bias: jax.Array) -> jax.Array:
    """The bias in a type that kernels can load, its own if possible."""
    known = bias.dtype.name in arguments.DTYPES
    return bias if known else bias.astype(jnp.float32)


def bias_blocks(bias: jax.Array, embedded: tiles.Factor) -> jax.Array:
    """The bias of each block's rows, (a·d, b)."""
    blocks = bias.astype(jnp.float32).reshape(embedded.a, embedded.b, embedded.d)
    return blocks.swapaxes(1, 2).reshape(embedded.num_blocks, embedded.b)
