"""Whether the hand-written kernels compute the right thing on the device at hand."""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pallas_kernels
from benchmarks import measure, runs, workloads
from benchmarks.builds import build_all
from benchmarks.cases import parse_chain
from benchmarks.environment import Environment
from benchmarks.kernels import KERNELS, Kernel, abstract_arguments
from benchmarks.results import Key
from benchmarks.units import Ratio
from benchmarks.workloads import Layout, Workload
from butterjax.numerics import tolerance
from pallas_kernels import pieces
from pallas_kernels.epilogue import ACTIVATIONS, Activation, activate

# No multiple of any tile. The last is more than all CTAs take at once, so that each
# goes on to further tiles. TMA wants whole 16 bytes where the batch comes last.
RAGGED = 1000
BATCHES: dict[Layout, tuple[int, ...]] = {
    "feature_last": (1, 77, 20_003),
    "feature_first": (8, 72, 20_008),
}

# Per factor, of float32 in two bfloat16 pieces, whose products are exact to 2⁻¹⁶.
_TWO_PIECES = 2**-15


@dataclasses.dataclass(frozen=True)
class Check:
    """A call of a kernel that is compared with float64.

    Attributes:
      kernel: name in `benchmarks.kernels.KERNELS`.
      workload: the chain, the batch, the dtype and the layout.
      has_bias: whether a bias is added.
      activation: what is applied to the result.
      out_dtype: of the result, None for that of x.
      precision: as in `jax.lax.dot_general`.
    """

    kernel: str
    workload: Workload
    has_bias: bool = False
    activation: Activation | None = None
    out_dtype: str | None = None
    precision: str | None = None

    @property
    def name(self) -> str:
        """All that tells checks apart, in a few words."""
        work = self.workload
        extras = {
            "bias": self.has_bias,
            str(self.activation): self.activation,
            f"to {self.out_dtype}": self.out_dtype,
            str(self.precision): self.precision,
        }
        words = [self.kernel, work.case, str(work.batch), work.dtype, work.layout]
        return " ".join(
            [*words, *(word for word, is_there in extras.items() if is_there)]
        )

    @property
    def tolerance(self) -> float:
        """Largest relative error that is allowed, of any one vector."""
        work = self.workload
        if pieces.count(work.dtype, self.precision) == 2:
            return _TWO_PIECES * len(work.chain)
        return tolerance(work.dtype, len(work.chain))


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out of a check.

    Attributes:
      environment: of the run.
      sources: digest of the kernels' source files.
      check: what was called.
      tolerance: the error that is allowed.
      error: largest relative error of a vector of the result against float64, by the
        2-norm; None where nothing was computed, or an entry is not finite.
      unsupported: why the kernel refused, None where it did not.
      failed: what is wrong, None where nothing is.
    """

    environment: Environment
    sources: str
    check: Check
    tolerance: Ratio
    error: Ratio | None
    unsupported: str | None
    failed: str | None

    @property
    def key(self) -> Key:
        """What is not checked twice."""
        return key(self.environment, self.sources, self.check)


def key(environment: Environment, sources: str, check: Check) -> Key:
    """What decides the outcome: the device, the versions, the kernels' sources."""
    return (
        environment.device,
        tuple(sorted(environment.versions.items())),
        sources,
        check.name,
    )


