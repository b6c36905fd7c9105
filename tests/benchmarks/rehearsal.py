"""Runs a program for GPUs on a CPU: in the interpreter, on tiny cases.

`python -m tests.benchmarks.rehearsal gpu_suite FLAGS`, or autotune. With BROKEN=wrong
in the environment the kernel returns something else, in one configuration alone with
BROKEN=narrow, and with BROKEN=dead the process ends within it.
"""

import dataclasses
import importlib
import os
import sys

from benchmarks import (
    ceilings,
    devices,
    kernel_checks,
    kernels,
    models,
    network_rows,
    runs,
    suite_cases,
)
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload
from pallas_kernels import factor
from tests import gpu_interpreter

SMALL = factor.Config(rows=64, features=16, depth=16, stages=2, ctas=1)
NARROW = dataclasses.replace(SMALL, rows=16, m_warps=1)
SPECS = {"fused": "(2,16,16,1)", "factors": "(1,32,16,1)"}


def tiny_workloads(part, dtypes, layouts, *, num_factors):
    """One workload for each of two parts, of the first layout."""
    if part in SPECS:
        spec, (layout, *_) = SPECS[part], layouts
        yield Workload(spec, parse_chain(spec), 40, "bfloat16", layout, "forward")


def tiny_networks(dtypes):
    """An MLP block."""
    sizes = models.Sizes(depth=1, width=16, heads=0, hidden=32, tokens=4, classes=0)
    yield network_rows.Workload("llama_mlp", sizes, 2, "bfloat16", "training step")


def run(x, factors, *, config, **options):
    """The kernel, or something that is not."""
    how = os.environ.get("BROKEN")
    if how == "dead":
        os._exit(9)
    (w,) = factors
    y = factor.factor(x, w, config=config, **options)
    is_wrong = how == "wrong" or (how == "narrow" and config == NARROW)
    return y.at[-1].multiply(2) if is_wrong else y


def default_config(*args, **kwargs):
    """One that the interpreter has threads for."""
    return SMALL


def main():
    program = importlib.import_module(f"benchmarks.{sys.argv.pop(1)}")
    kernel = kernels.KERNELS["factor"]
    kernels.KERNELS.clear()
    kernels.KERNELS["factor"] = dataclasses.replace(
        kernel,
        run=run,
        default_config=default_config,
        dtypes=("bfloat16",),
        checked=(SPECS["factors"],),
        grid={},
        first=lambda by_rule: (NARROW,),
        is_launched_on=lambda workload, precision: (workload.chain,),
    )
    factor.default_config = default_config
    devices.problem = lambda: None
    kernel_checks.RAGGED = 40
    kernel_checks.BATCHES = {"feature_last": (33,), "feature_first": (72,)}
    os.cpu_count = lambda: 1  # What is compiled in other threads is not interpreted.
    ceilings.SIZES = ceilings.Sizes(copied=2**16, matrices=64)
    suite_cases.workloads_of = tiny_workloads
    suite_cases.networks_of = tiny_networks
    # The interpreter does not go together with much else in a program.
    suite_cases.network_implementations = lambda names: ["einsum"]
    program.define_flags()
    with gpu_interpreter.interpreter():
        runs.start(program.main)


if __name__ == "__main__":
    # What is not needed there need not be there.
    sys.modules |= dict.fromkeys(("matplotlib", "sklearn", "chex", "scipy.stats"))
    main()
