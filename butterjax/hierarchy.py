"""A factor cut into the factors of a chain: the hierarchical algorithm itself.

What is cut has the pattern of the chain's product, and no pair of the chain is
redundant (see `butterjax.junctions`).
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from butterjax.junctions import Junction
from butterjax.pattern import Chain, Pattern

Order = Literal["balanced", "left_to_right"]
_Split = tuple[int, int, int]  # Factors start:stop, cut before the middle one.


class Hierarchy(NamedTuple):
    """Factors; which of them has the norm; e_s, the errors of two factors at s."""

    factors: tuple[jax.Array, ...]
    center: int
    errors: list[jax.Array]


def cut(target: jax.Array, chain: Chain, order: Order) -> Hierarchy:
    """Cuts a factor of the chain's product pattern, without redundant pairs, in order.

    All parts but the one at `center` have orthonormal blocks: columns to the left of
    it, rows to the right.
    """
    parts = [target]
    patterns = [chain.product]
    ends = [len(chain)]
    center = 0
    errors: dict[int, jax.Array] = {}
    for start, middle, stop in _splits(0, len(chain), order):
        index = ends.index(stop)
        while center != index:
            center = _move_center(parts, patterns, center, index)
        left = _product(chain, start, middle)
        junction = Junction(left, _product(chain, middle, stop))
        blocks = junction.product_blocks(parts[index])
        u, values, vh = jnp.linalg.svd(blocks, full_matrices=False)
        r = junction.rank
        if start == 0 and stop == len(chain):
            errors[middle] = norm(values[..., r:])
        u, values, vh = u[..., :r], values[..., None, :r], vh[..., :r, :]
        # The norm goes where the next cut is.
        on_left = middle - start > 1
        u, vh = (u * values, vh) if on_left else (u, values.mT * vh)
        parts[index : index + 1] = [junction.left_factor(u), junction.right_factor(vh)]
        patterns[index : index + 1] = [junction.left, junction.right]
        ends[index : index + 1] = [middle, stop]
        center = index + (not on_left)
    for middle in range(1, len(chain)):
        if middle not in errors:
            errors[middle] = _two_factor_error(target, chain, middle)
    ordered = [errors[middle] for middle in range(1, len(chain))]
    return Hierarchy(tuple(parts), center, ordered)


def _two_factor_error(target: jax.Array, chain: Chain, middle: int) -> jax.Array:
    left, right = _product(chain, 0, middle), _product(chain, middle, len(chain))
    junction = Junction(left, right)
    blocks = junction.product_blocks(target)
    # Full matrices would be allocated, though not computed.
    values = jnp.linalg.svd(blocks, full_matrices=False, compute_uv=False)
    return norm(values[..., junction.rank :])


def _move_center(
    parts: list[jax.Array], patterns: Sequence[Pattern], center: int, index: int
) -> int:
    """Makes the part at `center` orthonormal and hands its norm on towards `index`."""
    step = 1 if index > center else -1
    i = min(center, center + step)
    junction = Junction(patterns[i], patterns[i + 1])
    left, right = junction.left_blocks(parts[i]), junction.right_blocks(parts[i + 1])
    if step == 1:
        left, rest = jnp.linalg.qr(left)
        right = jnp.matmul(rest, right, precision="highest")
    else:
        adjoint, rest = jnp.linalg.qr(_adjoint(right))
        right = _adjoint(adjoint)
        left = jnp.matmul(left, _adjoint(rest), precision="highest")
    parts[i : i + 2] = [junction.left_factor(left), junction.right_factor(right)]
    return center + step


def upper_bound(
    start: int, stop: int, errors: Sequence[jax.Array], order: Order
) -> jax.Array | float:
    """A bound on the error of factors start:stop in the frame of the others.

    A cut leaves a residual orthogonal to all that has its left part's columns, or its
    right part's rows; one of them remains if that part is not cut again.
    """
    if stop - start == 1:
        return 0.0
    middle = _middle(start, stop, order)
    left = upper_bound(start, middle, errors, order)
    right = upper_bound(middle, stop, errors, order)
    here = errors[middle - 1]
    if 1 in (middle - start, stop - middle):
        return jnp.hypot(here, left + right)
    return here + left + right


def _middle(start: int, stop: int, order: Order) -> int:
    return start + 1 if order == "left_to_right" else (start + stop) // 2


def _splits(start: int, stop: int, order: Order) -> Iterator[_Split]:
    """The cuts in the order in which they are made."""
    if stop - start > 1:
        middle = _middle(start, stop, order)
        yield start, middle, stop
        yield from _splits(start, middle, order)
        yield from _splits(middle, stop, order)


def _product(chain: Chain, start: int, stop: int) -> Pattern:
    return Chain(chain.patterns[start:stop]).product


def norm(array: jax.Array) -> jax.Array:
    """Frobenius norm, real."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(array))))


def _adjoint(blocks: jax.Array) -> jax.Array:
    return blocks.mT.conj()
