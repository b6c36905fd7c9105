"""What is run: a chain on random input, forward or with its gradients."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

import butterjax as bj
from benchmarks.units import Count

Layout = Literal["feature_last", "feature_first"]
Direction = Literal["forward", "forward+backward"]
LAYOUTS: dict[Layout, Literal[0, -1]] = {"feature_last": -1, "feature_first": 0}
DIRECTIONS: tuple[Direction, ...] = ("forward", "forward+backward")
DTYPES = ("float32", "bfloat16", "float16")
DENSE_LAYER = bj.planning.DENSE_LAYER


@dataclasses.dataclass(frozen=True)
class Workload:
    """One case of a benchmark.

    Attributes:
      case: the chain as the flag spelt it.
      chain: patterns (a, b, c, d), in the order of the matrix product.
      batch: rows of x.
      dtype: of x and of the factors.
      layout: "feature_last" for x (batch, features), or "feature_first".
      direction: "forward" or "forward+backward".
    """

    case: str
    chain: bj.Chain
    batch: Count
    dtype: str
    layout: Layout
    direction: Direction

    @property
    def name(self) -> str:
        """All that tells workloads apart, in one word."""
        case = self.case.replace(" ", "")
        return f"{case}/{self.batch}/{self.dtype}/{self.layout}/{self.direction}"

    @property
    def axis(self) -> Literal[0, -1]:
        """The feature axis of x and y."""
        return LAYOUTS[self.layout]

    @property
    def floor_bytes(self) -> int:
        """Bytes of x, the factors and y."""
        ends = self.chain.in_features + self.chain.out_features
        itemsize = jnp.dtype(self.dtype).itemsize
        return itemsize * self.batch * ends + self.weight_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the factors."""
        return jnp.dtype(self.dtype).itemsize * self.chain.num_weights

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the matrix of a dense layer of the same size."""
        size = self.chain.in_features * self.chain.out_features
        return jnp.dtype(self.dtype).itemsize * size


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arrays for a workload, of its dtype, or only their shapes.

    Attributes:
      x: (batch, in_features), or (in_features, batch) where features come first.
      factors: arrays (a, b, c, d).
      kernel: weights of a dense layer of the same size, (in, out) where features
        come last, (out, in) where they come first: the order each layout wants. None
        where that layer is left out.
      dy: gradient of the result.
    """

    x: Any
    factors: tuple[Any, ...]
    kernel: Any
    dy: Any


def draw(workload: Workload, seed: int, *, has_kernel: bool = True) -> Inputs:
    """Standard normal x and dy, weights that keep the variance, on the device.

    Args:
      workload: the case.
      seed: of the random numbers.
      has_kernel: whether to draw the weights of a dense layer; they may be large.
    """
    x_key, factors_key, kernel_key, dy_key = jax.random.split(jax.random.key(seed), 4)
    chain, empty = workload.chain, shapes(workload)

    def one(key: jax.Array, like: jax.ShapeDtypeStruct, fan_in: int = 1) -> jax.Array:
        (array,) = _normal(key, (like.shape,), (fan_in,), workload.dtype)
        return array

    fans_in = tuple(pattern.c for pattern in chain)
    return Inputs(
        x=one(x_key, empty.x),
        factors=_normal(factors_key, chain.shapes, fans_in, workload.dtype),
        kernel=one(kernel_key, empty.kernel, chain.in_features) if has_kernel else None,
        dy=one(dy_key, empty.dy),
    )


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(
    key: jax.Array,
    shapes: tuple[tuple[int, ...], ...],
    fans_in: tuple[int, ...],
    dtype: str,
) -> tuple[jax.Array, ...]:
    """Arrays of these shapes, of variance one over the fan-in."""
    sizes = [math.prod(shape) for shape in shapes]
    # One draw for all: XLA takes its time to compile each.
    parts = jnp.split(
        jax.random.normal(key, (sum(sizes),)), list(accumulate(sizes))[:-1]
    )
    return tuple(
        (part.reshape(shape) / math.sqrt(fan_in)).astype(dtype)
        for part, shape, fan_in in zip(parts, shapes, fans_in, strict=True)
    )


