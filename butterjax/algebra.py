"""Linear algebra of chains: inverses, determinants, traces, norms, products, sums.

`factors` is everywhere as in `butterjax.factors`: a sequence of arrays of shapes
(a, b, c, d), in the order of the matrix product W = K₁K₂…K_L. All functions are pure,
of real and of complex factors, and work under jit, vmap and grad. No n × n matrix is
formed. What is computed of float16 and bfloat16 is computed in float32: chains come
back in their own dtype, numbers in float32.

All of them raise TypeError where `factors` is no sequence of arrays of numbers, and
ValueError where it is empty, an array has not four axes, or neighbours disagree on
their inner size. Other errors are told with each function.
"""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from butterjax import array_checks, checks
from butterjax.apply import butterfly
from butterjax.factors import fuse, transpose
from butterjax.links import Link, LinkLike, features
from butterjax.numerics import accumulation_dtype
from butterjax.pattern import Chain, Pattern

Factors = tuple[jax.Array, ...]
_COLUMNS = 256  # Of the identity that are multiplied at a time.


class Slogdet(NamedTuple):
    """Sign and logarithm of a determinant, as of `jnp.linalg.slogdet`.

    det W = sign · exp(logabsdet); both are arrays of shape ().
    """

    sign: jax.Array
    logabsdet: jax.Array


def inverse(factors: Iterable[ArrayLike]) -> Factors:
    """Factors of W⁻¹ = K_L⁻¹…K₁⁻¹, of the patterns of W in reverse order.

    Args:
      factors: arrays with b = c. A singular block gives inf or NaN, as in
        `jnp.linalg.inv`.

    Raises:
      ValueError: if a factor has b ≠ c. `butterjax.fuse` may make square blocks of
        several factors.
      TypeError: if the factors are of integers.
    """
    arrays, dtype = _square("inverse", "factors", factors)
    inverted = (_of_blocks(jnp.linalg.inv, factor) for factor in reversed(arrays))
    return tuple(factor.astype(dtype) for factor in inverted)


def slogdet(factors: Iterable[ArrayLike]) -> Slogdet:
    """Sign (or phase) and log of the absolute value of det W.

    Rows and columns of a factor with b = c are permuted alike to bring out its blocks,
    so its determinant is the product of theirs.

    Args:
      factors: arrays with b = c.

    Raises:
      ValueError: if a factor has b ≠ c.
      TypeError: if the factors are of integers.
    """
    arrays, dtype = _square("slogdet", "factors", factors)
    sign = jnp.ones((), dtype=accumulation_dtype(dtype, dtype))
    logabsdet = jnp.zeros((), dtype=sign.real.dtype)
    for factor in arrays:
        signs, logs = jnp.linalg.slogdet(jnp.moveaxis(factor, 3, 1))
        sign, logabsdet = sign * signs.prod(), logabsdet + logs.sum()
    return Slogdet(sign, logabsdet)


