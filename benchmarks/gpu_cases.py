"""The layers that `benchmarks.gpu_compile` compiles, and limits of kernels there."""

import dataclasses
import fnmatch
from collections.abc import Sequence

from benchmarks import workloads
from benchmarks.cases import parse_chain


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the main loop of a kernel may have at most, in a thread's program.

    They are what is reached, and a tenth more: what was wrong in kernels that turned
    out slow on a device could be seen in these numbers.

    Attributes:
      instructions: for each mma.sync, that one among them.
      wavefronts: of shared memory for each mma.sync, without bank conflicts.
      barriers: at which the warps of a CTA, or some of them, wait for each other.
    """

    instructions: float
    wavefronts: float
    barriers: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer to compile.

    Attributes:
      chain: as `benchmarks.cases.parse_chain` reads it.
      batch: rows of x.
      dtype: of all arrays.
      layout: one of `benchmarks.workloads.LAYOUTS`.
      launches: kernels that `pallas_chain` may start, one for all factors that should
        share a launch; None where that is not known, and kernels may refuse the case.
      too_much_for: implementations that XLA is known not to compile here.
      is_arranged: whether XLA may put weights in order, or multiply small blocks out,
        before the kernels.
      is_transposed: whether XLA may transpose x and y around them.
      limits: of what `pallas_chain` starts, forward; None where none are set.
      backward_limits: the same, forward and backward.
    """

    chain: str
    batch: int = 4096
    dtype: str = "bfloat16"
    layout: workloads.Layout = "feature_last"
    launches: int | None = None
    too_much_for: tuple[str, ...] = ()
    is_arranged: bool = False
    is_transposed: bool = False
    limits: Limits | None = None
    backward_limits: Limits | None = None

    @property
    def name(self) -> str:
        """All that tells cases apart, in one word."""
        chain = self.chain.replace(" ", "")
        return f"{chain}/{self.batch}/{self.dtype}/{self.layout}"

    def workload(self, direction: workloads.Direction) -> workloads.Workload:
        """The case in a direction."""
        return workloads.Workload(
            case=self.chain,
            chain=parse_chain(self.chain),
            batch=self.batch,
            dtype=self.dtype,
            layout=self.layout,
            direction=direction,
        )


# One factor features last, d = 1 and d > 1; two in one launch.
_ALIGNED = Limits(instructions=4.5, wavefronts=2.0, barriers=7)
_STRIDED = Limits(instructions=9.0, wavefronts=2.7, barriers=2)
_FUSED = Limits(instructions=6.7, wavefronts=3.5, barriers=2)
_STRIDED_AND_ALIGNED = Limits(9.0, 2.7, 7)
# The same features first.
_FIRST = Limits(instructions=4.2, wavefronts=1.6, barriers=16)
_FUSED_FIRST = Limits(instructions=3.8, wavefronts=2.0, barriers=2)
# With d > 1, the CTA arranges the weights of a block: blocks of 32, and of 64.
_ARRANGED_HALF = Limits(instructions=11.8, wavefronts=3.0, barriers=17)
_ARRANGED = Limits(instructions=4.7, wavefronts=1.9, barriers=17)
# Gradients of weights are most of it: by wgmma, a product of which is larger.
_BACKWARD = Limits(instructions=21.5, wavefronts=4.0, barriers=7)
_BACKWARD_FIRST = Limits(instructions=28.0, wavefronts=3.0, barriers=17)

_FULL = 25088  # The batch of arXiv 2405.15013, and of all that is measured.

