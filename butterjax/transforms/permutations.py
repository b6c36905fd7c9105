"""Permutations that reorder the digits of an index, as chains of one link."""

import math
from collections.abc import Sequence

import numpy as np

from butterjax import checks
from butterjax.links import Permutation
from butterjax.twiddles import power_of_two


def bit_reversal(n: int) -> tuple[Permutation]:
    """Reverses the bits of the index: its own inverse.

    Args:
      n: features, a power of two.

    Raises:
      TypeError: if it is no integer.
      ValueError: if it is no power of two.
    """
    bits = power_of_two("bit_reversal", n).bit_length() - 1
    return permuted_axes((2,) * bits, tuple(reversed(range(bits))))


def stride_permutation(n: int, stride: int) -> tuple[Permutation]:
    """Every stride-th feature, from each of the first ones on: L of (n, stride).

    Read by rows of `stride` features, x is a matrix; y is its transpose.

    Args:
      n: features.
      stride: a divisor of n.

    Raises:
      TypeError: if one is no integer.
      ValueError: if n is below 1, or stride does not divide it.
    """
    n = checks.size("stride_permutation", "n", n)
    stride = checks.integer("stride_permutation", "stride", stride, least=1)
    if n % stride:
        raise ValueError(f"stride_permutation: stride must divide n={n}, got {stride}")
    return permuted_axes((n // stride, stride), (1, 0))


def permuted_axes(shape: Sequence[int], axes: Sequence[int]) -> tuple[Permutation]:
    """`numpy.transpose` of features that are seen as an array, flattened again.

    Products of stride permutations, and of those within blocks, are of this kind.

    Args:
      shape: of the array; its product is the number of features.
      axes: which of its axes each axis of the result is.

    Raises:
      TypeError: if they are no sequences of integers.
      ValueError: if a size is below 1, or the axes are no order of those of the shape.
    """
    function = "permuted_axes"
    given = checks.sequence(function, "shape", shape, "a sequence of sizes")
    sizes = [checks.size(function, f"shape[{i}]", one) for i, one in enumerate(given)]
    given = checks.sequence(function, "axes", axes, "a sequence of axes")
    order = [checks.integer(function, f"axes[{i}]", one) for i, one in enumerate(given)]
    if sorted(order) != [*range(len(sizes))]:
        raise ValueError(
            f"{function}: axes must hold each axis of shape={tuple(sizes)} once, got "
            f"{tuple(order)}"
        )
    indices = np.arange(math.prod(sizes)).reshape(sizes)
    return (Permutation(indices.transpose(order).reshape(-1)),)
