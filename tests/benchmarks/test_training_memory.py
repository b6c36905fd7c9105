"""What a training step of one layer takes beside its arguments and gradients."""

import json

import pytest

from tests.benchmarks import gpu_compiler

PROGRAM = """
import json, sys
import jax
import butterjax as bj
from benchmarks import aot
from benchmarks.cases import parse_chain

def temporary(implementation, dtype, factors, batch):
    chain = parse_chain(f"square_dyadic:1024/{factors}")

    def step(x, factors, dy):
        def loss(x, factors):
            y = bj.butterfly(x, factors, implementation=implementation)
            return (y.astype("float32") * dy).sum()
        return jax.value_and_grad(loss, (0, 1))(x, factors)

    x = jax.ShapeDtypeStruct((batch, 1024), dtype)
    weights = tuple(jax.ShapeDtypeStruct(s, dtype) for s in chain.shapes)
    return aot.compile_for_gpu(step, (x, weights, x)).memory.temporary

for implementation, dtype, factors in json.loads(sys.argv[1]):
    # What is as large as the weights, and not the batch, goes out.
    low, high = (temporary(implementation, dtype, factors, n) for n in (4096, 8192))
    print((high - low) / (4096 * 1024 * jax.numpy.dtype(dtype).itemsize))
"""


@gpu_compiler.needs_compiler
def test_intermediates_at_a_time_do_not_grow_with_the_factors():
    cases = [
        (implementation, dtype, factors)
        for implementation in ("einsum", "pallas_chain")
        for dtype, factors in (("bfloat16", 2), ("bfloat16", 6), ("float32", 2))
    ]
    cases.append(("pallas_chain", "float32", 10))
    done = gpu_compiler.run(PROGRAM, json.dumps(cases), timeout=600)
    # In arrays as large as x.
    of = dict(zip(cases, map(float, done.stdout.split()), strict=True))
    share = {case[1:]: of["pallas_chain", *case[1:]] / of[case] for case in cases[:3]}
    assert share["bfloat16", 2] <= 0.5
    assert share["bfloat16", 6] <= 0.2
    for factors in (2, 6):  # The result y, and after it one intermediate at a time.
        assert of["pallas_chain", "bfloat16", factors] == pytest.approx(1, abs=0.02)
    # Float32 of blocks that lie zipped is transposed: an intermediate, and its like.
    assert share["float32", 2] <= 1.01
    for factors in (2, 10):
        assert of["pallas_chain", "float32", factors] == pytest.approx(2, abs=0.02)