@functools.cache
def sources() -> str:
    """Digest of the source files of `pallas_kernels` and of its tables."""
    folder = pathlib.Path(pallas_kernels.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.json")]):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def checks(
    kernels: Sequence[Kernel], dtypes: Sequence[str], layouts: Sequence[Layout]
) -> Iterator[Check]:
    """All checks of kernels, the simplest first."""
    for kernel, dtype, layout in itertools.product(kernels, dtypes, layouts):
        if dtype not in kernel.dtypes:
            continue
        simplest = kernel.checked[0]

        def work(
            spec: str,
            batch: int = RAGGED,
            dtype: str = dtype,
            layout: Layout = layout,
        ) -> Workload:
            return Workload(spec, parse_chain(spec), batch, dtype, layout, "forward")

        one = Check(kernel.name, work(simplest))
        precisions = (None, "highest") if dtype == "float32" else (None,)
        for spec, precision in itertools.product(kernel.checked, precisions):
            yield dataclasses.replace(one, workload=work(spec), precision=precision)
        for batch in BATCHES[layout]:
            yield dataclasses.replace(one, workload=work(simplest, batch))
        yield dataclasses.replace(one, has_bias=True)
        for activation in ACTIVATIONS:
            yield dataclasses.replace(one, has_bias=True, activation=activation)
        yield dataclasses.replace(one, activation="relu")
        if dtype != "float32":
            yield dataclasses.replace(one, out_dtype="float32")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random arguments of a check, and the result in float64, vectors along axis 0."""

    arguments: tuple[Any, ...]
    exact: np.ndarray


def function(check: Check) -> Callable[..., jax.Array]:
    """The call: of x and the factors, and of the bias if there is one."""
    kernel = KERNELS[check.kernel]
    options = {
        "axis": check.workload.axis,
        "activation": check.activation,
        "out_dtype": check.out_dtype,
        "precision": check.precision,
        "config": None,
    }

    def call(x: jax.Array, factors: Any, bias: jax.Array | None = None) -> jax.Array:
        return kernel.run(x, factors, bias=bias, **options)

    return call


def abstract(check: Check) -> tuple[Any, ...]:
    """The arguments of `function`, without numbers."""
    arguments = abstract_arguments(check.workload)
    if not check.has_bias:
        return arguments
    features = check.workload.chain.out_features
    return *arguments, jax.ShapeDtypeStruct((features,), check.workload.dtype)


def draw(check: Check, seed: int) -> Inputs:
    """Standard normal x and bias, and weights that keep the variance.

    The result is computed on the CPU, which has no part in what is checked.
    """
    work = check.workload
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        arguments, y = _drawn(work, seed)
        if check.has_bias:
            shape = abstract(check)[2].shape
            bias = jax.random.normal(jax.random.key(seed + 1), shape).astype(work.dtype)
            arguments, y = (*arguments, bias), y + np.asarray(bias, np.float64)
        with jax.enable_x64(True):
            exact = np.asarray(activate(jnp.asarray(y), check.activation))
    return Inputs(jax.device_put(arguments, jax.devices()[0]), exact)


@functools.lru_cache(maxsize=1)  # Checks of one workload follow one another.
def _drawn(work: Workload, seed: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """x and the factors, and their product in float64, vectors along axis 0."""
    inputs = workloads.draw(work, seed)
    (y,) = workloads.truth(work, inputs, dense_layer=False)
    exact = np.asarray(y)
    return (inputs.x, inputs.factors), exact if work.axis == -1 else exact.T


def judge(
    check: Check, run: Callable[..., jax.Array], inputs: Inputs
) -> tuple[float | None, str | None]:
    """Runs a check twice, the second time on the vectors in reverse order.

    As each vector is computed by itself, the results must be each other's reverse, bit
    by bit: one that depends on what ran when, or that was not written and shows what
    lay in memory before, is not.

    Args:
      check: the check.
      run: the compiled call.
      inputs: what it is called on.

    Returns:
      The error, as in `Row`, and what is wrong, None where nothing is.
    """
    x, *others = inputs.arguments
    along = 0 if check.workload.axis == -1 else 1
    forward, backward = (
        np.asarray(jax.block_until_ready(run(one, *others)))
        for one in (x, jnp.flip(x, along))
    )
    backward = np.flip(backward, along)
    wanted = jnp.dtype(check.out_dtype or check.workload.dtype)
    if forward.dtype != wanted:
        return None, f"the result is {forward.dtype.name} and not {wanted.name}"
    y = np.asarray(forward if along == 0 else forward.T, np.float64)
    if y.shape != inputs.exact.shape:
        return None, f"the result has shape {forward.shape}"
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        return None, f"{len(bad)} vectors are not finite, the first is {bad[0]}"
    norms = np.linalg.norm(inputs.exact, axis=1)
    errors = np.linalg.norm(y - inputs.exact, axis=1) / norms
    error = float(errors.max())
    if not error <= check.tolerance:
        bad = np.flatnonzero(~(errors <= check.tolerance))
        return error, (
            f"{len(bad)} of {len(y)} vectors are further from float64 than "
            f"{check.tolerance:.0e}, the first is {bad[0]}"
        )
    if not np.array_equal(forward, backward):
        return error, "the result changes with the order of the vectors"
    return error, None


def summary(rows: Sequence[Row]) -> list[str]:
    """What keeps the kernels from being trusted, a line each; empty if nothing does."""
    problems = [f"{row.check.name}: {row.failed}" for row in rows if row.failed]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        work = row.check.workload
        groups.setdefault((row.check.kernel, work.dtype, work.layout), []).append(row)
    for group, members in groups.items():
        if all(row.unsupported for row in members):
            problems.append(f"{' '.join(group)}: every check is refused")
    return problems


def tasks(
    wanted: Sequence[Check],
    environment: Environment,
    *,
    seed: int,
) -> list[runs.Task[Row]]:
    """A task for each check, one row each."""
    built = _Builds(wanted)

    def task(index: int, check: Check) -> runs.Task[Row]:
        def run(_: Collection[Key]) -> list[Row]:
            return [_run(check, built.take(index), environment, seed)]

        description = f"check {check.name}"
        return runs.Task(description, (key(environment, sources(), check),), run)

    return [task(index, check) for index, check in enumerate(wanted)]


class _Builds:
    """Compiled checks, made so many at a time, in the order of the checks."""

    def __init__(self, wanted: Sequence[Check]) -> None:
        self._wanted = wanted
        self._made: dict[int, measure.Built | Exception] = {}

    def take(self, index: int) -> measure.Built | Exception:
        """Check number `index`, compiled, or what that raised."""
        if index not in self._made:
            some = self._wanted[index : index + (os.cpu_count() or 1)]
            made = build_all([(function(one), abstract(one)) for one in some])
            self._made = dict(enumerate(made, start=index))
        return self._made[index]


def _run(
    check: Check,
    built: measure.Built | Exception,
    environment: Environment,
    seed: int,
) -> Row:
    error = unsupported = failed = None
    match built:
        case measure.Built():
            error, failed = judge(check, built.compiled, draw(check, seed))
        case NotImplementedError():
            unsupported = str(built)
        case _:
            failed = f"does not compile: {type(built).__name__}: {built}"[:500]
    return Row(
        environment=environment,
        sources=sources(),
        check=check,
        tolerance=check.tolerance,
        error=error,
        unsupported=unsupported,
        failed=failed,
    )