# What targets of speed are set for comes first, then others. The last ones are patterns
# of arXiv 2405.15013, in half precision: the smallest, and those with the widest layer
# and with the most weights.
CASES = (
    Case("(32,64,64,1)", _FULL, launches=1, limits=_ALIGNED),
    Case("(32,64,64,1)", _FULL, layout="feature_first", launches=1, limits=_FIRST),
    Case("(1,32,32,64)", _FULL, launches=1, limits=_STRIDED),
    Case("(1,64,64,64)", _FULL, launches=1, limits=_STRIDED),
    Case("(1,128,128,16)", _FULL, launches=1, limits=_STRIDED),
    Case("(4,48,48,8)", _FULL, launches=1, limits=_STRIDED),
    # A warp has one product for each pair of loads of x.
    Case("(1,16,16,64)", _FULL, launches=1, limits=Limits(19.0, 4.0, 2)),
    Case(
        "monarch:1024x1024", _FULL, launches=1, limits=_FUSED, backward_limits=_BACKWARD
    ),
    Case(
        "monarch:1024x1024",
        _FULL,
        layout="feature_first",
        launches=1,
        limits=_FUSED_FIRST,
        backward_limits=_BACKWARD_FIRST,
    ),
    Case("monarch:1024x1024", _FULL, "float16", launches=1, limits=_FUSED),
    Case(
        "monarch:2048x2048",
        _FULL,
        launches=2,
        limits=_STRIDED_AND_ALIGNED,
        backward_limits=_BACKWARD,
    ),
    Case(
        "monarch:2048x2048",
        _FULL,
        layout="feature_first",
        launches=2,
        limits=_ARRANGED_HALF,
        backward_limits=_BACKWARD_FIRST,
    ),
    Case("monarch:4096x4096", _FULL, launches=2, limits=_STRIDED_AND_ALIGNED),
    Case(
        "monarch:4096x4096",
        _FULL,
        layout="feature_first",
        launches=2,
        limits=_ARRANGED,
    ),
    Case("square_dyadic:1024", _FULL, launches=1, is_arranged=True, limits=_FUSED),
    Case(
        "square_dyadic:4096",
        _FULL,
        launches=2,
        is_arranged=True,
        limits=_STRIDED_AND_ALIGNED,
    ),
    Case("monarch:512x512", launches=1),
    Case(
        "monarch:512x512",
        dtype="float32",
        launches=2,
        is_arranged=True,
        is_transposed=True,
    ),
    Case("monarch:768x768", launches=2),  # 24 × 32.
    Case("monarch:768x3072", launches=2),
    Case("monarch:768x3072", layout="feature_first", launches=2),
    Case("monarch:3072x768", launches=2),
    # Small blocks, without tensor cores: in parts along d, and along a.
    Case("(1,2,2,4096)", launches=1),
    Case("(64,8,8,1)", _FULL, layout="feature_first", launches=1),
    Case("(1,16,16,512)(16,16,16,32)(256,32,32,1)", _FULL, launches=3),
    Case("(3,264,520,1)", launches=1),  # wgmma, in tiles beyond the ends of blocks.
    Case("(1,48,48,1)", _FULL, "float16", launches=1),
    Case("(96,192,192,4)", _FULL, "float16", launches=1),
    Case("(96,192,192,4)", _FULL, "float16", "feature_first", launches=1),
    Case("(1,96,96,6)", _FULL, "float16", launches=1),
    Case(
        "(4,256,256,4)", _FULL, "float16", "feature_first", launches=1, is_arranged=True
    ),
    # A scatter takes more blocks than a launch can have.
    Case(
        "(4,1024,1024,16)",
        _FULL,
        "float16",
        launches=1,
        too_much_for=("bcsr",),
        is_arranged=True,
        is_transposed=True,
    ),
)


def select(patterns: Sequence[str]) -> list[Case]:
    """Those of `CASES` whose name begins with one of the patterns, and new ones.

    Raises:
      ValueError: if a pattern is the start of none of them, nor the whole name of a
        case, CHAIN/BATCH/DTYPE/LAYOUT.
    """
    chosen: dict[str, Case] = {}
    for pattern in patterns:
        globs = f"{pattern}*"
        found = [case for case in CASES if fnmatch.fnmatchcase(case.name, globs)]
        chosen |= {case.name: case for case in found or [new_case(pattern)]}
    return list(chosen.values())


def new_case(name: str) -> Case:
    """The case CHAIN/BATCH/DTYPE/LAYOUT.

    Raises:
      ValueError: if it is none.
    """
    chain, *rest = name.split("/")
    if len(rest) != 3:
        raise ValueError(f"no case is named {name!r}; see --help")
    batch, dtype, layout = rest
    parse_chain(chain)
    if not batch.isdecimal() or int(batch) < 1:
        raise ValueError(f"{name!r}: the batch must be a number above 0, got {batch!r}")
    if dtype not in workloads.DTYPES:
        known = ", ".join(workloads.DTYPES)
        raise ValueError(f"{name!r}: the dtype must be one of {known}; got {dtype!r}")
    for known_layout in workloads.LAYOUTS:
        if layout == known_layout:
            return Case(chain, int(batch), dtype, known_layout)
    known = ", ".join(workloads.LAYOUTS)
    raise ValueError(f"{name!r}: the layout must be one of {known}; got {layout!r}")
