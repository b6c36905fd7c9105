"""Runs a program for GPUs on a CPU: in the interpreter, on tiny cases.

`python -m tests.benchmarks.rehearsal gpu_suite FLAGS`, or autotune. BROKEN in the
environment breaks the kernel: "narrow" is wrong in one configuration; in float16 "dead"
ends the process and "stuck" hangs.
"""

import contextlib
import dataclasses
import importlib
import os
import sys
import time

import jax

import butterjax as bj
from benchmarks import (
    ceilings,
    devices,
    kernel_checks,
    kernels,
    runs,
    suite_cases,
    suite_rows,
    workers,
)
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload
from pallas_kernels import factor
from tests import gpu_interpreter

SMALL = factor.Config(rows=64, features=16, depth=16, stages=2, ctas=1)
NARROW = dataclasses.replace(SMALL, stages=1)
apply = bj.butterfly
SPEC = "(1,32,16,1)"
CASES = {"factors": (SPEC, "bfloat16"), "paper": ("(2,16,16,1)", "float16")}


def tiny_checks(dtypes, layouts):
    """A few in each dtype, some with gradients."""
    for dtype in dtypes:
        for layout in layouts:
            work = Workload(SPEC, parse_chain(SPEC), 40, dtype, layout, "forward")
            check = kernel_checks.Check("pallas", work)
            yield check
            yield dataclasses.replace(check, has_bias=True, activation="gelu")
            if dtype == "bfloat16":
                both = dataclasses.replace(work, direction="forward+backward")
                yield dataclasses.replace(check, workload=both)


def tiny_workloads(part, layouts, *, num_patterns):
    """One workload for each of two parts, of the first layout."""
    if part in CASES:
        spec, dtype = CASES[part]
        yield Workload(spec, parse_chain(spec), 40, dtype, layouts[0], "forward")


HOW = os.environ.get("BROKEN")


def end(x):
    """What a kernel does that crashes, or never comes to an end."""
    os._exit(9) if HOW == "dead" else time.sleep(1000)


def butterfly(x, factors, *, implementation, **options):
    """The library's, or something that does not come back."""
    ours = implementation in suite_cases.OURS
    if ours and x.dtype == "float16" and HOW in ("dead", "stuck"):
        x = jax.pure_callback(end, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    return apply(x, factors, implementation=implementation, **options)


def run(x, factors, *, config, **options):
    """The kernel, or in one configuration something that is not."""
    y = factor.factor(x, *factors, config=config, **options)
    return y.at[-1].multiply(2) if HOW == "narrow" and config == NARROW else y


def prepare():
    """Makes everything small."""
    bj.butterfly = butterfly
    kernel = kernels.KERNELS["factor"]
    kernels.KERNELS.clear()
    kernels.KERNELS["factor"] = dataclasses.replace(
        kernel,
        run=run,
        default_config=lambda *args, **kwargs: SMALL,
        grid={},
        first=lambda by_rule: (NARROW,),
        is_launched_on=lambda workload, precision: (workload.chain,),
    )
    devices.problem = lambda: None
    # What is compiled in other threads is not interpreted.
    os.cpu_count = lambda: 1
    ceilings.SIZES = ceilings.Sizes(copied=2**16, matrices=64)
    suite_cases.workloads_of = tiny_workloads
    suite_cases.implementations = lambda workload: ["dense layer", "bmm", "pallas"]
    kernel_checks.checks = lambda *args: list(tiny_checks(*args))
    kernel_checks._TO_RUN = suite_rows._TO_RUN = 3.0


class Rehearsed:
    """A function that is called in a process of its own, prepared as this one is."""

    def __init__(self, function):
        self.function, self.stack = function, None

    def __call__(self, task, tell):
        if self.stack is None:
            prepare()
            self.stack = contextlib.ExitStack()
            self.stack.enter_context(gpu_interpreter.interpreter())
        return self.function(task, tell)


def main():
    program = importlib.import_module(f"benchmarks.{sys.argv.pop(1)}")
    prepare()
    run_all = workers.run_all
    workers.run_all = lambda function, *args, **kwargs: run_all(
        Rehearsed(function), *args, **kwargs
    )
    program.define_flags()
    with gpu_interpreter.interpreter():
        runs.start(program.main)


if __name__ == "__main__":
    # What is not needed there need not be there.
    sys.modules |= dict.fromkeys(("matplotlib", "sklearn", "chex", "scipy.stats"))
    main()
