"""What `benchmarks.gpu_suite` measures, part by part, what matters most first."""

import itertools
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, get_args

import jax.numpy as jnp

import butterjax as bj
from benchmarks import models, network_rows, patterns
from benchmarks.cases import PAPER_CHAINS, parse_chain
from benchmarks.kernel_rows import Contestant
from benchmarks.kernels import KERNELS, candidates
from benchmarks.workloads import DENSE_LAYER, Direction, Layout, Workload

Part = Literal[
    "correctness",
    "ceilings",
    "fused",
    "training",
    "factors",
    "radix",
    "chains",
    "more_factors",
    "networks",
]
PARTS: tuple[Part, ...] = get_args(Part)

DTYPES = ("bfloat16", "float16", "float32")  # In order of importance.
BATCH = patterns.BATCH
SMALLER_BATCHES = (4096, 512, 64)
# What is checked takes several times its size, in float64.
_WIDE = 2**16  # Features, in and out, of a vector.
_BATCH_OF_WIDE = 4096
_MAX_MATRIX = 2**31  # Bytes of a dense layer's.
FUSED = tuple(f"monarch:{n}x{n}" for n in (1024, 2048, 4096))
RADIX = tuple(f"square_dyadic:{n}" for n in (1024, 256, 4096))
OTHER_CHAINS = (
    *("monarch:768x3072", "monarch:3072x768"),
    *(f"monarch:{n}x{n}" for n in (512, 256, 768, 8192, 16384)),
    "(1,16,16,256)(16,16,16,16)(256,16,16,1)",
    "(1,16,16,512)(16,16,16,32)(256,32,32,1)",
    *PAPER_CHAINS,
    *(f"square_dyadic:{n}" for n in (512, 2048, 16384)),
    *("(1,2,2,512)", "(64,8,8,1)"),  # Single factors, in parts along d and along a.
)

CHAINS = (*FUSED, *OTHER_CHAINS, *RADIX)

# Forward and backward: two factors, then six.
TRAINED = (*FUSED, "monarch:768x3072", "monarch:3072x768", "square_dyadic:4096/6")

# What kernels are compared with. Not "bcsr", which is made for other devices.
FACTOR_BY_FACTOR = ("einsum", "bmm", "elementwise")
XLA = (DENSE_LAYER, "dense", *FACTOR_BY_FACTOR)
_SMALL_BLOCK = 8  # The largest for which "elementwise" is worth a measurement.

# How many of the paper's patterns, and configurations of each kernel beside its rule's.
NUM_FACTORS = 60
NUM_CONFIGURATIONS = 2


def workloads_of(
    part: Part,
    dtypes: Collection[str],
    layouts: Collection[Layout],
    *,
    num_factors: int,
) -> Iterator[Workload]:
    """The workloads of a part, of those dtypes and layouts; none where it has none.

    Args:
      part: one of `PARTS`.
      dtypes: to keep.
      layouts: to keep.
      num_factors: how many of the paper's patterns to take.
    """
    for workload in _workloads(part, num_factors):
        if workload.dtype in dtypes and workload.layout in layouts:
            yield workload


def _workloads(part: Part, num_factors: int) -> Iterator[Workload]:
    factors = spread(patterns.tuned(), num_factors)
    match part:
        case "fused":
            yield from _grid(FUSED, ["bfloat16"])
        case "training":
            yield from _grid(TRAINED, ["bfloat16"], direction="forward+backward")
            yield from _grid(
                FUSED, ["float16", "float32"], direction="forward+backward"
            )
        case "factors":
            yield from _factors(factors, ["float16"])
        case "radix":
            yield from _grid(RADIX, ["bfloat16", "float16", "float32"])
        case "chains":
            yield from _grid(FUSED, ["bfloat16"], SMALLER_BATCHES)
            yield from _grid(OTHER_CHAINS, ["bfloat16"])
            yield from _grid([*FUSED, *OTHER_CHAINS], ["float16", "float32"])
        case "more_factors":
            yield from _factors(factors, ["bfloat16", "float32"])
        case _:
            return


