"""Transforms of more than one axis."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from butterjax import array_checks
from butterjax.links import Diagonal, Link, LinkLike, Permutation, features


def kronecker(left: Iterable[LinkLike], right: Iterable[LinkLike]) -> tuple[Link, ...]:
    """Links of A ⊗ B: A on the rows and B on the columns of a flattened matrix.

    Args:
      left: links of A.
      right: links of B.

    Returns:
      Links of A ⊗ I, then of I ⊗ B.

    Raises:
      TypeError: if one is no sequence of links.
      ValueError: if links of one of them do not follow one another.
    """
    outer = [link for run in array_checks.links("kronecker", left) for link in run]
    inner = [link for run in array_checks.links("kronecker", right) for link in run]
    after = features(inner[0])[0]
    before = features(outer[-1])[1]
    return (
        *(_repeated(link, 1, after) for link in outer),
        *(_repeated(link, before, 1) for link in inner),
    )


def _repeated(link: Link, before: int, after: int) -> Link:
    """The link of I_before ⊗ W ⊗ I_after."""
    if isinstance(link, Permutation):
        n = len(link.indices)
        i, j, k = np.ogrid[:before, :n, :after]
        return Permutation(((i * n + link.indices[j]) * after + k).reshape(-1))
    if isinstance(link, Diagonal):
        return Diagonal(jnp.tile(jnp.repeat(link.values, after), before))
    array: jax.Array = jnp.tile(jnp.repeat(link, after, axis=3), (before, 1, 1, 1))
    return array
