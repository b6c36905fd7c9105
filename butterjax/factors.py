"""Plain functions on the factors of a chain: products, transposes, dense matrices.

`factors` is everywhere a sequence of arrays, one per factor, each of the shape
(a, b, c, d) of its pattern, in the order of the matrix product W = K₁K₂…K_L: a tuple,
a list or a generator, of JAX or NumPy arrays. But for `fuse`, all take `Permutation`s
and `Diagonal`s among them. All functions raise TypeError where it is no sequence of
arrays, and ValueError where it is empty or a single array, an array has not four axes,
or neighbours disagree on their inner size.
"""

import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from butterjax import array_checks, links
from butterjax.links import Diagonal, Link, LinkLike, Permutation, Run
from butterjax.numerics import accumulation_dtype
from butterjax.pattern import Chain, Pattern


@overload
def transpose(factors: Iterable[ArrayLike]) -> tuple[jax.Array, ...]: ...
@overload
def transpose(factors: Iterable[LinkLike]) -> tuple[Link, ...]: ...
def transpose(factors: Iterable[LinkLike]) -> tuple[Link, ...]:
    """Factors of Wᵀ = K_Lᵀ…K₁ᵀ, of shapes (a, c, b, d)."""
    return tuple(
        jnp.swapaxes(link, 1, 2) if isinstance(link, jax.Array) else link.transpose
        for link in reversed(_checked("transpose", factors))
    )


@overload
def conjugate(factors: Iterable[ArrayLike]) -> tuple[jax.Array, ...]: ...
@overload
def conjugate(factors: Iterable[LinkLike]) -> tuple[Link, ...]: ...
def conjugate(factors: Iterable[LinkLike]) -> tuple[Link, ...]:
    """Factors of the complex conjugate of W, entry by entry."""
    return tuple(
        jnp.conj(link) if isinstance(link, jax.Array) else link.conjugate
        for link in _checked("conjugate", factors)
    )


@overload
def adjoint(factors: Iterable[ArrayLike]) -> tuple[jax.Array, ...]: ...
@overload
def adjoint(factors: Iterable[LinkLike]) -> tuple[Link, ...]: ...
def adjoint(factors: Iterable[LinkLike]) -> tuple[Link, ...]:
    """Factors of the conjugate transpose of W."""
    return conjugate(transpose(_checked("adjoint", factors)))


def fuse(
    factors: Iterable[ArrayLike],
    partition: Sequence[int],
    *,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, ...]:
    """Multiplies out consecutive runs of factors; the map they make stays the same.

    Exact but for rounding, and differentiable. Products of 16-bit factors are kept in
    float32 until a run is done.

    Args:
      factors: arrays of shapes (a, b, c, d).
      partition: lengths of the runs, in the order of the matrix product; (2, 1, 3)
        makes three factors out of six.
      precision: as in `jax.lax.dot_general`.

    Returns:
      One array per run, of the shape `Chain.of(factors).fuse(partition)` tells.

    Raises:
      ValueError: if the lengths do not add up, or a run is not chainable.
      TypeError: if the factors are of integers.
    """
    arrays = array_checks.factors("fuse", factors)
    chain = Chain.of(arrays)
    array_checks.precision("fuse", precision)
    chain.fuse(partition)  # Raises where a run has no pattern.
    multiply = functools.partial(_product, precision=precision)
    fused = []
    rest = arrays
    for run in chain.runs(partition):
        taken, rest = rest[: len(run)], rest[len(run) :]
        dtype = array_checks.operands_dtype("fuse", "factors", *taken)
        wide = [factor.astype(accumulation_dtype(dtype, dtype)) for factor in taken]
        fused.append(functools.reduce(multiply, wide).astype(dtype))
    return tuple(fused)


