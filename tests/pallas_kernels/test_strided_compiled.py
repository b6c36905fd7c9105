"""The kernel for one strided factor, compiled for an H200."""

import json

from tests.benchmarks import gpu_compiler
from tests.benchmarks.gpu_compiler import needs_compiler

PROGRAM = """
import functools, json, sys
import jax
from benchmarks import aot
from pallas_kernels.strided.api import strided

for shape, dtype, options in json.loads(sys.argv[1]):
    a, b, c, d = shape
    array = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    facts = aot.compile_for_gpu(
        lambda x, w, bias: strided(x, w, bias=bias, **options),
        (array((25_088, a * c * d)), array(shape), array((a * b * d,))),
    )
    problems = aot.kernel_problems(facts, max_launches=1, weight_bytes=0, alone=True)
    print(json.dumps(problems))
"""
# All of the registers, as one launch and as a cluster; 4 neighbours of a warp; most
# addresses of a lane.
CASES = [
    ((1, 32, 32, 64), "bfloat16", {"activation": "gelu"}),
    ((1, 64, 64, 64), "float16", {"activation": "silu"}),
    ((1, 128, 128, 16), "bfloat16", {}),
    ((4, 64, 64, 8), "bfloat16", {"activation": "relu"}),
]


@needs_compiler
def test_one_launch_without_spills():
    done = gpu_compiler.run(PROGRAM, json.dumps(CASES))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[]] * len(CASES)
