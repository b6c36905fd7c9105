"""What is run: a chain on random input, forward or with its gradients."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import butterjax as bj

LAYOUTS: dict[str, Literal[0, -1]] = {"feature_last": -1, "feature_first": 0}
DIRECTIONS = ("forward", "forward+backward")
DENSE_LAYER = "dense layer"


@dataclasses.dataclass(frozen=True)
class Workload:
    """One case of a benchmark; see `benchmarks.results.Row` for the fields."""

    case: str
    chain: bj.Chain
    batch: int
    dtype: str
    layout: str
    direction: str

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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random arrays for a workload, in float64.

    Attributes:
      x: (batch, in_features), or (in_features, batch) where features come first.
      factors: arrays (a, b, c, d).
      kernel: weights of a dense layer of the same size, (in, out) where features
        come last, (out, in) where they come first: the order each layout wants.
      dy: gradient of the result.
    """

    x: np.ndarray
    factors: tuple[np.ndarray, ...]
    kernel: np.ndarray
    dy: np.ndarray


def draw(workload: Workload, seed: int) -> Inputs:
    """Standard normal x and dy, weights that keep the variance."""
    rng = np.random.default_rng(seed)
    empty = shapes(workload)
    sqrt_in = np.sqrt(workload.chain.in_features)
    return Inputs(
        x=rng.standard_normal(empty.x.shape),
        factors=tuple(
            rng.standard_normal(s) / np.sqrt(s[2]) for s in workload.chain.shapes
        ),
        kernel=rng.standard_normal(empty.kernel.shape) / sqrt_in,
        dy=rng.standard_normal(empty.dy.shape),
    )


def shapes(workload: Workload) -> Inputs:
    """Inputs of zeros that take no memory, where only shapes matter."""
    chain, batch = workload.chain, workload.batch

    def zeros(*shape: int) -> np.ndarray:
        return np.broadcast_to(np.zeros(()), shape)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return zeros(columns, rows) if workload.axis == 0 else zeros(rows, columns)

    return Inputs(
        x=matrix(batch, chain.in_features),
        factors=tuple(zeros(*shape) for shape in chain.shapes),
        kernel=matrix(chain.in_features, chain.out_features),
        dy=matrix(batch, chain.out_features),
    )


def call(
    workload: Workload, implementation: str | None, inputs: Inputs, dtype: DTypeLike
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of `program`, and its arguments as arrays of the given dtype."""
    function, arguments = program(workload, implementation, inputs)
    return function, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), arguments)


def abstract_call(
    workload: Workload, implementation: str | None
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """As `call`, with only the shapes and dtypes of the arguments."""
    function, arguments = program(workload, implementation, shapes(workload))
    return function, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, workload.dtype), arguments
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
    weights: Any
    function: Callable[..., jax.Array]
    if implementation == DENSE_LAYER:
        weights = inputs.kernel
        function = _feature_first_product if workload.axis == 0 else jnp.matmul
    else:
        weights = inputs.factors
        function = functools.partial(
            bj.butterfly, axis=workload.axis, implementation=implementation
        )
    arguments: tuple[Any, ...] = (inputs.x, weights)
    if workload.direction == "forward+backward":
        function, arguments = _with_gradients(function), (inputs.dy, *arguments)
    return function, arguments


def _feature_first_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return kernel @ x


def _with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    def run(dy: jax.Array, x: jax.Array, weights: Any) -> Any:
        y, pull_back = jax.vjp(function, x, weights)
        return y, *pull_back(dy)

    return run


def truth(workload: Workload, inputs: Inputs, *, dense_layer: bool) -> list[np.ndarray]:
    """The outputs in float64, of the dense layer or of the multiplied-out chain.

    The inputs are rounded to the workload's dtype first, so that what is left of an
    error is the implementation's own.
    """
    round_off = functools.partial(np.asarray, dtype=jnp.dtype(workload.dtype))
    rounded = Inputs(
        x=round_off(inputs.x),
        factors=tuple(map(round_off, inputs.factors)),
        kernel=round_off(inputs.kernel),
        dy=round_off(inputs.dy),
    )
    dense = DENSE_LAYER if dense_layer else "dense"
    with jax.enable_x64(True):
        function, arguments = call(workload, dense, rounded, "float64")
        outputs = jax.jit(function)(*arguments)
        return list(map(np.asarray, jax.tree.leaves(outputs)))


def worst_error(outputs: Any, expected: list[np.ndarray]) -> float:
    """Largest relative Frobenius error of an output; infinite where not finite."""
    worst = 0.0
    for actual, exact in zip(jax.tree.leaves(outputs), expected, strict=True):
        wide = np.asarray(actual, np.float64)
        error = np.linalg.norm(wide - exact) / np.linalg.norm(exact)
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
    return worst
