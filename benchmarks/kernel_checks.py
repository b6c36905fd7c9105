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

import butterjax as bj
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
from pallas_kernels.common import pieces
from pallas_kernels.common.epilogue import ACTIVATIONS, Activation, activate

# No multiple of any tile. The last is more than all CTAs take at once, so that each
# goes on to further tiles. TMA wants whole 16 bytes where the batch comes last.
RAGGED = 1000
BATCHES: dict[Layout, tuple[int, ...]] = {
    "feature_last": (1, 77, 20_003),
    "feature_first": (8, 72, 20_008),
}

_FAR_FROM_ZERO = 8.0  # Standard deviations of a product.

# Per factor, of float32 in two bfloat16 pieces, whose products are exact to 2⁻¹⁶.
_TWO_PIECES = 2**-15


@dataclasses.dataclass(frozen=True)
class Check:
    """A call of a kernel that is compared with float64.

    Forward, the kernel is called itself; with gradients, its implementation is, whose
    backward pass may take other kernels.

    Attributes:
      kernel: name in `benchmarks.kernels.KERNELS`.
      workload: the chain, the batch, the dtype, the layout and the direction.
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
            "gradients": self.has_gradients,
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
    def has_gradients(self) -> bool:
        """Whether the gradients are checked too."""
        return self.workload.direction == "forward+backward"

    @property
    def tolerance(self) -> float:
        """Largest relative error that is allowed, of any one vector or gradient."""
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
      error: largest relative error against float64, by the 2-norm, of a vector of the
        result, or of its gradient in x, or of the gradient in a factor or the bias;
        None where nothing was computed, or an entry is not finite.
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
        for check in _with_gradients(kernel, one):
            both = dataclasses.replace(check.workload, direction="forward+backward")
            yield dataclasses.replace(check, workload=both)


def _with_gradients(kernel: Kernel, simplest: Check) -> Iterator[Check]:
    """The checks that are made of gradients too, without saying so yet.

    Backward, the dtypes differ in little else than in how sums are rounded: all chains
    are checked in one.
    """
    work = simplest.workload
    for spec in kernel.checked if work.dtype == kernel.dtypes[0] else ():
        chain = parse_chain(spec)
        yield dataclasses.replace(
            simplest, workload=dataclasses.replace(work, case=spec, chain=chain)
        )
    for batch in BATCHES[work.layout]:
        yield dataclasses.replace(
            simplest, workload=dataclasses.replace(work, batch=batch)
        )
    for activation in (None, *ACTIVATIONS):
        yield dataclasses.replace(simplest, has_bias=True, activation=activation)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Random arguments of a check, and what it should return, in float64.

    Attributes:
      arguments: of `function`.
      exact: the result; with gradients, those in x, in the factors and in the bias, if
        there is one, come next. x and the result have their vectors along axis 0.
    """

    arguments: tuple[Any, ...]
    exact: tuple[np.ndarray, ...]


def function(check: Check) -> Callable[..., Any]:
    """The call: of x and the factors, and of the bias if there is one.

    With gradients, the gradient of the result comes before all, and those in all others
    are returned after the result.
    """
    kernel = KERNELS[check.kernel]
    options: dict[str, Any] = {
        "axis": check.workload.axis,
        "activation": check.activation,
        "precision": check.precision,
    }

    def call(x: jax.Array, factors: Any, bias: jax.Array | None = None) -> jax.Array:
        return kernel.run(
            x, factors, bias=bias, out_dtype=check.out_dtype, config=None, **options
        )

    def layer(x: jax.Array, factors: Any, bias: jax.Array | None = None) -> jax.Array:
        return bj.butterfly(
            *(x, factors),
            bias=bias,
            implementation=kernel.implementation,
            preferred_element_type=check.out_dtype,
            **options,
        )

    return workloads.with_gradients(layer) if check.has_gradients else call


def abstract(check: Check) -> tuple[Any, ...]:
    """The arguments of `function`, without numbers."""
    work = check.workload
    arguments: tuple[Any, ...] = abstract_arguments(work)
    if check.has_bias:
        bias = jax.ShapeDtypeStruct((work.chain.out_features,), work.dtype)
        arguments = (*arguments, bias)
    if check.has_gradients:
        arguments = (workloads.shapes(work).dy, *arguments)
    return arguments


def draw(check: Check, seed: int) -> Inputs:
    """Standard normal x, bias and gradient, and weights that keep the variance.

    What is exact is computed on the CPU, which has no part in what is checked.
    """
    work = check.workload
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        bias: tuple[jax.Array, ...] = ()
        if check.has_bias:
            shape = (work.chain.out_features,)
            drawn = jax.random.normal(jax.random.key(seed + 1), shape)
            if check.has_gradients and check.activation == "relu":
                # Its slope jumps at zero, from which rounding must not decide.
                drawn = jnp.copysign(_FAR_FROM_ZERO, drawn)
            bias = (drawn.astype(work.dtype),)
        if check.has_gradients:
            inputs = workloads.draw(work, seed, has_kernel=False)
            arguments = (inputs.dy, inputs.x, inputs.factors, *bias)
            exact = _exact_gradients(check, arguments)
        else:
            operands, y = _drawn(work, seed)
            arguments = (*operands, *bias)
            sums = y + np.asarray(sum(bias), np.float64)
            with jax.enable_x64(True):
                exact = (np.asarray(activate(jnp.asarray(sums), check.activation)),)
    return Inputs(jax.device_put(arguments, jax.devices()[0]), exact)


