"""Whether the hand-written kernels compute the right thing on the device at hand.

What the library launches is checked, by the names of its implementations: each kernel
that these take, in each dtype and layout, on few cases that are broad.
"""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import butterjax as bj
import pallas_kernels
from benchmarks import launched, workloads
from benchmarks.cases import parse_chain
from benchmarks.environment import Environment
from benchmarks.results import Key
from benchmarks.units import Ratio
from benchmarks.workers import Lost, Tell
from benchmarks.workloads import Direction, Layout, Workload
from butterjax.numerics import tolerance
from pallas_kernels.common.epilogue import Activation, activate

# No multiple of any tile. TMA wants whole 16 bytes where the batch comes last.
RAGGED = 1000
FEW: dict[Layout, int] = {"feature_last": 1, "feature_first": 8}
# More than all CTAs take at once, so that each goes on to further tiles.
MANY: dict[Layout, int] = {"feature_last": 20_003, "feature_first": 20_008}

# Enough that gradients of weights are worth a kernel of their own.
TRAINED_ON: dict[Layout, int] = {"feature_last": 8_003, "feature_first": 8_008}

# One of each form that a launch can take. A single factor: d = 1, neighbours at a time,
# d > 1 with small blocks and with large ones, in parts; a chain: of two factors, square
# and not, of three; blocks too small for tensor cores.
CORE = (
    "(2,48,192,1)",
    "(1,96,96,6)",
    "(2,32,64,16)",
    "(1,64,64,64)",
    "(1,192,192,16)",
    "monarch:256x256",
    "monarch:1024x1024",
    "(1,16,16,64)(4,16,16,16)(64,16,16,1)",
    "square_dyadic:64",
    "(1,4,4,64)",
)
# Blocks that are no multiples of 16 or exceed a tile, long sums, several launches, what
# does not fit on a chip, and small blocks in parts, chained or not.
OTHERS = (
    "(16,40,24,8)",
    "(3,264,520,1)",
    "(4,1024,256,16)",
    "(1,32,16,16)(16,16,48,1)",
    "monarch:768x3072",
    "monarch:3072x768",
    "monarch:2048x2048",
    "monarch:4096x4096",
    "gpt2_medium_down",
    "square_dyadic:1024",
    "(1,4,2,8)(2,4,2,2)",
    "(8,2,2,1)(1,2,2,8)",
    "(64,8,8,1)",
    "(1,2,2,4096)",
)
TRAINED = (
    "(2,48,192,1)",
    "(2,32,64,16)",
    "(1,64,64,64)",
    "monarch:256x256",
    "monarch:1024x1024",
    "square_dyadic:64",
)
# In float32 under precision "highest", long sums among them.
EXACT = (
    "(1,1024,1024,3)",
    "(1,48,192,1)",
    "(2,32,64,16)",
    "monarch:256x256",
    "square_dyadic:64",
)
TILED = ("(2,48,192,1)", "(2,32,64,16)", "monarch:256x256", "(1,4,4,64)")

# Seconds that a step may take. The kernel is run, and compared, in the last of them:
# the one that may hang.
_TO_TRACE = 60.0
_TO_COMPILE = 60.0
_TO_DRAW = 60.0
_TO_RUN = 20.0

# XLA is not to try alternatives out where nothing is timed.
_OPTIONS: dict[str, str | bool | int] = {"xla_gpu_autotune_level": 0}


