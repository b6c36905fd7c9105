"""Links of a chain that are no factors: permutations and diagonals.

A sequence of links is a product of matrices, the last one touching x first, in which
factors (arrays of shape (a, b, c, d)), `Permutation`s and `Diagonal`s may follow one
another in any order.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from numpy.typing import NDArray

from butterjax import checks


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Permutation:
    """The permutation y[i] = x[indices[i]] of features.

    Immutable, hashable and part of the structure of a pytree, not one of its leaves: a
    constant of a compiled program, with no gradient.

    Args:
      indices: the integers 0 … n - 1 in some order, n at least 1; not traced.

    Raises:
      TypeError: if they are no integers, or traced.
      ValueError: if they are no permutation.
    """

    table: bytes  # int32: bytes are compared at once and keep their hash.

    def __init__(self, indices: ArrayLike | Sequence[int]) -> None:
        if isinstance(indices, jax.core.Tracer):
            raise TypeError(
                f"Permutation: indices must be known when a program is traced, got "
                f"{checks.shown(indices)}"
            )
        try:
            given = np.asarray(indices)
        except (TypeError, ValueError):
            given = np.empty((), object)
        if given.dtype.kind not in "iu":
            raise TypeError(
                f"Permutation: indices must be integers, got {checks.shown(indices)}"
            )
        if given.ndim != 1 or not len(given):
            raise ValueError(
                "Permutation: indices must have the shape (n,) with n at least 1, got "
                f"{checks.shown(indices)}"
            )
        if not np.array_equal(np.sort(given), np.arange(len(given))):
            raise ValueError(
                f"Permutation: indices must hold each of 0, ..., {len(given) - 1} "
                f"once, got {checks.shown(indices)}"
            )
        object.__setattr__(self, "table", given.astype(np.int32).tobytes())

    def __repr__(self) -> str:
        return f"Permutation({np.array2string(self.indices, threshold=8)})"

    @property
    def indices(self) -> NDArray[np.int32]:
        """Where each feature of the result comes from, of shape (n,); read-only."""
        return np.frombuffer(self.table, np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n, n) of the matrix."""
        n = len(self.indices)
        return (n, n)

    @property
    def transpose(self) -> "Permutation":
        """The inverse."""
        return Permutation(np.argsort(self.indices))

    @property
    def conjugate(self) -> "Permutation":
        """The permutation itself."""
        return self

    def repeated(self, before: int, after: int) -> "Permutation":
        """The permutation I_before ⊗ P ⊗ I_after."""
        i, k = np.ogrid[:before, :after]
        n = len(self.indices)
        whole = (i[..., None] * n + self.indices[:, None]) * after + k[:, None]
        return Permutation(whole.reshape(-1))

    def apply(self, x: jax.Array, axis: int) -> jax.Array:
        """The features of x, along `axis`, in their new order."""
        return x.at[(slice(None),) * (axis % x.ndim) + (self.indices,)].get(
            unique_indices=True, mode="promise_in_bounds"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, slots=True)
class Diagonal:
    """The diagonal matrix y[i] = values[i] · x[i].

    A pytree of one leaf, so gradients and optimisers reach its values.

    Args:
      values: (n,), checked where the link is used.
    """

    values: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (n, n) of the matrix."""
        n = len(self.values)
        return (n, n)

    @property
    def transpose(self) -> "Diagonal":
        """The diagonal itself."""
        return self

    @property
    def conjugate(self) -> "Diagonal":
        """Diagonal of the complex conjugates."""
        return Diagonal(jnp.conj(self.values))

    def repeated(self, before: int, after: int) -> "Diagonal":
        """The diagonal I_before ⊗ D ⊗ I_after."""
        return Diagonal(jnp.tile(jnp.repeat(self.values, after), before))

    def apply(self, x: jax.Array, axis: int) -> jax.Array:
        """The features of x, along `axis`, times the values; of their common type."""
        ones = (1,) * (x.ndim - 1 - axis % x.ndim)
        batch = (1,) * (axis % x.ndim)
        return x * self.values.reshape(*batch, -1, *ones)


_OTHERS = (Permutation, Diagonal)

type Link = jax.Array | Permutation | Diagonal
type LinkLike = ArrayLike | Permutation | Diagonal
type Run = tuple[Any, ...]  # Arrays, the factors of a chain, or one other link.


def is_factor(link: Link) -> bool:
    """Whether a link is a factor."""
    return not isinstance(link, _OTHERS)


def features(link: Any) -> tuple[int, int]:
    """Rows and columns of a link's matrix."""
    match link.shape:
        case (a, b, c, d):
            return a * b * d, a * c * d
        case (rows, columns):
            return rows, columns
    raise AssertionError(link.shape)


def arrays(runs: Sequence[Run]) -> list[jax.Array]:
    """The factors and the values of diagonals."""
    found = [
        link.values if isinstance(link, Diagonal) else link for link in sum(runs, ())
    ]
    return [one for one in found if not isinstance(one, Permutation)]


def kind(link: Link) -> str:
    """What messages call a link."""
    return "factor" if is_factor(link) else type(link).__name__


def check_sizes(function: str, links: Sequence[Link], name: str) -> None:
    """Checks that links can follow one another.

    Raises:
      ValueError: if two neighbours disagree on their inner size.
    """
    for i, (left, right) in enumerate(itertools.pairwise(links)):
        if features(left)[1] != features(right)[0]:
            raise ValueError(
                f"{function}: {name}[{i}], a {kind(left)} of shape {left.shape}, "
                f"takes {features(left)[1]} features, but {name}[{i + 1}], a "
                f"{kind(right)} of shape {right.shape}, which comes before it, gives "
                f"{features(right)[0]}"
            )


def runs(links: Sequence[Link]) -> tuple[Run, ...]:
    """Cuts a sequence into runs of factors that follow one another and other links."""
    found: list[Run] = []
    for link in links:
        if found and is_factor(link) and is_factor(found[-1][-1]):
            found[-1] += (link,)
        else:
            found.append((link,))
    return tuple(found)


def apply_link(
    x: jax.Array,
    factors: tuple[Any, ...],
    *,
    axis: Literal[0, -1],
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """Applies a run of one link; an `implementations.Implementation` of such runs."""
    del precision  # There is nothing to sum.
    (link,) = factors
    y: jax.Array = link.apply(x, axis)
    return y.astype(preferred_element_type)
