"""From a dense matrix to a chain, with bounds on the error.

The hierarchical algorithm with orthonormalisation of Le, Zheng, Riccietti and
Gribonval, "Butterfly factorization with error guarantees" (arXiv 2411.04506).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from butterjax import array_checks, checks, hierarchy
from butterjax.factors import to_dense
from butterjax.hierarchy import Order, norm
from butterjax.junctions import Merged, merge_redundant
from butterjax.numerics import accumulation_dtype, tolerance
from butterjax.pattern import Chain, Pattern


class Factorization(NamedTuple):
    """A chain that approximates a matrix W, and how well.

    Attributes:
      factors: arrays of shapes (*batch, a, b, c, d), in the order of the product.
      error: ‖W - K₁K₂…K_L‖ / ‖W‖ in the Frobenius norm, as computed from these
        factors; 0 for W = 0. Shape (*batch,), real.
      bounds: (lower, upper), of the same shape. No factors of this chain whatever have
        an error below `lower`; in exact arithmetic that of these is at most `upper`.
    """

    factors: tuple[jax.Array, ...]
    error: jax.Array
    bounds: tuple[jax.Array, jax.Array]


def factorize(
    matrix: ArrayLike,
    chain: Chain,
    *,
    order: Order = "left_to_right",
    refine_steps: int = 0,
) -> Factorization:
    """Approximates a matrix by a chain of factors.

    The matrix is cut in two by the best two-factor product, which singular value
    decompositions of its blocks give, then each part is cut in the same way; before a
    cut all other parts are made orthonormal, so that errors in a part are errors in
    the whole. A matrix that is a product of such a chain comes back exactly, but for
    rounding; so does the best approximation by two factors.

    What `bounds` says: let E_s be the least error of two factors that are cut at s,
    K₁…K_s and K_{s+1}…K_L multiplied out. A chain is such a product for any s, so
    lower = max E_s bounds the error of all chains. With F the share of W outside the
    support of the product, which no chain reaches, let e_s² = E_s² - F². The upper
    bound is sqrt(F² + Σ e_s²), at most sqrt(Σ E_s²), for order="left_to_right" and for
    two or three factors. In the other order the errors of a cut and of the parts on
    its sides are not orthogonal where both parts are cut again: there they are added,
    not their squares; there are matrices whose error exceeds sqrt(Σ E_s²). Cuts inside
    redundant pairs are left out of both bounds: they add nothing. Nor is rounding in
    them: where they are about as small as `butterjax.numerics.tolerance`, or factors
    are rounded to 16 bits, `error` can lie above.

    Works under jit (`chain`, `order` and `refine_steps` static), vmap and in all dtypes
    of `butterjax.butterfly`; those of 16 bits are computed in float32. Gradients are
    those of `jnp.linalg.svd`, undefined where singular values coincide. Redundant pairs
    of factors, whose product can be any matrix of its pattern, are found as one factor
    and then split; weights that they have to spare are zeros.

    A float32 matrix of 4096 × 4096 takes seconds on two CPU cores, and memory for 5
    (two factors) to 15 (twelve) such matrices. Set OPENBLAS_NUM_THREADS=1 where other
    processes keep the processors busy: the decomposition of blocks of 64 × 64 by more
    threads then takes ten times as long.

    Args:
      matrix: (*batch, out_features, in_features), each factorised on its own.
      chain: a chainable chain, out_features × in_features.
      order: where to cut first: "left_to_right" after the first factor, then the
        second, and so on, or "balanced" in the middle, then each half in its middle.
      refine_steps: steps of L-BFGS (optax) on the error from there. The best factors
        met are kept, so the bounds still hold.

    Returns:
      The factors, their relative error and its bounds. Before refinement all factors
      but one have blocks with orthonormal columns or rows.

    Raises:
      TypeError: if `matrix` is no array of a supported dtype, or another argument is
        of another kind.
      ValueError: if the shape of `matrix` does not end in (out_features, in_features),
        it holds NaN or infinity (checked outside of jit; inside they propagate), the
        chain is not chainable, or an option is out of range.
      ImportError: if `refine_steps` is not 0 and optax is not installed.
    """
    array_checks.chain("factorize", "chain", chain)
    if reason := chain.why_not_chainable():
        raise ValueError(f"factorize: chain must be chainable, got {reason}")
    checks.choice("factorize", "order", order, ("balanced", "left_to_right"))
    steps = checks.integer("factorize", "refine_steps", refine_steps, least=0)
    array = _matrix("factorize", matrix)
    size = (chain.out_features, chain.in_features)
    if array.shape[-2:] != size:
        raise ValueError(
            f"factorize: matrix must have a shape that ends in {size}, the out- and "
            f"in-features of the chain, got shape {array.shape}"
        )
    if steps:
        _optax()
    return _factorize(array, chain, order, steps)


@dataclasses.dataclass(frozen=True, eq=False)
class ChainFit:
    """A chain, and the factors with which it approximates a matrix.

    Attributes:
      chain: the patterns.
      factors: arrays of shapes (a, b, c, d).
      error: relative, in the Frobenius norm.
      bounds: see `Factorization`.
    """

    chain: Chain
    factors: tuple[jax.Array, ...]
    error: float
    bounds: tuple[float, float]

    @property
    def num_weights(self) -> int:
        """Weights of all factors together."""
        return self.chain.num_weights


def best_chain(
    matrix: ArrayLike, *, budget: int | None = None, order: Order = "left_to_right"
) -> tuple[ChainFit, ...]:
    """What error chains of which size reach for a matrix.

    Tries `Chain.from_shape` for every number of factors from two on (`Chain.monarch` is
    the first, `Chain.square_dyadic` the last, for powers of two), and each of these
    with inner sizes 1, 2, 4, ... times as large. Compiles a program for each: seconds.

    Args:
      matrix: (out_features, in_features).
      budget: the most weights a chain may have; None for fewer than the matrix has.
      order: as in `factorize`.

    Returns:
      The front, smallest chain first: every next one has more weights and a smaller
      error. Errors at the level of rounding count as none.

    Raises:
      TypeError: if `matrix` is traced, or no array of a supported dtype.
      ValueError: if it has not two axes or is not finite, or no chain of that shape has
        at most `budget` weights.
    """
    if isinstance(matrix, jax.core.Tracer):
        raise TypeError(
            "best_chain: matrix must be an array whose values are known, got one that "
            f"is traced, {checks.shown(matrix)}: errors decide which chains it returns"
        )
    array = _matrix("best_chain", matrix)
    if array.ndim != 2:
        raise ValueError(
            f"best_chain: matrix must have two axes, got shape {array.shape}"
        )
    out_features, in_features = array.shape
    if budget is None:
        most = out_features * in_features - 1
    else:
        most = checks.integer("best_chain", "budget", budget, least=1)
    chains = _chains_of_size(in_features, out_features)
    tried = sorted((c for c in chains if c.num_weights <= most), key=_size)
    if not tried:
        smallest = min((c.num_weights for c in chains), default=None)
        raise ValueError(
            f"best_chain: budget={budget} must allow a chain of {in_features} -> "
            f"{out_features} with at most {most} weights; "
            + (f"the least is {smallest}" if smallest else "the sizes do not split")
        )
    front: list[ChainFit] = []
    least = float("inf")
    for chain in tried:
        factors, error, (lower, upper) = factorize(array, chain, order=order)
        fit = ChainFit(chain, factors, float(error), (float(lower), float(upper)))
        if fit.error < least:
            if front and front[-1].num_weights == fit.num_weights:
                front.pop()
            front.append(fit)
            least = fit.error
        if least < tolerance(array.dtype, 2 * len(chain)):
            break
    return tuple(front)


def _size(chain: Chain) -> int:
    return chain.num_weights


def _chains_of_size(in_features: int, out_features: int) -> tuple[Chain, ...]:
    """Chains of every number of factors and rank whose product is a full matrix."""
    found: list[Chain] = []
    for length in range(2, 32):
        try:
            made = Chain.from_shape(in_features, out_features, num_factors=length)
        except ValueError:  # Sizes that do not split that way.
            break
        rank = 1
        while rank < min(made[0].b, made[-1].c):
            found.append(_with_rank(made, rank))
            rank *= 2
    return tuple(found)


def _with_rank(chain: Chain, rank: int) -> Chain:
    """The chain with inner sizes that are so many times as large."""
    last = len(chain) - 1
    return Chain(
        (a, b * (rank if i else 1), c * (rank if i < last else 1), d)
        for i, (a, b, c, d) in enumerate(chain)
    )


def _matrix(function: str, matrix: ArrayLike) -> jax.Array:
    """The argument as an array of at least two axes, finite if its values are known."""
    array = array_checks.array(function, "matrix", matrix)
    array_checks.operands_dtype(function, "matrix", array)
    if array.ndim < 2 or 0 in array.shape[-2:]:
        raise ValueError(
            f"{function}: matrix must have the shape (*batch, out_features, "
            f"in_features), got shape {array.shape}"
        )
    if not isinstance(array, jax.core.Tracer):
        strange = int(jnp.sum(~jnp.isfinite(array)))
        if strange:
            raise ValueError(
                f"{function}: matrix must be finite, got {strange} entries of NaN or "
                f"infinity in {checks.shown(array)}"
            )
    return array


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _factorize(
    matrix: jax.Array, chain: Chain, order: Order, steps: int
) -> Factorization:
    one = functools.partial(_factorize_one, chain=chain, order=order, steps=steps)
    for _ in matrix.shape[:-2]:
        one = jax.vmap(one)
    return one(matrix)


def _factorize_one(
    matrix: jax.Array, *, chain: Chain, order: Order, steps: int
) -> Factorization:
    """`factorize` of one matrix."""
    dtype = matrix.dtype
    wide = matrix.astype(accumulation_dtype(dtype, dtype))
    # Squares of entries must neither overflow nor vanish; a power of two is exact.
    largest = jnp.max(jnp.abs(wide))
    exponent = jnp.frexp(largest)[1] - 1
    scaled = wide * jnp.ldexp(jnp.ones_like(largest), -exponent)
    merged = merge_redundant(chain)
    short = Chain(part.pattern for part in merged)
    found = hierarchy.cut(_on_support(scaled, short.product), short, order)
    factors = found.factors
    if steps:
        factors = _refined(scaled, factors, steps)
    size = norm(scaled)
    rounded = [factor.astype(dtype).astype(wide.dtype) for factor in factors]
    achieved = norm(scaled - to_dense(rounded, precision="highest"))
    outside = norm(_off_support(scaled, short.product))
    lower = jnp.hypot(outside, jnp.max(jnp.stack([*found.errors, 0 * size])))
    upper = jnp.hypot(
        outside, hierarchy.upper_bound(0, len(short), found.errors, order)
    )
    back = jnp.ldexp(jnp.ones_like(largest), exponent)
    unscaled = [
        (factor * back if i == found.center else factor).astype(dtype)
        for i, factor in enumerate(factors)
    ]
    expanded = _expanded(merged, unscaled)
    error, lower, upper = (_ratio(x, size) for x in (achieved, lower, upper))
    return Factorization(expanded, error, (lower, upper))


def _expanded(
    merged: Sequence[Merged], factors: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    pairs = zip(merged, factors, strict=True)
    return tuple(one for part, factor in pairs for one in part.expand(factor))


def _on_support(matrix: jax.Array, pattern: Pattern) -> jax.Array:
    """The entries of a matrix on a pattern, as a factor."""
    a, b, c, d = pattern
    same_a = jnp.diagonal(matrix.reshape(a, b, d, a, c, d), axis1=0, axis2=3)
    return jnp.diagonal(same_a, axis1=1, axis2=3).transpose(2, 0, 1, 3)


def _off_support(matrix: jax.Array, pattern: Pattern) -> jax.Array:
    """The matrix with zeros on a pattern."""
    a, b, c, d = pattern
    if a * d == 1:
        return jnp.zeros(0, matrix.dtype)
    same = np.eye(a, dtype=bool)[:, None, None, :, None, None]
    same = same & np.eye(d, dtype=bool)[None, None, :, None, None, :]
    return jnp.where(same, 0, matrix.reshape(a, b, d, a, c, d))


def _refined(
    target: jax.Array, factors: tuple[jax.Array, ...], steps: int
) -> tuple[jax.Array, ...]:
    """The best factors met in so many steps of L-BFGS on the squared error."""
    optax = _optax()
    is_complex = jnp.issubdtype(target.dtype, jnp.complexfloating)
    size = norm(target)

    def loss(parts: Sequence[tuple[jax.Array, ...]]) -> jax.Array:
        made = [jax.lax.complex(*part) if is_complex else part[0] for part in parts]
        residual = target - to_dense(made, precision="highest")
        return _ratio(norm(residual), size) ** 2

    # Of the line searches this one compiles fast.
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=20, store_grad=True
    )
    optimizer = optax.lbfgs(linesearch=search)
    value_and_grad = jax.value_and_grad(loss)
    start = [(f.real, f.imag) if is_complex else (f,) for f in factors]

    def step(carry, _):  # type: ignore[no-untyped-def]
        params, state, best, least = carry
        value, grad = value_and_grad(params)
        better = value < least
        keep = functools.partial(jnp.where, better)
        best = jax.tree.map(keep, params, best)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
        return (params, state, best, jnp.minimum(value, least)), None

    first = (start, optimizer.init(start), start, loss(start))
    (params, _, best, least), _ = jax.lax.scan(step, first, None, length=steps)
    last = functools.partial(jnp.where, loss(params) < least)
    best = jax.tree.map(last, params, best)
    return tuple(jax.lax.complex(*part) if is_complex else part[0] for part in best)


def _optax():  # type: ignore[no-untyped-def]
    try:
        import optax
    except ImportError as error:
        raise ImportError(
            "factorize: refine_steps needs optax: pip install 'butterjax[benchmarks]'"
        ) from error
    return optax


def _ratio(value: jax.Array, size: jax.Array) -> jax.Array:
    """The value relative to a norm; 0 where there is nothing to be relative to."""
    return jnp.where(size == 0, 0, value / jnp.where(size == 0, 1, size))