@dataclasses.dataclass(frozen=True)
class Check:
    """A call of an implementation that is compared with float64.

    Attributes:
      implementation: name in the registry, of one that launches kernels.
      workload: the chain, the batch, the dtype, the layout and the direction.
      has_bias: whether a bias is added.
      activation: what is applied to the result.
      out_dtype: of the result, None for that of x.
      precision: as in `jax.lax.dot_general`.
    """

    implementation: str
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
        words = [
            self.implementation,
            work.case,
            str(work.batch),
            work.dtype,
            work.layout,
        ]
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
        tf32 = self.precision != "highest"
        return tolerance(work.dtype, len(work.chain), tf32=tf32)


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out of a check.

    Just one of `error`, `unsupported` and `failed` is not None, but for a result that
    is wrong and has both an error and words.

    Attributes:
      environment: of the run.
      sources: digest of the kernels' source files.
      check: what was called.
      kernels: that it launches, None where it was not traced.
      tolerance: the error that is allowed.
      error: largest relative error against float64, by the 2-norm, of a vector of the
        result, or of its gradient in x, or of the gradient in a factor or the bias;
        None where nothing was computed, or an entry is not finite.
      unsupported: why the implementation refused, None where it did not.
      failed: what is wrong, None where nothing is.
      is_lost: whether the process was lost while the kernels ran.
    """

    environment: Environment
    sources: str
    check: Check
    kernels: tuple[str, ...] | None
    tolerance: Ratio
    error: Ratio | None
    unsupported: str | None
    failed: str | None
    is_lost: bool

    @property
    def key(self) -> Key:
        """What is not checked twice."""
        return key(self.environment, self.sources, self.check)

    @property
    def form(self) -> "Form | None":
        """What was launched, None where nothing is known to be."""
        if self.kernels is None:
            return None
        return Form.of(self.check.workload, self.kernels)


@dataclasses.dataclass(frozen=True, order=True)
class Form:
    """Kernels in a dtype, a layout and a direction.

    One check is taken for all of a form, where a crash forbids to go on with it.
    """

    kernels: tuple[str, ...]
    dtype: str
    layout: Layout
    direction: Direction

    @classmethod
    def of(cls, work: Workload, kernels: tuple[str, ...]) -> "Form":
        """What kernels are launched on."""
        return cls(kernels, work.dtype, work.layout, work.direction)

    @property
    def name(self) -> str:
        """All of it in a few words."""
        gradients = " gradients" if self.direction != "forward" else ""
        return f"{'+'.join(self.kernels)} {self.dtype} {self.layout}{gradients}"

    def excluded_by(self, lost: "Iterable[Form]") -> str | None:
        """Why not to run it: it launches all that a process was lost to, if it does."""
        for other in lost:
            mine = dataclasses.replace(self, kernels=other.kernels)
            if mine == other and set(other.kernels) <= set(self.kernels):
                return f"not tried, as a process was lost to {other.name}"
        return None


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


def checks(dtypes: Sequence[str], layouts: Sequence[Layout]) -> list[Check]:
    """All checks, one of each form first."""
    found = itertools.chain(
        _each("bfloat16", CORE),
        _each("bfloat16", TRAINED, "forward+backward", batches=TRAINED_ON),
        _each("float16", CORE, has_bias=True, activation="gelu"),
        _each("float32", CORE, has_bias=True, activation="gelu"),
        _each("float32", EXACT, precision="highest"),
        _each("bfloat16", OTHERS),
        _each(
            *("float16", TRAINED[1:4], "forward+backward"),
            batches=TRAINED_ON,
            has_bias=True,
            activation="gelu",
        ),
        _each("float32", TRAINED[1:4], "forward+backward"),
        _each("bfloat16", TILED, batches=MANY, has_bias=True, activation="silu"),
        _each("bfloat16", TILED, batches=FEW, has_bias=True, activation="relu"),
        _each("float16", TILED, out_dtype="float32"),
        # Two launches, factor by factor.
        _each("bfloat16", TRAINED[3:5], implementation="pallas"),
    )
    return [
        one
        for one in found
        if one.workload.dtype in dtypes and one.workload.layout in layouts
    ]


def _each(
    dtype: str,
    specs: Iterable[str],
    direction: Direction = "forward",
    *,
    implementation: str | None = None,
    batches: dict[Layout, int] | None = None,
    **others: Any,
) -> Iterator[Check]:
    for spec, layout in itertools.product(specs, workloads.LAYOUTS):
        chain = parse_chain(spec)
        batch = batches[layout] if batches else RAGGED
        work = Workload(spec, chain, batch, dtype, layout, direction)
        name = implementation or ("pallas" if len(chain) == 1 else "pallas_chain")
        yield Check(name, work, **others)


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

    def layer(x: jax.Array, factors: Any, bias: jax.Array | None = None) -> jax.Array:
        return bj.butterfly(
            *(x, factors),
            bias=bias,
            axis=check.workload.axis,
            activation=check.activation,
            precision=check.precision,
            implementation=check.implementation,
            preferred_element_type=check.out_dtype,
        )

    return workloads.with_gradients(layer) if check.has_gradients else layer


def abstract(check: Check) -> tuple[Any, ...]:
    """The arguments of `function`, without numbers."""
    work, empty = check.workload, workloads.shapes(check.workload)
    arguments: tuple[Any, ...] = (empty.x, empty.factors)
    if check.has_bias:
        bias = jax.ShapeDtypeStruct((work.chain.out_features,), work.dtype)
        arguments = (*arguments, bias)
    return (empty.dy, *arguments) if check.has_gradients else arguments


def draw(check: Check, seed: int) -> Inputs:
    """Standard normal x, bias and gradient, and weights that keep the variance.

    What is exact is computed by XLA, in float64, on the device.
    """
    work = check.workload
    inputs = workloads.draw(work, seed, has_kernel=False)
    arguments: tuple[Any, ...] = (inputs.x, inputs.factors)
    if check.has_bias:
        shape = (work.chain.out_features,)
        bias = jax.random.normal(jax.random.key(seed + 1), shape)
        arguments = (*arguments, bias.astype(work.dtype))
    if check.has_gradients:
        arguments = (inputs.dy, *arguments)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), arguments)
        outputs = _exact(
            *wide,
            axis=work.axis,
            activation=check.activation,
            has_gradients=check.has_gradients,
        )
    return Inputs(arguments, _flat(work, outputs))


@functools.partial(
    jax.jit,
    static_argnames=("axis", "activation", "has_gradients"),
    compiler_options=_OPTIONS,
)
def _exact(
    *arguments: Any, axis: Any, activation: Activation | None, has_gradients: bool
) -> Any:
    def formula(x: jax.Array, factors: Any, bias: Any = 0.0) -> jax.Array:
        y = workloads.definition(x, factors, axis=axis)
        bias = jnp.asarray(bias)
        along = bias if axis == -1 or not bias.ndim else bias[:, None]
        return activate(y + along, activation)

    call = workloads.with_gradients(formula) if has_gradients else formula
    return call(*arguments)


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
    """What is wrong with the kernels, a line each; empty if nothing is."""
    return [f"{row.check.name}: {row.failed}" for row in rows if row.failed]


@dataclasses.dataclass(frozen=True)
class Task:
    """A check to make, and what is not to be tried any more.

    Attributes:
      check: the check.
      environment: of the run.
      excluded: forms that a process was lost to.
      seed: of the random numbers.
    """

    check: Check
    environment: Environment
    excluded: tuple[Form, ...]
    seed: int


def run(task: Task, tell: Tell) -> Row:
    """Makes a check, in a process that may not come back from it."""
    check = task.check
    tell("tracing", _TO_TRACE)
    try:
        traced = jax.jit(function(check)).trace(*abstract(check))
    except NotImplementedError as refusal:
        return _row(task, unsupported=str(refusal))
    kernels = launched.kernels(traced)
    form = Form.of(check.workload, kernels)
    if (words := form.excluded_by(task.excluded)) is not None:
        return _row(task, kernels, failed=words)
    tell("compiling", _TO_COMPILE)
    try:
        compiled = traced.lower().compile(compiler_options=_OPTIONS)
    except Exception as raised:
        words = f"does not compile: {type(raised).__name__}: {raised}"
        return _row(task, kernels, failed=words[:500])
    tell("drawing", _TO_DRAW)
    inputs = draw(check, task.seed)
    tell(f"{_RUNNING}{' '.join(kernels)}", _TO_RUN)
    error, failed = judge(check, compiled, inputs)
    return _row(task, kernels, error=error, failed=failed)


_RUNNING = "running "  # And the kernels' names.


def lost_row(task: Task, lost: Lost) -> Row:
    """The row of a check that did not come to its end."""
    kernels = None
    if lost.doing.startswith(_RUNNING):
        kernels = tuple(lost.doing.removeprefix(_RUNNING).split())
    words = f"{lost.reason}, {lost.doing}"
    return _row(task, kernels, failed=words, is_lost=kernels is not None)


def _row(
    task: Task,
    kernels: tuple[str, ...] | None = None,
    *,
    error: float | None = None,
    unsupported: str | None = None,
    failed: str | None = None,
    is_lost: bool = False,
) -> Row:
    return Row(
        environment=task.environment,
        sources=sources(),
        check=task.check,
        kernels=kernels,
        tolerance=task.check.tolerance,
        error=error,
        unsupported=unsupported,
        failed=failed,
        is_lost=is_lost,
    )
