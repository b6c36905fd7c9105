"""Whole networks, measured with dense layers and with butterfly layers side by side."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from benchmarks import measure, models, results
from benchmarks.environment import Environment
from benchmarks.side_by_side import Candidate, measure_candidates
from benchmarks.units import Count, Ratio
from butterjax.numerics import tolerance

Mode = Literal["inference", "training step"]
MODES: tuple[Mode, ...] = ("inference", "training step")
DENSE_LAYERS = "dense layers"
DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Workload:
    """One case of the benchmark.

    Attributes:
      network: one of `benchmarks.models.NETWORKS`.
      sizes: of the network.
      batch: inputs at once: images or sequences.
      dtype: that is computed in; for inference of the parameters too, which are
        float32 for training.
      mode: "inference" or "training step".
    """

    network: str
    sizes: models.Sizes
    batch: Count
    dtype: str
    mode: Mode

    @property
    def name(self) -> str:
        """All that tells workloads of one network's sizes apart."""
        return f"{self.network}, {self.mode}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A network with layers of one kind on one workload.

    Just one of `measured`, `unsupported` and `failed` is not None.

    Attributes:
      environment: of the run.
      workload: what was run.
      implementation: of the butterfly layers, as in `butterjax.butterfly`; "default"
        for None, and "dense layers" for the network without them.
      num_weights: parameters of the network.
      tolerance: the error that is allowed.
      measured: what was measured; `ratio_to_dense_layer` is to the network with dense
        layers, `error` is of the output, or of the loss and all gradients together.
      unsupported: why the implementation refused.
      failed: why it did not compile or run.
    """

    environment: Environment
    workload: Workload
    implementation: str
    num_weights: Count
    tolerance: Ratio
    measured: results.Measurement | None
    unsupported: str | None
    failed: str | None

    @property
    def key(self) -> results.Key:
        """What is not measured twice."""
        return results.key(self.environment, self.workload, self.implementation, None)

    @property
    def is_wrong(self) -> bool:
        """Whether the outcome is further from float64 than allowed."""
        if self.measured is None:
            return False
        error = self.measured.error
        return error is None or not error <= self.tolerance


def rows(
    workload: Workload,
    implementations: Sequence[str],
    *,
    environment: Environment,
    seed: int,
    time_limit: float,
) -> list[Row]:
    """Measures a network with each kind of layers, side by side.

    Args:
      workload: the case.
      implementations: of butterfly layers: names in the registry, or `DEFAULT`.
      environment: of the run.
      seed: of the input, the parameters and the order of calls.
      time_limit: seconds for the timing of all of them.

    Returns:
      A row for dense layers, then one for each implementation.
    """
    chains = models.NETWORKS[workload.network].chains
    formula = models.butterfly(chains, "einsum")
    linears: dict[str, models.Linear] = {DENSE_LAYERS: models.dense}
    for name in implementations:
        linears[name] = models.butterfly(chains, None if name == DEFAULT else name)
    references: dict[bool, models.Linear] = {False: models.dense}
    if implementations:
        references[True] = formula
    arguments = {
        is_butterfly: _arguments(workload, linear, seed)
        for is_butterfly, linear in references.items()
    }
    expected = {
        is_butterfly: _expected(workload, linear, arguments[is_butterfly])
        for is_butterfly, linear in references.items()
    }
    candidates = {
        name: Candidate(
            function=_program(workload, _module(workload, linear, workload.dtype)),
            arguments=arguments[name != DENSE_LAYERS],
            expected=expected[name != DENSE_LAYERS],
            checked=_checked if workload.mode == "training step" else _as_it_is,
        )
        for name, linear in linears.items()
    }
    outcomes = measure_candidates(
        candidates,
        reference=DENSE_LAYERS,
        time_limit=time_limit,
        seed=seed,
        cache_bytes=environment.cache_bytes,
        clock=measure.WallClock(),
    )
    return [
        Row(
            environment=environment,
            workload=workload,
            implementation=name,
            num_weights=sum(
                leaf.size for leaf in jax.tree.leaves(candidates[name].arguments[0])
            ),
            tolerance=_tolerance(workload),
            measured=outcome.measured,
            unsupported=outcome.unsupported,
            failed=outcome.failed,
        )
        for name, outcome in outcomes.items()
    ]


def _module(
    workload: Workload, linear: models.Linear, dtype: jax.typing.DTypeLike | None
) -> nn.Module:
    network = models.NETWORKS[workload.network]
    return network.module(workload.sizes, linear, dtype)


def _program(workload: Workload, module: nn.Module) -> Callable[..., Any]:
    """A function of parameters and input, or of what a training step takes."""
    if workload.mode == "training step":
        return models.training_step(module)
    return module.apply


def _arguments(workload: Workload, linear: models.Linear, seed: int) -> tuple[Any, ...]:
    """Parameters and input; for training the optimiser's state and the target too."""
    first, second = jax.random.split(jax.random.key(seed))
    x, target = models.inputs(
        workload.network, workload.sizes, workload.batch, workload.dtype, first
    )
    module = _module(workload, linear, None)
    parameters = jax.jit(module.init)(second, x[:1])
    if workload.mode == "training step":
        return parameters, jax.jit(models.optimizer().init)(parameters), x, target
    rounded = jax.tree.map(lambda leaf: leaf.astype(workload.dtype), parameters)
    return rounded, x


def _expected(
    workload: Workload, linear: models.Linear, arguments: tuple[Any, ...]
) -> list[jax.Array]:
    """What the candidates are checked for, in float64, an input at a time."""
    with jax.enable_x64(True):
        wide = jax.tree.map(_widen, arguments)
        module = _module(workload, linear, None)
        if workload.mode == "inference":
            parameters, x = wide

            def one(x: jax.Array) -> Any:
                return module.apply(parameters, x[None])[0]

            return [jax.jit(lambda x: jax.lax.map(one, x))(x)]
        parameters, state, x, target = wide

        def add(sums: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            def loss(parameters: Any) -> jax.Array:
                return models.loss(
                    module.apply(parameters, pair[0][None]), pair[1][None]
                )

            found = jax.value_and_grad(loss)(parameters)
            return jax.tree.map(jnp.add, sums, found), None

        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters))
        sums, _ = jax.jit(lambda *pair: jax.lax.scan(add, zeros, pair))(x, target)
        loss, gradients = jax.tree.map(lambda leaf: leaf / len(x), sums)
        _, state = models.optimizer().update(gradients, state, parameters)
        return list(_checked((parameters, state, loss)))


def _widen(leaf: jax.Array) -> jax.Array:
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(jnp.float64) if is_float else leaf


def _checked(outputs: Any) -> tuple[jax.Array, jax.Array]:
    """Of a training step the loss, and Adam's mean gradient in one piece.

    Some gradients are zero but for rounding, the one of the bias of k for instance.
    """
    _, state, loss = outputs
    return loss, ravel_pytree(optax.tree_utils.tree_get(state, "mu"))[0]


def _as_it_is(outputs: Any) -> Any:
    return outputs


def _tolerance(workload: Workload) -> float:
    """The library's, for as many products as a random walk of their errors is long."""
    products = models.NETWORKS[workload.network].num_products * workload.sizes.depth
    steps = math.ceil(math.sqrt(2 * products))  # Of two factors each.
    return tolerance(workload.dtype, steps, tf32=jax.default_backend() == "gpu")
