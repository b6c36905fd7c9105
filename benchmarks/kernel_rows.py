"""Measures kernels, in several configurations, beside implementations."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import kernels, measure, results, workloads
from benchmarks.builds import Program, build_all
from benchmarks.environment import Environment
from benchmarks.kernels import Kernel
from benchmarks.layers import to_row
from benchmarks.side_by_side import Candidate, measure_candidates
from benchmarks.workloads import DENSE_LAYER, Workload


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is measured: an implementation, or a kernel in one configuration.

    Attributes:
      implementation: name in the registry, or `DENSE_LAYER`.
      kernel: None for what the implementation does by itself.
      config: of the kernel.
      precision: as in `jax.lax.dot_general`, for a kernel.
    """

    implementation: str
    kernel: Kernel | None = None
    config: Any = None
    precision: str | None = None

    @property
    def configuration(self) -> kernels.Configuration | None:
        """As rows hold it: the kernel, its Config's fields, and the precision."""
        if self.kernel is None:
            return None
        fields = kernels.configuration(self.config)
        return {"kernel": self.kernel.name, **fields, "precision": self.precision}

    @property
    def name(self) -> str:
        """All that tells contestants apart."""
        return f"{self.implementation} {self.configuration or ''}".strip()

    def key(self, environment: Environment, workload: Workload) -> results.Key:
        """Of the row."""
        return results.key(
            environment, workload, self.implementation, self.configuration
        )

    def program(self, workload: Workload, inputs: workloads.Inputs) -> Program:
        """What is called, and with what."""
        if self.kernel is None:
            return workloads.program(workload, self.implementation, inputs)
        function = kernels.call(
            self.kernel, workload, self.config, precision=self.precision
        )
        return workloads.with_direction(workload, function, inputs)


def measure_all(
    workload: Workload,
    contestants: Sequence[Contestant],
    *,
    environment: Environment,
    seed: int,
    time_limit: float,
    clock: measure.Clock | None = None,
    built: Mapping[str, measure.Built] | None = None,
    max_checked: int | None = None,
    tell: Callable[[str], None] = lambda name: None,
) -> list[results.Row]:
    """Measures contestants side by side on one workload, a row each, in their order.

    Args:
      workload: the case.
      contestants: what to measure.
      environment: of the run.
      seed: of the input and the order of calls.
      time_limit: seconds for the timing of all of them.
      clock: None for the device's own.
      built: those that were compiled before, by name; None for all kernels to be
        compiled at the same time first.
      max_checked: how many vectors of the result, spread over the batch, to compare
        with float64 at most; None for all. With gradients, all are.
      tell: as in `benchmarks.side_by_side.measure_candidates`.
    """
    inputs = workloads.draw(workload, seed)
    step = max(1, workload.batch // max_checked) if max_checked else 1
    vectors = slice(None, None, step if workload.direction == "forward" else 1)
    exact = {
        is_layer: workloads.truth(
            workload, inputs, dense_layer=is_layer, vectors=vectors
        )
        for is_layer in {one.implementation == DENSE_LAYER for one in contestants}
    }
    if built is None:
        built = _built(workload, contestants)
    names = {one.name: one for one in contestants}
    layer = next(
        (n for n, one in names.items() if one.implementation == DENSE_LAYER), None
    )

    def checked(outputs: Any) -> Any:
        if workload.direction != "forward":
            return outputs
        return workloads.take(workload, outputs, vectors)

    outcomes = measure_candidates(
        {
            name: Candidate(
                *one.program(workload, inputs),
                expected=exact[one.implementation == DENSE_LAYER],
                checked=checked,
                built=built.get(name),
            )
            for name, one in names.items()
        },
        reference=layer,
        time_limit=time_limit,
        seed=seed,
        cache_bytes=environment.cache_bytes,
        clock=clock,
        has_energy=False,
        tell=tell,
    )
    return [
        to_row(
            workload,
            one.implementation,
            outcomes[name],
            environment=environment,
            configuration=one.configuration,
        )
        for name, one in names.items()
    ]


def _built(
    workload: Workload, contestants: Sequence[Contestant]
) -> dict[str, measure.Built]:
    """The kernels, compiled; not those that fail, which are to fail again."""
    found = [one for one in contestants if one.kernel is not None]
    made = build_all(abstract_programs(workload, found))
    return {
        one.name: built
        for one, built in zip(found, made, strict=True)
        if isinstance(built, measure.Built)
    }


def abstract_programs(
    workload: Workload, contestants: Sequence[Contestant]
) -> list[Program]:
    """What `measure_all` compiles, with shapes and dtypes for arguments."""
    return [one.program(workload, workloads.shapes(workload)) for one in contestants]