def shapes(workload: Workload) -> Inputs:
    """Shapes and dtypes of what `draw` gives."""
    chain, batch = workload.chain, workload.batch

    def matrix(rows: int, columns: int) -> jax.ShapeDtypeStruct:
        shape = (columns, rows) if workload.axis == 0 else (rows, columns)
        return jax.ShapeDtypeStruct(shape, workload.dtype)

    return Inputs(
        x=matrix(batch, chain.in_features),
        factors=tuple(
            jax.ShapeDtypeStruct(shape, workload.dtype) for shape in chain.shapes
        ),
        kernel=matrix(chain.in_features, chain.out_features),
        dy=matrix(batch, chain.out_features),
    )


def program(
    workload: Workload, implementation: str | None, inputs: Inputs
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function to run, and the inputs that it takes.

    Args:
      workload: the case.
      implementation: as in `butterjax.butterfly`, or `DENSE_LAYER`.
      inputs: of `draw` or `shapes`.

    Returns:
      A function of arrays alone, that returns y and, for "forward+backward", the
      gradients of Σ y·dy in x and in the weights; and its arguments.
    """
    function: Callable[..., jax.Array]
    if implementation == DENSE_LAYER:
        function = _dense_layer(workload)
    else:
        function = functools.partial(
            bj.butterfly, axis=workload.axis, implementation=implementation
        )
    return with_direction(
        workload, function, inputs, dense_layer=implementation == DENSE_LAYER
    )


def with_direction(
    workload: Workload,
    function: Callable[..., jax.Array],
    inputs: Inputs,
    *,
    dense_layer: bool = False,
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """As `program`, for any function of x and the factors, or x and the kernel."""
    weights = inputs.kernel if dense_layer else inputs.factors
    arguments: tuple[Any, ...] = (inputs.x, weights)
    if workload.direction == "forward+backward":
        function, arguments = with_gradients(function), (inputs.dy, *arguments)
    return function, arguments


def _dense_layer(workload: Workload) -> Callable[..., jax.Array]:
    return _feature_first_product if workload.axis == 0 else jnp.matmul


def _feature_first_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return kernel @ x


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """A function of dy and the arguments, of y and the gradients of Σ y·dy in these."""

    def run(dy: jax.Array, *arguments: Any) -> Any:
        y, pull_back = jax.vjp(function, *arguments)
        return y, *pull_back(dy)

    return run


def truth(
    workload: Workload,
    inputs: Inputs,
    *,
    dense_layer: bool,
    vectors: slice = slice(None),
) -> list[jax.Array]:
    """The outputs in float64, of the dense layer or of the chain.

    The chain is applied by `definition`.

    Args:
      workload: the case.
      inputs: of `draw`.
      dense_layer: which of the two.
      vectors: of x and y to take, forward; gradients are sums over all of them.
    """
    formula = functools.partial(definition, axis=workload.axis)
    few = dataclasses.replace(inputs, x=take(workload, inputs.x, vectors))
    function, arguments = with_direction(
        workload,
        _dense_layer(workload) if dense_layer else formula,
        few,
        dense_layer=dense_layer,
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arguments)
        return jax.tree.leaves(jax.jit(function)(*wide))


def take(workload: Workload, x: jax.Array, vectors: slice) -> jax.Array:
    """Some of the vectors of x, or of y."""
    return x[vectors] if workload.axis == -1 else x[:, vectors]


def definition(
    x: jax.Array, factors: tuple[jax.Array, ...], *, axis: Literal[0, -1]
) -> jax.Array:
    """A chain by its definition: y[i,j,k] = Σ_l w[i,j,l,k] · x[i,l,k]."""
    for w in reversed(factors):
        a, b, c, d = w.shape
        if axis == -1:
            x = jnp.einsum("ijlk,nilk->nijk", w, x.reshape(-1, a, c, d))
            x = x.reshape(-1, a * b * d)
        else:
            x = jnp.einsum("ijlk,ilkn->ijkn", w, x.reshape(a, c, d, -1))
            x = x.reshape(a * b * d, -1)
    return x


def worst_error(outputs: Any, expected: Sequence[ArrayLike]) -> float:
    """Largest relative Frobenius error of an output; infinite where not finite."""
    worst = 0.0
    with jax.enable_x64(True):
        for actual, exact in zip(jax.tree.leaves(outputs), expected, strict=True):
            error = float(_relative_error(actual, exact))
            worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


@jax.jit
def _relative_error(actual: jax.Array, exact: jax.Array) -> jax.Array:
    difference = actual.astype(jnp.float64) - exact
    return jnp.linalg.norm(difference) / jnp.linalg.norm(exact)
