"""float32 products on bfloat16 tensor cores: numbers as sums of bfloat16 pieces.

A float32 number has 24 significant bits and a bfloat16 number 8, of the same range. So
a float32 is a sum of three bfloat16 pieces, each at most 2⁻⁸ times the one before, and
two hold it to 2⁻¹⁷. A product of two sums is a sum of products of pieces, which the
tensor core adds up in float32; those below what the pieces keep are left out. That is
what `jax.lax.DotAlgorithmPreset` calls BF16_BF16_F32_X3 and _X6.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.common import compat

# Of the bits of a float32: those that a bfloat16 has, and half of the last of them.
_HIGH_BITS = 0xFFFF0000
_HALF = 0x8000


def count(dtype: jax.typing.DTypeLike, precision: jax.lax.PrecisionLike) -> int:
    """How many pieces a number is held in.

    Args:
      dtype: of the numbers.
      precision: as in `jax.lax.dot_general`. For float32, "highest" takes three
        pieces, all else two, which is more exact than TF32.

    Returns:
      1 for 16-bit types, whose products are exact in float32; 2 or 3 for float32.

    Raises:
      NotImplementedError: if the precision is a `jax.lax.DotAlgorithm`.
    """
    if jnp.dtype(dtype).itemsize == 2:
        return 1
    pair = compat.canonicalize_precision(precision)
    if pair is not None and not isinstance(pair, tuple):
        raise NotImplementedError(
            f"precision={precision}: kernels multiply float32 by their own algorithm; "
            "ask for default, high or highest"
        )
    return 3 if pair is not None and jax.lax.Precision.HIGHEST in pair else 2


def products(num_pieces: int) -> tuple[tuple[int, int], ...]:
    """Which pieces to multiply: pairs (of x, of w), the smallest products first."""
    pairs = [(i, j) for i in range(num_pieces) for j in range(num_pieces - i)]
    return tuple(sorted(pairs, key=sum, reverse=True))


def split(x: jax.Array, num_pieces: int) -> tuple[jax.Array, ...]:
    """Numbers as sums of bfloat16 pieces, largest first; inside a kernel or outside.

    Infinities become NaN if there is more than one piece.

    Args:
      x: float32 of any shape.
      num_pieces: how many: 1, 2 or 3. The sum differs from x by at most 2⁻⁸, 2⁻¹⁷ or 0
        times x, as long as no piece falls below the smallest bfloat16.
    """
    pieces = []
    for _ in range(num_pieces - 1):
        # By hand: a conversion to bfloat16 and back may be optimised away.
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(_HALF)
        bits &= jnp.uint32(_HIGH_BITS)
        high = jax.lax.bitcast_convert_type(bits, jnp.float32)
        pieces.append(high.astype(jnp.bfloat16))
        x = x - high
    return (*pieces, x.astype(jnp.bfloat16))