def trace(
    factors: Iterable[ArrayLike], *, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """The trace of W, exact but for rounding.

    The chain is multiplied out into two factors, where it can be cut into two chainable
    runs, and the trace is summed over the entries that one support shares with the
    transpose of the other: for radix 2 that is about n^1.5 weights and as much work.
    Any other chain is applied to the n columns of the identity, 256 at a time.

    Args:
      factors: arrays of a chain with as many in- as out-features.
      precision: as in `jax.lax.dot_general`.

    Returns:
      Array of shape ().

    Raises:
      ValueError: if W is not square, or `precision` is unknown.
      TypeError: if the factors are of integers.
    """
    arrays, _ = _operands("trace", "factors", factors)
    array_checks.precision("trace", precision)
    chain = Chain.of(arrays)
    if chain.in_features != chain.out_features:
        raise ValueError(
            "trace: factors must make a square matrix, got one of shape "
            f"({chain.out_features}, {chain.in_features})"
        )
    if len(arrays) == 1:
        return jnp.einsum("ijjk->", arrays[0])
    if partition := _two_runs(chain):
        return _trace_of_two(*fuse(arrays, partition, precision=precision))

    def diagonal(columns: jax.Array, images: jax.Array) -> jax.Array:
        return (images * columns).sum()

    return _sum_over_columns(diagonal, arrays, precision)


def frobenius_norm(
    factors: Iterable[ArrayLike], *, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """The Frobenius norm of W, exact but for rounding.

    Of a chainable chain the Gram matrices of the products K₁, K₁K₂, … are carried from
    factor to factor, no more of them than the next product needs: r × r blocks, with r
    the rank that two neighbours share (1 for radix 2). Any other chain is applied to
    the n columns of the identity, 256 at a time.

    Args:
      factors: arrays of shapes (a, b, c, d).
      precision: as in `jax.lax.dot_general`.

    Returns:
      Array of shape (), real.

    Raises:
      ValueError: if `precision` is unknown.
      TypeError: if the factors are of integers.
    """
    arrays, _ = _operands("frobenius_norm", "factors", factors)
    array_checks.precision("frobenius_norm", precision)
    chain = Chain.of(arrays)
    if chain.is_chainable:
        return jnp.sqrt(_sum_of_squares(arrays, precision))

    def squares(columns: jax.Array, images: jax.Array) -> jax.Array:
        return (images * images.conj()).real.sum()

    return jnp.sqrt(_sum_over_columns(squares, arrays, precision))


def spectral_norm(
    factors: Iterable[ArrayLike],
    key: ArrayLike,
    *,
    num_steps: int = 32,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """The largest singular value of W, estimated from below by power iteration.

    The relative error falls as (σ₂/σ₁)^(4·num_steps). The vector v that the steps find
    is a constant to derivatives: those of ‖W v‖ tend to those of the norm.

    Args:
      factors: arrays of shapes (a, b, c, d).
      key: a PRNG key, for the vector to start from.
      num_steps: multiplications by W*W, at least 1.
      precision: as in `jax.lax.dot_general`.

    Returns:
      Array of shape (), real.

    Raises:
      ValueError: if `num_steps` is below 1, or `precision` is unknown.
      TypeError: if the factors are of integers, `key` is no key or `num_steps` no
        integer.
    """
    arrays, _ = _operands("spectral_norm", "factors", factors)
    key = array_checks.key("spectral_norm", "key", key)
    num_steps = checks.integer("spectral_norm", "num_steps", num_steps, least=1)
    array_checks.precision("spectral_norm", precision)
    apply = functools.partial(butterfly, precision=precision)
    fixed = jax.lax.stop_gradient(arrays)
    adjoint = tuple(factor.conj() for factor in transpose(fixed))

    def unit(v: jax.Array) -> jax.Array:
        length = jnp.linalg.norm(v)
        return v / jnp.where(length > 0, length, 1)

    def step(_: jax.Array, v: jax.Array) -> jax.Array:
        return unit(apply(unit(apply(v, fixed)), adjoint))

    n = Chain.of(arrays).in_features
    start = unit(jax.random.normal(key, (n,), arrays[0].dtype))
    v = jax.lax.fori_loop(0, num_steps, step, start)
    return jnp.linalg.norm(apply(v, arrays))


def product(left: Iterable[ArrayLike], right: Iterable[ArrayLike]) -> Factors:
    """Factors of W V: those of W, then those of V, which touch x first.

    Args:
      left: factors of W.
      right: factors of V.

    Raises:
      ValueError: if W takes another number of features than V gives.
    """
    first = _checked("product", "left", left)
    second = _checked("product", "right", right)
    taken, given = Chain.of(first).in_features, Chain.of(second).out_features
    if taken != given:
        raise ValueError(
            f"product: left must take as many features as right gives, {given}; it "
            f"takes {taken}"
        )
    return first + second


@overload
def kron(left: Iterable[ArrayLike], right: Iterable[ArrayLike]) -> Factors: ...
@overload
def kron(left: Iterable[LinkLike], right: Iterable[LinkLike]) -> tuple[Link, ...]: ...
def kron(left: Iterable[LinkLike], right: Iterable[LinkLike]) -> tuple[Link, ...]:
    """Factors of the Kronecker product W ⊗ V = (W ⊗ I)(I ⊗ V).

    A factor (a, b, c, d) of W becomes (a, b, c, d·q) and one of V (a·p, b, c, d), with
    q the out-features of V and p the in-features of W: weights are repeated q and p
    times. The chain is chainable if both are.

    Args:
      left: factors of W, `Permutation`s and `Diagonal`s among them.
      right: factors of V, and such links.
    """
    first, second = (
        tuple(itertools.chain(*array_checks.links("kron", links, name)))
        for name, links in (("left", left), ("right", right))
    )
    (_, p), (q, _) = features(first[-1]), features(second[0])
    return (
        *(_repeated(link, 1, q) for link in first),
        *(_repeated(link, p, 1) for link in second),
    )


def _repeated(link: Link, before: int, after: int) -> Link:
    """I_before ⊗ W ⊗ I_after."""
    if not isinstance(link, jax.Array):
        return link.repeated(before, after)
    return jnp.tile(jnp.repeat(link, after, axis=3), (before, 1, 1, 1))


def block_diagonal(*chains: Iterable[ArrayLike]) -> Factors:
    """Factors of the block-diagonal matrix of W₁, W₂, …

    The i-th factors of all chains, (a₁, b, c, d), (a₂, b, c, d), …, become one of
    pattern (a₁ + a₂ + …, b, c, d).

    Args:
      *chains: the factors of each of the matrices, at least of one.

    Raises:
      ValueError: if there is no chain, they are not equally long, or the i-th factors
        differ in b, c or d, so that no one pattern holds them.
    """
    return _joined("block_diagonal", _chains("block_diagonal", chains))


def vstack(*chains: Iterable[ArrayLike]) -> Factors:
    """Factors of the matrices W₁, W₂, … above one another.

    That is their block-diagonal matrix times identities above one another: a last
    factor (1, m, 1, n) of ones for m matrices of n columns, an entry of which is a
    weight like any other. Where a = 1 in the last factors, these take it in, as one
    factor (1, b·m, c, d).

    Args:
      *chains: the factors of each of the matrices, at least of one.

    Raises:
      ValueError: if the matrices differ in columns, or `block_diagonal` raises.
    """
    every = _chains("vstack", chains)
    widths = [Chain.of(one).in_features for one in every]
    _check_equal("vstack", "columns", widths)
    *others, last = _joined("vstack", every)
    m, b, c, d = last.shape
    if all(one[-1].shape[0] == 1 for one in every):
        return (*others, last.reshape(1, m * b, c, d))
    return (*others, last, jnp.ones((1, len(every), 1, widths[0]), last.dtype))


def hstack(*chains: Iterable[ArrayLike]) -> Factors:
    """Factors of the matrices W₁, W₂, … side by side.

    The transpose of `vstack`: a first factor (1, 1, m, n) of ones for m matrices of n
    rows, or, where a = 1 in the first factors, these as one factor (1, b, c·m, d).

    Args:
      *chains: the factors of each of the matrices, at least of one.

    Raises:
      ValueError: if the matrices differ in rows, or `block_diagonal` raises.
    """
    every = _chains("hstack", chains)
    heights = [Chain.of(one).out_features for one in every]
    _check_equal("hstack", "rows", heights)
    first, *others = _joined("hstack", every)
    m, b, c, d = first.shape
    if all(one[0].shape[0] == 1 for one in every):
        return (jnp.swapaxes(first, 0, 1).reshape(1, b, m * c, d), *others)
    return (jnp.ones((1, 1, len(every), heights[0]), first.dtype), first, *others)


def cayley(parameters: Iterable[ArrayLike]) -> Factors:
    """Orthogonal (or unitary) factors by the Cayley transform, block by block.

    A block P of free parameters gives Q = (I + S)⁻¹(I − S) with S = P − P*. Zeros give
    the identity; no Q has the eigenvalue -1, so its determinant is 1 if it is real.

    Args:
      parameters: arrays with b = c, one for each factor.

    Returns:
      Factors of the same shapes; their blocks and their product are orthogonal, or
      unitary if they are complex.

    Raises:
      ValueError: if an array has b ≠ c.
      TypeError: if the arrays are of integers.
    """

    def orthogonal(skew: jax.Array) -> jax.Array:
        one = jnp.eye(skew.shape[-1], dtype=skew.dtype)
        return jnp.linalg.solve(one + skew, one - skew)

    return _orthogonal("cayley", parameters, orthogonal)


def matrix_exponential(parameters: Iterable[ArrayLike]) -> Factors:
    """Orthogonal (or unitary) factors by the matrix exponential, block by block.

    A block P of free parameters gives Q = exp(P − P*). Zeros give the identity; every
    real Q of determinant 1 and every unitary one can be had.

    Args:
      parameters: arrays with b = c, one for each factor.

    Returns:
      Factors of the same shapes; their blocks and their product are orthogonal, or
      unitary if they are complex.

    Raises:
      ValueError: if an array has b ≠ c.
      TypeError: if the arrays are of integers.
    """
    return _orthogonal("matrix_exponential", parameters, jax.scipy.linalg.expm)


def _checked(function: str, name: str, factors: Iterable[ArrayLike]) -> Factors:
    """The factors as arrays that follow one another."""
    arrays = array_checks.factors(function, factors, name)
    Chain.of(arrays)  # Raises where two neighbours disagree.
    return arrays


def _chains(
    function: str, chains: Iterable[Iterable[ArrayLike]]
) -> tuple[Factors, ...]:
    every = tuple(
        _checked(function, f"chains[{i}]", one) for i, one in enumerate(chains)
    )
    if not every:
        raise ValueError(f"{function}: chains must be one or more, got none")
    return every


def _operands(
    function: str, name: str, factors: Iterable[ArrayLike]
) -> tuple[Factors, jnp.dtype]:
    """The factors in the dtype that sums are made in, and the one they have."""
    arrays = _checked(function, name, factors)
    dtype = array_checks.operands_dtype(function, name, *arrays)
    wide = accumulation_dtype(dtype, dtype)
    return tuple(factor.astype(wide) for factor in arrays), dtype


def _square(
    function: str, name: str, factors: Iterable[ArrayLike]
) -> tuple[Factors, jnp.dtype]:
    """`_operands` of square blocks."""
    arrays, dtype = _operands(function, name, factors)
    for i, factor in enumerate(arrays):
        if factor.shape[1] != factor.shape[2]:
            raise ValueError(
                f"{function}: {name}[{i}] must have square blocks, b = c, got shape "
                f"{factor.shape}"
            )
    return arrays, dtype


def _of_blocks(
    function: Callable[[jax.Array], jax.Array], factor: jax.Array
) -> jax.Array:
    """A function of square matrices (…, b, b) applied to each block of a factor."""
    return jnp.moveaxis(function(jnp.moveaxis(factor, 3, 1)), 1, 3)


def _orthogonal(
    function: str,
    parameters: Iterable[ArrayLike],
    of_skew: Callable[[jax.Array], jax.Array],
) -> Factors:
    def of_block(block: jax.Array) -> jax.Array:
        return of_skew(block - jnp.swapaxes(block, -1, -2).conj())

    arrays, dtype = _square(function, "parameters", parameters)
    return tuple(_of_blocks(of_block, factor).astype(dtype) for factor in arrays)


def _joined(function: str, chains: tuple[Factors, ...]) -> Factors:
    """The block-diagonal matrix of chains."""
    lengths = [len(one) for one in chains]
    _check_equal(function, "factors", lengths)
    joined = []
    for i, factors in enumerate(zip(*chains, strict=True)):
        if len({factor.shape[1:] for factor in factors}) > 1:
            patterns = ", ".join(str(Pattern(*factor.shape)) for factor in factors)
            raise ValueError(
                f"{function}: factors {i} of all chains must have the same b, c "
                f"and d to have one pattern together, got {patterns}"
            )
        joined.append(jnp.concatenate(factors))
    return tuple(joined)


def _check_equal(function: str, what: str, sizes: list[int]) -> None:
    if len(set(sizes)) > 1:
        raise ValueError(
            f"{function}: chains must have equally many {what}, got "
            f"{', '.join(map(str, sizes))}"
        )


def _two_runs(chain: Chain) -> tuple[int, int] | None:
    """Lengths of two chainable runs of the fewest weights, None if there are none."""
    cuts = [(left, len(chain) - left) for left in range(1, len(chain))]
    cuts = [cut for cut in cuts if all(run.is_chainable for run in chain.runs(cut))]
    return min(cuts, key=lambda cut: chain.fuse(cut).num_weights, default=None)


def _trace_of_two(left: jax.Array, right: jax.Array) -> jax.Array:
    """tr(A B) = Σ A[p, q]·B[q, p] over the entries of the smaller of the two."""
    if left.size > right.size:
        left, right = right, left
    _, b, c, d = left.shape
    _, rows, columns, width = right.shape
    i, j, l, k = (jax.lax.broadcasted_iota(int, left.shape, axis) for axis in range(4))
    p, q = (i * b + j) * d + k, (i * c + l) * d + k
    shared = (q // (rows * width) == p // (columns * width)) & (q % width == p % width)
    place = (q // width * columns + p // width % columns) * width + q % width
    other = right.reshape(-1)[place]
    # A selection, not a product: a NaN off the shared entries must not leak.
    return jnp.where(shared, left * other, 0).sum()


def _sum_of_squares(factors: Factors, precision: jax.lax.PrecisionLike) -> jax.Array:
    """‖K₁K₂…K_L‖² of a chainable chain, from Gram matrices.

    Of the product so far, with columns (i, l, r, k) for i·l the a of the next factor
    and r what that sums over, gram[il, k, r, r'] sums its rows' conj(w[r])·w[r'].
    """
    einsum = functools.partial(jnp.einsum, precision=precision)
    a, b, _, d = factors[0].shape
    # Before the first factor is the identity, with which it shares the rank b.
    gram = jnp.broadcast_to(jnp.eye(b, dtype=factors[0].dtype), (a, d, b, b))
    groups = [
        *(factor.shape[0] for factor in factors[1:]),
        factors[-1].shape[0] * factors[-1].shape[2],
    ]
    for factor, group in zip(factors, groups, strict=True):
        a, _, c, d = factor.shape
        r, s, rank = gram.shape[-1], gram.shape[1] // d, a * c // group
        weights = factor.reshape(a, r, s, group // a, rank, d)
        moved = einsum("iskrv,ivslnk->irslnk", gram.reshape(a, s, d, r, r), weights)
        gram = einsum("irslmk,irslnk->ilkmn", weights.conj(), moved)
        gram = gram.reshape(group, d, rank, rank)
    return gram.real.sum()


def _sum_over_columns(
    term: Callable[[jax.Array, jax.Array], jax.Array],
    factors: Factors,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """Sums term(columns, W columns) over the columns of the identity, some at a time.

    Columns lie along the last axis. Derivatives keep nothing of them.
    """
    n = Chain.of(factors).in_features

    @jax.checkpoint
    def of_some(start: jax.Array) -> jax.Array:
        columns = (start + jnp.arange(_COLUMNS))[:, None] == jnp.arange(n)
        columns = columns.astype(factors[0].dtype)
        return term(columns, butterfly(columns, factors, precision=precision))

    return jax.lax.map(of_some, jnp.arange(0, n, _COLUMNS)).sum()
