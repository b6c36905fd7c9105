"""Plain functions on the factors of a chain: products, transposes, dense matrices.

`factors` is everywhere a sequence of arrays, one per factor, each of the shape
(a, b, c, d) of its pattern, in the order of the matrix product W = K₁K₂…K_L.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from butterjax.numerics import accumulation_dtype
from butterjax.pattern import Chain, Pattern


def transpose(factors: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Factors of Wᵀ = K_Lᵀ…K₁ᵀ, of shapes (a, c, b, d)."""
    return tuple(jnp.swapaxes(factor, 1, 2) for factor in reversed(factors))


def conjugate(factors: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Factors of the complex conjugate of W, entry by entry."""
    return tuple(jnp.conj(factor) for factor in factors)


def adjoint(factors: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Factors of the conjugate transpose of W."""
    return conjugate(transpose(factors))


def fuse(
    factors: Sequence[jax.Array],
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
    """
    chain = Chain.of(factors)
    chain.fuse(partition)  # Raises where a run has no pattern.
    multiply = functools.partial(_product, precision=precision)
    fused = []
    rest = list(factors)
    for run in chain.runs(partition):
        taken, rest = rest[: len(run)], rest[len(run) :]
        dtype = jnp.result_type(*taken)
        wide = [factor.astype(accumulation_dtype(dtype, dtype)) for factor in taken]
        fused.append(functools.reduce(multiply, wide).astype(dtype))
    return tuple(fused)


def to_dense(
    factors: Sequence[jax.Array], *, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """The matrix W = K₁K₂…K_L.

    Args:
      factors: arrays of shapes (a, b, c, d).
      precision: as in `jax.lax.dot_general`.

    Returns:
      Array of shape (out_features, in_features).

    Raises:
      ValueError: if neighbouring factors disagree on their inner size.
    """
    fused = fuse(factors, _longest_runs(Chain.of(factors)), precision=precision)
    dtype = jnp.result_type(*fused)
    dense = _factor_to_dense(fused[-1].astype(accumulation_dtype(dtype, dtype)))
    for factor in reversed(fused[:-1]):
        dense = apply_factor(
            dense,
            factor,
            axis=0,
            precision=precision,
            preferred_element_type=dense.dtype,
        )
    return dense.astype(dtype)


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