def spread(among: Sequence[bj.Pattern], count: int) -> list[bj.Pattern]:
    """So many patterns, spread over block sizes and, within these, densities.

    In an order such that the first few are spread too.
    """
    ordered = sorted(among, key=lambda p: (min(p.b, p.c), p.b / p.c, p.a * p.d, p.a))
    count = min(count, len(ordered))
    chosen = [ordered[i * len(ordered) // count] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


def _factors(
    factors: Sequence[bj.Pattern], dtypes: Sequence[str]
) -> Iterator[Workload]:
    for pattern in factors:
        is_wide = pattern.in_features + pattern.out_features > _WIDE
        batches = (_BATCH_OF_WIDE if is_wide else BATCH,)
        yield from _grid(["({},{},{},{})".format(*pattern)], dtypes, batches)


def _grid(
    specs: Sequence[str],
    dtypes: Sequence[str],
    batches: Sequence[int] = (BATCH,),
    direction: Direction = "forward",
) -> Iterator[Workload]:
    layouts: tuple[Layout, ...] = ("feature_last", "feature_first")
    for dtype, batch, spec, layout in itertools.product(
        dtypes, batches, specs, layouts
    ):
        yield Workload(spec, parse_chain(spec), batch, dtype, layout, direction)


def networks_of(dtypes: Collection[str]) -> list[network_rows.Workload]:
    """A transformer's MLP block and a whole one, in bfloat16 if that is among them."""
    return [
        network_rows.Workload(
            name, models.NETWORKS[name].sizes, batch, "bfloat16", mode
        )
        for name, batch in (("llama_mlp", 4), ("vit_s16", 64))
        for mode in network_rows.MODES
        if "bfloat16" in dtypes
    ]


def network_implementations(names: Iterable[str]) -> list[str]:
    """Of the butterfly layers in networks: XLA's, and those of the kernels named."""
    ours = dict.fromkeys(KERNELS[name].implementation for name in names)
    return ["einsum", "bmm", *ours]


def implementations(workload: Workload, names: Iterable[str]) -> list[Contestant]:
    """XLA's implementations worth a measurement, and those of the kernels named."""
    widest = max(max(pattern.b, pattern.c) for pattern in workload.chain)
    matrix = workload.chain.in_features * workload.chain.out_features
    left_out = {
        "elementwise": widest > _SMALL_BLOCK,
        "dense": matrix * jnp.dtype(workload.dtype).itemsize > _MAX_MATRIX,
    }
    left_out[DENSE_LAYER] = left_out["dense"]
    ours = dict.fromkeys(KERNELS[name].implementation for name in names)
    return [Contestant(name) for name in (*XLA, *ours) if not left_out.get(name)]


def contestants(
    workload: Workload, names: Sequence[str], num_configurations: int
) -> list[Contestant]:
    """What is measured on a workload.

    Args:
      workload: the chain and what it is applied to.
      names: of kernels.
      num_configurations: of each kernel, beside the one of its rule.

    Returns:
      The `implementations`, as the library has them; and where these launch a kernel
      on just this chain, or it is to be measured all the same, it in some
      configurations.
    """
    found = implementations(workload, names)
    if workload.direction != "forward":  # Kernels have no gradients by themselves.
        return found
    for kernel in (KERNELS[name] for name in names):
        try:
            is_default = kernel.is_launched_on(workload, None) == (workload.chain,)
            if not (is_default or kernel.is_measured_as_given):
                continue
            configs = candidates(kernel, workload, 1 + num_configurations)
        except NotImplementedError:  # The implementation's row tells why.
            continue
        others = configs[1:] if is_default else configs
        found += [Contestant(kernel.implementation, kernel, one) for one in others]
    return found