def to_dense(
    factors: Iterable[LinkLike], *, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """The matrix W = K₁K₂…K_L.

    Args:
      factors: arrays of shapes (a, b, c, d), and other links.
      precision: as in `jax.lax.dot_general`.

    Returns:
      Array of shape (out_features, in_features).

    Raises:
      TypeError: if the factors are of integers, which products would round.
    """
    runs = array_checks.links("to_dense", factors)
    # Permutations alone make a matrix of JAX's default type.
    found = links.arrays(runs) or [jnp.ones(())]
    dtype = array_checks.operands_dtype("to_dense", "factors", *found)
    array_checks.precision("to_dense", precision)
    promoted = jax.tree.map(lambda leaf: leaf.astype(dtype), runs)
    dense = None
    for run in reversed(promoted):
        dense = _run_to_dense(run, dense, dtype, precision)
    assert dense is not None
    return dense.astype(dtype)


def _run_to_dense(
    run: Run,
    right: jax.Array | None,
    dtype: jnp.dtype,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """The matrix of a run times the one on its right, if there is one."""
    wide = accumulation_dtype(dtype, dtype)
    (link, *_) = run
    if isinstance(link, Permutation):
        return link.apply(
            jnp.eye(*link.shape, dtype=wide) if right is None else right, 0
        )
    if isinstance(link, Diagonal):
        # A selection, as of factors.
        return (
            jnp.diag(link.values.astype(wide))
            if right is None
            else link.apply(right, 0)
        )
    fused = fuse(run, _longest_runs(Chain.of(run)), precision=precision)
    if right is None:
        right, fused = _factor_to_dense(fused[-1].astype(wide)), fused[:-1]
    for factor in reversed(fused):
        right = apply_factor(
            right, factor, axis=0, precision=precision, preferred_element_type=wide
        )
    return right


def apply_factor(
    x: jax.Array,
    factor: jax.Array,
    *,
    axis: Literal[0, -1],
    precision: jax.lax.PrecisionLike,
    preferred_element_type: DTypeLike,
) -> jax.Array:
    """y[i,j,k] = Σ_l w[i,j,l,k] · x[i,l,k] as one contraction.

    Args:
      x: (*batch, a·c·d) for axis=-1, (a·c·d, *batch) for axis=0.
      factor: (a, b, c, d).
      axis: the feature axis of x and of the result.
      precision: as in `jax.lax.dot_general`.
      preferred_element_type: dtype of the result.

    Returns:
      (*batch, a·b·d) or (a·b·d, *batch).
    """
    a, b, c, d = factor.shape
    before, after = (x.shape[:-1], ()) if axis == -1 else ((), x.shape[1:])
    formula = "...ilk,ijlk->...ijk" if axis == -1 else "ilk...,ijlk->ijk..."
    y = jnp.einsum(
        formula,
        x.reshape(*before, a, c, d, *after),
        factor,
        precision=precision,
        preferred_element_type=accumulation_dtype(x.dtype, preferred_element_type),
    ).astype(preferred_element_type)
    return y.reshape(*before, a * b * d, *after)


def _checked(function: str, factors: Iterable[LinkLike]) -> tuple[Link, ...]:
    """The links as arrays, permutations and diagonals that follow one another."""
    return tuple(itertools.chain(*array_checks.links(function, factors)))


def _longest_runs(chain: Chain) -> tuple[int, ...]:
    """Run lengths that cut a chain only where two neighbours are not chainable."""
    lengths = [1]
    for left, right in itertools.pairwise(chain):
        if left.is_chainable(right):
            lengths[-1] += 1
        else:
            lengths.append(1)
    return tuple(lengths)


def _factor_to_dense(factor: jax.Array) -> jax.Array:
    """One factor as a matrix of shape (a·b·d, a·c·d)."""
    a, b, c, d = factor.shape
    same_a = jnp.eye(a, dtype=bool)[:, None, None, :, None, None]
    same_d = jnp.eye(d, dtype=bool)[None, None, :, None, None, :]
    blocks = jnp.swapaxes(factor, 2, 3)[:, :, :, None, :, None]
    # A selection, not a product: a NaN weight must not leak into the zeros.
    return jnp.where(same_a & same_d, blocks, 0).reshape(a * b * d, a * c * d)


def _product(
    left: jax.Array, right: jax.Array, *, precision: jax.lax.PrecisionLike
) -> jax.Array:
    """The product of two chainable factors, itself a factor.

    With r = a₁c₁/a₂ the left factor's c₁ is (a₂/a₁)·r and the right one's b₂ is
    r·(d₁/d₂); r is what remains to be summed over.
    """
    a1, b1, c1, d1 = left.shape
    a2, _, c2, d2 = right.shape
    t, s, r = a2 // a1, d1 // d2, a1 * c1 // a2
    product = jnp.einsum(
        "ijtrsk,itrslk->ijstlk",
        left.reshape(a1, b1, t, r, s, d2),
        right.reshape(a1, t, r, s, c2, d2),
        precision=precision,
    )
    shape = (Pattern(*left.shape) @ Pattern(*right.shape)).shape
    return product.reshape(shape)
