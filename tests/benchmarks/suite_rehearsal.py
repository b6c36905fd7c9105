"""Runs `benchmarks.gpu_suite` on a CPU: in the interpreter, on tiny cases.

`python -m tests.benchmarks.suite_rehearsal FLAGS`; with BROKEN=wrong in the environment
the kernel computes something else, with BROKEN=dead the process ends within it.
"""

import dataclasses
import os

from benchmarks import (
    ceilings,
    devices,
    gpu_suite,
    kernel_checks,
    kernels,
    runs,
    suite_cases,
)
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload
from pallas_kernels import chain
from tests import gpu_interpreter

SMALL = chain.Config(rows=32, warpgroups=1, ctas=1)
OTHER = dataclasses.replace(SMALL, stages=1)
SPECS = ("(1,16,16,1)", "monarch:256x256")


def tiny_workloads(part, dtypes, layouts, *, num_factors):
    """One workload for each of two parts, of the first layout."""
    del dtypes, num_factors
    specs = dict(zip(("factors", "fused"), SPECS, strict=True))
    if part in specs:
        spec, (layout, *_) = specs[part], layouts
        yield Workload(spec, parse_chain(spec), 40, "bfloat16", layout, "forward")


def broken(x, factors, **options):
    """The kernel, or something that is not."""
    how = os.environ.get("BROKEN")
    if how == "dead":
        os._exit(9)
    y = chain.chain(x, factors, **options)
    return y.at[-1].multiply(2) if how == "wrong" else y


def main():
    kernel = kernels.KERNELS["chain"]
    kernels.KERNELS.clear()
    kernels.KERNELS["chain"] = dataclasses.replace(
        kernel,
        run=broken,
        default_config=lambda *_, **__: SMALL,
        dtypes=("bfloat16",),
        checked=SPECS[:1],
        grid={},
        first=(OTHER,),
    )
    chain.default_config = kernels.KERNELS["chain"].default_config
    devices.problem = lambda: None
    kernel_checks.RAGGED = 40
    kernel_checks.BATCHES = {"feature_last": (33,), "feature_first": (72,)}
    os.cpu_count = lambda: 1  # The interpreter is this thread's alone.
    gpu_suite.SIZES = ceilings.Sizes(copied=2**16, matrices=64)
    suite_cases.workloads_of = tiny_workloads
    gpu_suite.define_flags()
    with gpu_interpreter.interpreter():
        runs.start(gpu_suite.main)


if __name__ == "__main__":
    main()
