"""What a device can do at best: bytes copied and multiply-adds done per second."""

import dataclasses
import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from benchmarks import measure, runs
from benchmarks.environment import Environment
from benchmarks.results import Key
from benchmarks.units import Bytes, Flops, SecondsQuartiles


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the arrays are.

    Attributes:
      copied: bytes of the array that is copied, more than any cache.
      matrices: rows and columns of the square matrices that are multiplied.
    """

    copied: int
    matrices: int


SIZES = Sizes(copied=2**31, matrices=8192)


@dataclasses.dataclass(frozen=True)
class Row:
    """A ceiling, as measured.

    Attributes:
      environment: of the run, with which its other measurements are compared.
      name: "copy" or "matmul".
      dtype: of the matrices; bytes are copied as float32.
      moved_bytes: read plus written.
      flops: floating-point operations, two for a multiply-add.
      seconds: first quartile, median and third quartile of a call.
      clock: as in `benchmarks.results.Measurement`.
    """

    environment: Environment
    name: Literal["copy", "matmul"]
    dtype: str
    moved_bytes: Bytes
    flops: Flops
    seconds: SecondsQuartiles
    clock: Literal["wall", "cupti"]

    @property
    def key(self) -> Key:
        """What is not measured twice in a run."""
        return key(self.environment, self.name, self.dtype)

    @property
    def bytes_per_second(self) -> float:
        """The bandwidth, read plus written, at the median time."""
        return self.moved_bytes / self.seconds[1]

    @property
    def flops_per_second(self) -> float:
        """The rate at the median time."""
        return self.flops / self.seconds[1]


def key(environment: Environment, name: str, dtype: str) -> Key:
    """What tells the ceilings of a run, and runs, apart."""
    return (environment.run, environment.device, name, dtype)


def measure_all(
    dtypes: Sequence[str],
    *,
    environment: Environment,
    sizes: Sizes,
    time_limit: float,
    clock: measure.Clock | None = None,
) -> list[Row]:
    """Measures the copy bandwidth, and the rate of products in each dtype.

    Random numbers, as a chip is faster on zeros. Products have the default precision,
    so that those in float32 may use TF32.
    """
    clock = clock or measure.device_clock()
    rows = []
    array = jax.random.normal(jax.random.key(0), (sizes.copied // 4,))
    # A copy that XLA makes a kernel, as the clock sees kernels alone.
    seconds = _time(operator.neg, (array,), clock, time_limit)
    moved = 2 * array.nbytes
    rows.append(Row(environment, "copy", "float32", moved, 0, seconds, clock.name))
    del array
    for dtype in dtypes:
        keys = jax.random.split(jax.random.key(1), 2)
        shape = (sizes.matrices, sizes.matrices)
        pair = tuple(jax.random.normal(key, shape, dtype) for key in keys)
        seconds = _time(jnp.matmul, pair, clock, time_limit)
        flops, moved = 2 * sizes.matrices**3, 3 * pair[0].nbytes
        rows.append(
            Row(environment, "matmul", dtype, moved, flops, seconds, clock.name)
        )
    return rows


def _time(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    clock: measure.Clock,
    time_limit: float,
) -> SecondsQuartiles:
    built = measure.build(function, arguments)
    call = functools.partial(built.compiled, *arguments)
    (samples,) = measure.interleave(
        {"": call}, time_limit=time_limit, clock=clock
    ).values()
    return samples.quartiles()


def task(
    dtypes: Sequence[str], environment: Environment, *, sizes: Sizes, time_limit: float
) -> runs.Task[Row]:
    """Measures the ceilings, anew in each run."""
    keys = [key(environment, "copy", "float32")]
    keys += [key(environment, "matmul", dtype) for dtype in dtypes]

    def run(_: Collection[Key]) -> list[Row]:
        return measure_all(
            dtypes, environment=environment, sizes=sizes, time_limit=time_limit
        )

    return runs.Task("ceilings", tuple(keys), run)
