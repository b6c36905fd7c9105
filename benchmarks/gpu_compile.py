"""Compiles butterfly chains for an NVIDIA H200, on a machine that needs no GPU.

For each case and direction, every implementation and a dense layer of the same size
is compiled. The table tells how many launches come out, how many bytes transposes and
copies rewrite, what memory is taken, and what the hand-written kernels need: registers,
spills, shared memory, and the instructions they use. It tells nothing about speed.

  make gpu-compile
  make gpu-compile ARGS="--case=monarch:1024* --implementation=bmm"
  make gpu-compile ARGS=--compiler_option=xla_gpu_enable_triton_gemm=false

The last one has products done by cuBLAS, as XLA may choose to when it finds a device.

Writes one JSON line per compilation into --output_dir (gpu_compile.jsonl, appended to
as it goes). Fails if anything does not compile, or if a kernel spills, takes more
launches than it should, or comes with transposes or copies.
"""

import os

if __name__ == "__main__":  # JAX reads these when it is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # A kernel that comes from the cache is not dumped.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import dataclasses
import fnmatch
import pathlib
from collections.abc import Iterator, Sequence

from absl import app, flags, logging
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import butterjax as bj
from benchmarks import aot, files, results, workloads
from benchmarks.cases import parse_chain


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer to compile.

    Attributes:
      chain: as `benchmarks.cases.parse_chain` reads it.
      batch: rows of x.
      dtype: of all arrays.
      layout: one of `benchmarks.workloads.LAYOUTS`.
      kernels: hand-written kernels that must take the case; others may refuse it.
    """

    chain: str
    batch: int = 4096
    dtype: str = "bfloat16"
    layout: str = "feature_last"
    kernels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """All that tells cases apart, in one word."""
        chain = self.chain.replace(" ", "")
        return f"{chain}/{self.batch}/{self.dtype}/{self.layout}"

    def workload(self, direction: str) -> workloads.Workload:
        """The case in a direction."""
        return workloads.Workload(
            case=self.chain,
            chain=parse_chain(self.chain),
            batch=self.batch,
            dtype=self.dtype,
            layout=self.layout,
            direction=direction,
        )


# Batch and half precision of arXiv 2405.15013, whose patterns these are: the smallest,
# and those with the widest layer and with the most weights.

CASES = (
    Case("monarch:512x512"),
    Case("monarch:768x768"),
    Case("monarch:1024x1024"),
    Case("monarch:1024x1024", dtype="float32"),
    Case("monarch:1024x1024", layout="feature_first"),
    Case("monarch:2048x2048"),
    Case("monarch:768x3072"),
    Case("monarch:3072x768"),
    Case("square_dyadic:1024"),
    Case("square_dyadic:4096"),
    Case("(1,48,48,1)", batch=25088, dtype="float16"),
    Case("(96,192,192,4)", batch=25088, dtype="float16"),
    Case("(4,1024,1024,16)", batch=25088, dtype="float16"),
)
