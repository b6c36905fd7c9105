"""What `benchmarks.gpu_suite` measures, part by part, what matters most first."""

import itertools
import random
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, get_args

import jax.numpy as jnp

import butterjax as bj
from benchmarks import patterns
from benchmarks.cases import PAPER_CHAINS, parse_chain
from benchmarks.workloads import DENSE_LAYER, LAYOUTS, Direction, Layout, Workload

# Chains of two factors forward, then with gradients; single factors that should be
# bound by memory; radix-2 chains; patterns of arXiv 2405.15013.
Part = Literal["chains", "training", "factors", "radix", "paper"]
PARTS: tuple[Part, ...] = get_args(Part)

BATCH = patterns.BATCH
NUM_PATTERNS = 20  # Of the paper's, by default.
# Inputs and outputs of wide layers are to fit in memory in float64 too.
_WIDE = 2**16  # Features, in and out, of a vector.
_BATCH_OF_WIDE = 4096
_MAX_MATRIX = 2**31  # Bytes of a dense layer's.

TWO_FACTORS = tuple(f"monarch:{n}x{n}" for n in (1024, 2048, 4096))
RADIX = ("square_dyadic:1024", "square_dyadic:4096")
# Blocks of 16 to 128 that need far less than a multiply-add per byte moved.
LAST_IN_BLOCK = ("(32,64,64,1)", "(32,48,48,1)", "(8,128,128,1)")  # d = 1.
STRIDED = (
    *("(1,32,32,64)", "(1,64,64,64)", "(4,48,48,8)"),
    *("(1,16,16,64)", "(1,128,128,16)", "(2,64,32,16)"),
)
# What `benchmarks.autotune` tunes for.
CHAINS = (
    *TWO_FACTORS,
    *("monarch:768x3072", "monarch:3072x768"),
    *(f"monarch:{n}x{n}" for n in (512, 256, 768, 8192, 16384)),
    "(1,16,16,256)(16,16,16,16)(256,16,16,1)",
    "(1,16,16,512)(16,16,16,32)(256,32,32,1)",
    *PAPER_CHAINS,
    *(f"square_dyadic:{n}" for n in (1024, 256, 4096, 512, 2048, 16384)),
    *("(1,2,2,512)", "(64,8,8,1)"),  # Single factors, in parts along d and along a.
)

# Hand-written kernels, and what they are compared with.
OURS = ("pallas", "pallas_chain")
FACTOR_BY_FACTOR = ("einsum", "bmm", "elementwise")
XLA = (DENSE_LAYER, *FACTOR_BY_FACTOR)
_SMALL_BLOCK = 8  # The largest for which "elementwise" is worth a measurement.


def workloads_of(
    part: Part, layouts: Collection[Layout], *, num_patterns: int
) -> Iterator[Workload]:
    """The workloads of a part, of those layouts.

    Args:
      part: one of `PARTS`.
      layouts: to keep.
      num_patterns: how many of the paper's patterns to take.
    """
    for workload in _workloads(part, num_patterns):
        if workload.layout in layouts:
            yield workload


def _workloads(part: Part, num_patterns: int) -> Iterator[Workload]:
    match part:
        case "chains":
            yield from _grid(TWO_FACTORS, "bfloat16")
            yield from _grid(TWO_FACTORS[:1], "float16")
        case "training":
            yield from _grid(TWO_FACTORS[:2], "bfloat16", "forward+backward")
        case "factors":
            yield from _grid([*STRIDED, *LAST_IN_BLOCK], "bfloat16")
        case "radix":
            yield from _grid(RADIX, "bfloat16")
        case "paper":
            chosen = spread(patterns.tuned(), num_patterns)
            specs = ["({},{},{},{})".format(*pattern) for pattern in chosen]
            yield from _grid(specs, "float16")


def spread(among: Sequence[bj.Pattern], count: int) -> list[bj.Pattern]:
    """So many patterns, spread over block sizes and, within these, densities.

    In an order such that the first few are spread too.
    """
    ordered = sorted(among, key=lambda p: (min(p.b, p.c), p.b / p.c, p.a * p.d, p.a))
    count = min(count, len(ordered))
    chosen = [ordered[i * len(ordered) // count] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


def _grid(
    specs: Sequence[str], dtype: str, direction: Direction = "forward"
) -> Iterator[Workload]:
    for spec, layout in itertools.product(specs, LAYOUTS):
        chain = parse_chain(spec)
        is_wide = chain.in_features + chain.out_features > _WIDE
        batch = _BATCH_OF_WIDE if is_wide else BATCH
        yield Workload(spec, chain, batch, dtype, layout, direction)


def implementations(workload: Workload) -> list[str]:
    """XLA's implementations worth a measurement, and those of kernels.

    Of a single factor, both of the latter would launch the same.
    """
    widest = max(max(pattern.b, pattern.c) for pattern in workload.chain)
    matrix = workload.chain.in_features * workload.chain.out_features
    left_out = {
        "elementwise": widest > _SMALL_BLOCK,
        DENSE_LAYER: matrix * jnp.dtype(workload.dtype).itemsize > _MAX_MATRIX,
        "pallas_chain": len(workload.chain) == 1,
    }
    return [name for name in (*XLA, *OURS) if not left_out.get(name)]
