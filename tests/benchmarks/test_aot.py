import dataclasses
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import aot, hlo, ptx
from tests.benchmarks import gpu_compiler
from tests.benchmarks.gpu_compiler import needs_compiler
from tests.benchmarks.kernel_facts import KERNEL

ROOT = pathlib.Path(__file__).parents[2]

LAUNCH = hlo.Launch(
    "kernel.1", "mosaic_gpu_v2", times=1, moved_bytes=0, written_bytes=8
)
FACTS = aot.Facts((LAUNCH,), aot.Memory(8, 8, 0, 16), (KERNEL,))


def with_kernel(**changes):
    return dataclasses.replace(FACTS, kernels=(dataclasses.replace(KERNEL, **changes),))


def with_launches(*launches):
    return dataclasses.replace(FACTS, launches=launches)


def test_a_good_kernel_has_no_problems():
    assert aot.kernel_problems(FACTS, max_launches=1, weight_bytes=0) == ()
    assert FACTS.num_launches == 1
    assert FACTS.moved_bytes == 0


TRANSPOSE = hlo.Launch(
    "loop_transpose_fusion", "fusion", times=2, moved_bytes=512, written_bytes=512
)
ADD = hlo.Launch("loop_add_fusion", "fusion", times=1, moved_bytes=0, written_bytes=8)


@pytest.mark.parametrize(
    ("facts", "max_launches", "problem"),
    [
        (with_kernel(spill_store_bytes=4), 1, "body_0 spills: .* 4 bytes .* loads 0"),
        (with_kernel(spill_load_bytes=8), 1, "body_0 spills: .* 0 bytes .* loads 8"),
        (with_kernel(warnings=("ptxas: slow",)), 1, "kernel body_0: ptxas: slow"),
        (dataclasses.replace(FACTS, kernels=()), 1, "no Mosaic GPU kernel"),
        (
            with_launches(dataclasses.replace(LAUNCH, times=3)),
            2,
            "3 kernel launches, more than 2: kernel.1",
        ),
        (with_launches(LAUNCH, TRANSPOSE), 3, "loop_transpose_fusion .* 512 bytes"),
        (with_launches(LAUNCH, ADD, TRANSPOSE), 1, "loop_transpose_fusion .* 512 by"),
    ],
)
def test_each_problem_is_seen(facts, max_launches, problem):
    (found,) = aot.kernel_problems(facts, max_launches=max_launches, weight_bytes=511)
    assert re.search(problem, found), found


def test_any_number_of_launches_is_fine_where_none_is_given():
    facts = with_launches(LAUNCH, ADD, dataclasses.replace(LAUNCH, times=5))
    assert aot.kernel_problems(facts, max_launches=None, weight_bytes=0) == ()
    assert facts.num_launches == 7


def test_weights_may_be_put_in_order():
    facts = with_launches(LAUNCH, TRANSPOSE, ADD)
    assert aot.kernel_problems(facts, max_launches=1, weight_bytes=512) == ()
    assert aot.kernel_problems(facts, max_launches=1, weight_bytes=None) == ()