@functools.lru_cache(maxsize=1)  # Checks of one workload follow one another.
def _drawn(work: Workload, seed: int) -> tuple[tuple[Any, ...], np.ndarray]:
    """x and the factors, and their product in float64, vectors along axis 0."""
    inputs = workloads.draw(work, seed)
    (y,) = workloads.truth(work, inputs, dense_layer=False)
    return (inputs.x, inputs.factors), _vectors_first(work, y)


def _exact_gradients(check: Check, arguments: Any) -> tuple[np.ndarray, ...]:
    work = check.workload

    def formula(x: jax.Array, factors: Any, bias: Any = 0.0) -> jax.Array:
        y = workloads.definition(x, factors, axis=work.axis)
        bias = jnp.asarray(bias)
        along = bias if work.axis == -1 or not bias.ndim else bias[:, None]
        return activate(y + along, check.activation)

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arguments)
        outputs = jax.jit(workloads.with_gradients(formula))(*wide)
    return _flat(work, outputs)


def _vectors_first(work: Workload, x: Any) -> np.ndarray:
    array = np.asarray(x)
    return array if work.axis == -1 else array.T


def _flat(work: Workload, outputs: Any) -> tuple[np.ndarray, ...]:
    """The outputs of `function`, vectors along axis 0 in y and dx."""
    y, *gradients = jax.tree.leaves(outputs)
    flat = [_vectors_first(work, one) for one in (y, *gradients[:1])]
    return (*flat, *map(np.asarray, gradients[1:]))


def judge(
    check: Check, run: Callable[..., Any], inputs: Inputs
) -> tuple[float | None, str | None]:
    """Runs a check twice, the second time on the vectors in reverse order.

    As each vector is computed by itself, the results must be each other's reverse, bit
    by bit: one that depends on what ran when, or that was not written and shows what
    lay in memory before, is not. With gradients, of which those in the weights are sums
    over all vectors, the order is kept, and all must be the same bit by bit.

    Args:
      check: the check.
      run: the compiled call.
      inputs: what it is called on.

    Returns:
      The error, as in `Row`, and what is wrong, None where nothing is.
    """
    work = check.workload
    along = 0 if work.axis == -1 else 1
    again = inputs.arguments
    if not check.has_gradients:
        x, *others = inputs.arguments
        again = (jnp.flip(x, along), *others)
    first, second = (
        _flat(work, jax.block_until_ready(run(*arguments)))
        for arguments in (inputs.arguments, again)
    )
    error, failed = _compare(check, first, inputs.exact)
    if failed is not None:
        return error, failed
    if check.has_gradients:
        what = "what is returned changes from call to call"
    else:
        what = "the result changes with the order of the vectors"
        second = tuple(np.flip(one, 0) for one in second)
    same = all(map(np.array_equal, first, second))
    return error, None if same else what


def _compare(
    check: Check, found: Sequence[np.ndarray], exact: Sequence[np.ndarray]
) -> tuple[float | None, str | None]:
    """The largest error of the outputs, and what is wrong with the first that is."""
    worst = 0.0
    factors = [f"factors[{i}]" for i in range(len(check.workload.chain))]
    names = ["the result", *(f"the gradient in {of}" for of in ("x", *factors, "bias"))]
    for n, (name, one, right) in enumerate(zip(names, found, exact, strict=False)):
        wanted = check.workload.dtype if n else check.out_dtype or check.workload.dtype
        if one.dtype != jnp.dtype(wanted):
            return None, f"{name} is {one.dtype.name} and not {wanted}"
        if one.shape != right.shape:
            return None, f"{name} has shape {one.shape}"
        # By vector, so that one that is wrong shows; other gradients as a whole.
        rows = one.reshape(len(one) if n < 2 else 1, -1).astype(np.float64)
        rights = right.reshape(rows.shape)
        if not np.isfinite(rows).all():
            bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
            return None, (
                f"{name}: {len(bad)} vectors are not finite, the first is {bad[0]}"
            )
        norms = np.maximum(np.linalg.norm(rights, axis=1), np.finfo(np.float64).tiny)
        errors = np.linalg.norm(rows - rights, axis=1) / norms
        worst = max(worst, float(errors.max()))
        if not worst <= check.tolerance:
            bad = np.flatnonzero(~(errors <= check.tolerance))
            return worst, (
                f"{name}: {len(bad)} of {len(rows)} vectors are further from float64 "
                f"than {check.tolerance:.0e}, the first is {bad[0]}"
            )
    if len(found) != len(exact):
        return worst, f"{len(found)} arrays are returned, not {len(exact)}"
    return worst, None


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
