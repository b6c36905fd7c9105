"""The kernel for two factors, compiled for an H200."""

import json

from tests.benchmarks import gpu_compiler
from tests.benchmarks.gpu_compiler import needs_compiler

PROGRAM = """
import functools, json, math, sys
import jax
from benchmarks import aot
from pallas_kernels.fused.api import fused

for shapes, axis, dtype, options in json.loads(sys.argv[1]):
    n_in = math.prod(shapes[1]) // shapes[1][1]
    n_out = math.prod(shapes[0]) // shapes[0][2]
    array = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    facts = aot.compile_for_gpu(
        lambda x, factors, bias: fused(x, factors, axis=axis, bias=bias, **options),
        (
            array((25_088, n_in) if axis == -1 else (n_in, 25_088)),
            [array(shape) for shape in shapes],
            array((n_out,)),
        ),
    )
    problems = aot.kernel_problems(facts, max_launches=1, weight_bytes=0, alone=True)
    print(json.dumps(problems))
"""
LARGE = ((1, 32, 32, 32), (32, 32, 32, 1))
# All of the registers, in both layouts; teams.
CASES = [
    (LARGE, -1, "bfloat16", {"activation": "gelu"}),
    (LARGE, 0, "float16", {"activation": "silu"}),
    (((1, 32, 32, 16), (32, 16, 16, 1)), 0, "bfloat16", {"activation": "relu"}),
]


@needs_compiler
def test_one_launch_without_spills():
    done = gpu_compiler.run(PROGRAM, json.dumps(CASES))
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found == [[]] * len(CASES)