def compiled_here(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def test_facts_of_a_real_program():
    # A CPU's, but the HLO is printed alike, and the numbers do not depend on that.
    x = jnp.ones((256, 128), "float32")
    facts = aot.facts(compiled_here(lambda x: (x.T + 0, x @ x.T), x), kernels=())
    assert facts.memory.argument == 4 * 256 * 128
    # A tuple's own pointers may come on top.
    results = 4 * (128 * 256 + 256 * 256)
    assert results <= facts.memory.output <= results + 16
    assert facts.num_launches == len(facts.launches) >= 2
    problems = aot.kernel_problems(facts, max_launches=None, weight_bytes=None)
    assert "no Mosaic GPU kernel" in problems[0]


def test_a_transpose_of_a_real_program():
    x = jnp.ones((256, 128), "float32")
    facts = aot.facts(compiled_here(lambda x: x.T, x), kernels=())
    assert facts.moved_bytes == 4 * 256 * 128
    problems = aot.kernel_problems(facts, max_launches=1, weight_bytes=1000)
    assert any("only transposes" in problem for problem in problems)


def test_kernels_and_their_dumps_must_agree():
    compiled = compiled_here(lambda x: x + 1, jnp.ones(4))
    with pytest.raises(ValueError, match=r"1 Mosaic GPU kernels .* launches none"):
        aot.facts(compiled, kernels=(KERNEL,))


@pytest.mark.parametrize(
    ("grid", "shared_bytes", "problems"),
    [
        ((132, 1), 200_000, 0),
        ((120, 4), 200_000, 0),
        ((132, 4), 200_000, 1),  # 33 of which 30 fit.
        ((240, 4), 100_000, 0),  # Two CTAs a multiprocessor.
        ((240, 4), 200_000, 1),
    ],
)
def test_clusters_that_do_not_fit(grid, shared_bytes, problems):
    ctas, cluster = grid
    facts = with_kernel(shared_bytes=shared_bytes, grid=ptx.Grid(ctas, cluster, 128))
    found = aot.kernel_problems(facts, max_launches=None, weight_bytes=None)
    assert len(found) == problems
    assert all("run at once" in problem for problem in found)


def test_wheels(monkeypatch):
    monkeypatch.setattr(aot, "WHEELS", ("jax", "no-such-wheel"))
    assert aot.missing_wheels() == ("no-such-wheel",)
    assert aot.wheel_versions() == {"jax": jax.__version__}


def test_wheels_are_pinned():
    lines = (ROOT / "constraints-gpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(aot.WHEELS) <= set(pins)
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    for name in ("jax-cuda13-plugin", "jax-cuda13-pjrt"):
        assert f"jax=={pins[name]}" in constraints


PROGRAM = """
import dataclasses, json
import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from benchmarks import aot

shape = jax.ShapeDtypeStruct

def double(x):
    def body(x_ref, y_ref, tile, loaded):
        plgpu.copy_gmem_to_smem(x_ref, tile, loaded)
        plgpu.barrier_wait(loaded)
        tile[...] = tile[...] * 2
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(tile, y_ref)
        plgpu.wait_smem_to_gmem(0)
    return plgpu.kernel(
        body,
        out_type=shape(x.shape, x.dtype),
        scratch_types=[plgpu.SMEM(x.shape, x.dtype), plgpu.Barrier()],
        grid=(1,),
        grid_names=("block",),
    )(x)

def show(facts):
    print(json.dumps(dataclasses.asdict(facts)))
"""


def run(code):
    """What a process prints that compiles."""
    done = gpu_compiler.run(PROGRAM + code)
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_compiler
def test_compiles_a_product():
    fused, library = run("""
x, w = shape((256, 32, 32), "bfloat16"), shape((32, 32, 32), "bfloat16")
product = lambda x, w: jnp.einsum("blk,jlk->bjk", x, w)
for triton in (True, False):
    options = {"xla_gpu_enable_triton_gemm": triton}
    show(aot.compile_for_gpu(product, (x, w), options=options))
""")
    for facts in (fused, library):
        assert facts["memory"]["argument"] == 2 * (256 * 32 * 32 + 32**3)
        assert facts["memory"]["output"] == 2 * 256 * 32 * 32
        assert facts["kernels"] == []
    assert [launch["moved_bytes"] for launch in fused["launches"]] == [0]
    kinds = [launch["kind"] for launch in library["launches"]]
    assert any(kind.startswith("__cublas") for kind in kinds)
    # The result is put back in order, and so are perhaps the operands.
    moved = sum(launch["moved_bytes"] for launch in library["launches"])
    assert moved >= facts["memory"]["output"]


@needs_compiler
def test_compiles_kernels():
    alone, transposed = run("""
x = shape((64, 128), "float32")
show(aot.compile_for_gpu(double, (x,)))
show(aot.compile_for_gpu(lambda x: double(double(x).T), (x,)))
""")
    (kernel,) = alone["kernels"]
    assert [launch["kind"] for launch in alone["launches"]] == ["mosaic_gpu_v2"]
    assert kernel["shared_bytes"] == 4 * 64 * 128
    assert 32 < kernel["registers"] <= 255  # 64 elements for each of 128 threads.
    assert kernel["spill_store_bytes"] == kernel["spill_load_bytes"] == 0
    assert kernel["operations"] == {"TMA load": 1, "TMA store": 1}
    assert kernel["grid"] == {"ctas": 1, "cluster": 1, "threads": 128}
    assert kernel["loop"] is None
    # All elements are read from shared memory, and written there.
    for word in ("load", "store"):
        moved = sum(
            times * int(what.split(", ")[1].split()[0])
            for what, times in kernel["accesses"].items()
            if what.startswith(f"shared {word}")
        )
        assert moved == 4 * 64 * 128 / 128
    assert len(transposed["kernels"]) == 2
    moves = [launch["moved_bytes"] for launch in transposed["launches"]]
    assert moves == [0, 4 * 64 * 128, 0]


@needs_compiler
def test_sees_a_spill():
    (facts,) = run("""
def spill(x):
    def body(x_ref, y_ref):
        kept = x_ref[...]
        total = kept
        for _ in range(3):
            total = jnp.exp(total) * kept + jnp.sum(total)
        y_ref[...] = total
    return plgpu.kernel(
        body, out_type=shape(x.shape, x.dtype), grid=(1,), grid_names=("block",)
    )(x)

show(aot.compile_for_gpu(spill, (shape((256, 128), "float32"),)))
""")
    (kernel,) = facts["kernels"]
    assert kernel["registers"] == 255
    assert kernel["spill_store_bytes"] > 0
    assert kernel["spill_load_bytes"] > 0


@needs_compiler
def test_refusals_and_failures():
    (messages,) = run("""
def refuse(x):
    raise NotImplementedError("not this")

found = []
for function, size in ((refuse, 4), (double, 300)):
    try:
        aot.compile_for_gpu(function, (shape((size, 256), "float32"),))
    except (NotImplementedError, aot.CompilationError) as error:
        found.append([type(error).__name__, str(error)])
print(json.dumps(found))
""")
    assert messages[0] == ["NotImplementedError", "not this"]
    assert messages[1][0] == "CompilationError"
    assert "SMEM" in messages[1][1] or "shared memory" in messages[1][1]
