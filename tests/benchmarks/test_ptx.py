import pytest

from benchmarks import ptx

PROGRAM = """\
.visible .entry body_mosaic_gpu_kernel(
	.param .align 64 .b8 body_mosaic_gpu_kernel_param_1[128]
)
{
	.shared .align 16 .b8 __dynamic_shmem__0;
	ld.param::entry.b64 	%rd2, [body_mosaic_gpu_kernel_param_0];
	ld.const.b32 	%r1, [table];
	// mma.sync and ld.global.b32 in a comment
	@%p1 prefetch.tensormap [%rd1];
	@%p1 cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%r1], [%rd1, {%r2, %r3, %r4}], [%r5];
	@%p1 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd1, {%r2}], [%r1];
	@%p1 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], %r2;
	cp.async.bulk.commit_group;
	cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd1], [%r1], %r2;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r44, %r45, %r46, %r47}, [%rd17];
	ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r44, %r45, %r46, %r47}, [%rd17];
	ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r48, %r49, %r50, %r51}, [%rd18];
	stmatrix.sync.aligned.m8n8.x4.shared.b16 [%rd17], {%r44, %r45, %r46, %r47};
	stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%rd17], {%r44, %r45, %r46, %r47};
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f1};
	mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2}, {%r1}, {%r2}, {%f2};
	wgmma.fence.sync.aligned;
	wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, 1, 1;
	wgmma.commit_group.sync.aligned;
	red.global.add.f32 [%rd1], %f1;
	atom.shared::cta.add.u32 %r1, [%r2], 1;
	red.async.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r1], %r2, [%r3];
	ld.b32 	%r7, [%rd4];
	ld.global.nc.L1::no_allocate.v4.b32 {%r1, %r2, %r3, %r4}, [%rd4];
	st.global.v2.f64 [%rd4], {%fd1, %fd2};
	ld.shared.v2.b32 {%r1, %r2}, [%r5];
	ld.shared.v2.b32 {%r3, %r4}, [%r5+8];
	st.shared::cta.b16 [%r5], %rs1;
	ld.shared::cluster.b16 %rs1, [%r5];
	st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r1], {%r2};
	ld.relaxed.gpu.global.u8 %r1, [%rd1];
	st.local.b32 [%rd1], %r1;
	ret;
}
"""

CLEAN = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'body_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for body_mosaic_gpu_kernel
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 16 barriers, 1 bytes smem
ptxas info    : Compile time = 72.506 ms
"""
SPILLING = """\
ptxas info    : Function properties for helper
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Function properties for body_mosaic_gpu_kernel
    16 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size
"""
SERIALIZED = (
    "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions "
    "are serialized due to insufficient register resources for the wgmma pipeline"
)
RESOURCES = (
    "Resources(smem_scratch_bytes=131072, tmem_scratch_cols=0, "
    "barrier_counts=Counter({Barrier(arrival_count=128, num_barriers=1): 1}))"
)


# The passes print a launch several times, its sizes first as other values' names.
PASSES = """\
  gpu.launch async [%1] clusters(%a, %b, %c) in (%d = %3, %e = %4, %f = %4) \
blocks(%g, %h, %i) in (%j = %5, %k = %4, %l = %4) \
threads(%m, %n, %o) in (%p = %6, %q = %4, %r = %4) dynamic_shared_memory_size %7 {
  gpu.launch async [%1] clusters(%a, %b, %c) in (%d = %c2, %e = %c1, %f = %c1_1) \
blocks(%g, %h, %i) in (%j = %c132_0, %k = %c1, %l = %c1) \
threads(%m, %n, %o) in (%p = %c256, %q = %c1, %r = %c1) \
dynamic_shared_memory_size %c9_i32 {
"""


def test_how_a_kernel_is_launched():
    assert ptx.grid(PASSES) == ptx.Grid(ctas=132, cluster=2, threads=256)
    before, after = PASSES.split("gpu.launch async [%1] clusters")[1:]
    assert ptx.grid(f"gpu.launch async [%1] clusters{before}") is None
    alone = after[after.index("blocks") :]
    assert ptx.grid(f"gpu.launch async [%1] {alone}") == ptx.Grid(132, 1, 256)


def test_operations():
    assert ptx.operations(PROGRAM) == {
        "mma.sync": 2,
        "wgmma": 1,
        "ldmatrix": 1,
        "ldmatrix.trans": 2,
        "stmatrix": 1,
        "stmatrix.trans": 1,
        "TMA load": 1,
        "TMA reduce": 1,
        "TMA store": 2,
        "atomic": 2,
    }
    assert ptx.operations("// mma.sync.aligned\n\tret;") == {}


def test_accesses():
    assert ptx.accesses(PROGRAM) == {
        "generic load, 4 bytes": 1,
        "global load, 1 bytes": 1,
        "global load, 16 bytes": 1,
        "global store, 16 bytes": 1,
        "shared load, 8 bytes": 2,
        "shared store, 2 bytes": 1,
        "cluster load, 2 bytes": 1,
        "cluster store, 16 bytes": 1,
        "local store, 4 bytes": 1,
    }


def test_kernel_without_spills():
    kernel = ptx.kernel("body_0", ptx=PROGRAM, ptxas=CLEAN, resources=RESOURCES)
    assert kernel == ptx.Kernel(
        name="body_0",
        registers=40,
        stack_bytes=0,
        spill_store_bytes=0,
        spill_load_bytes=0,
        shared_bytes=131072,
        operations=ptx.operations(PROGRAM),
        accesses=ptx.accesses(PROGRAM),
        warnings=(),
    )


def test_kernel_with_spills_and_a_warning():
    said = f"{SPILLING}{SERIALIZED}\n"
    kernel = ptx.kernel("body_0", ptx=PROGRAM, ptxas=said, resources=RESOURCES)
    assert kernel.registers == 168
    assert kernel.stack_bytes == 16
    assert kernel.spill_store_bytes == 4 + 20
    assert kernel.spill_load_bytes == 12 + 24
    assert kernel.warnings == (SERIALIZED,)


@pytest.mark.parametrize(
    ("ptxas", "resources", "missing"),
    [
        (CLEAN.replace("registers", "things"), RESOURCES, "registers"),
        (CLEAN.replace("spill stores", "spilled"), RESOURCES, "spill stores"),
        (CLEAN.replace("spill loads", "spilled"), RESOURCES, "spill loads"),
        (CLEAN, "Resources()", "smem_scratch_bytes"),
    ],
)
def test_a_number_that_is_not_found_is_no_zero(ptxas, resources, missing):
    with pytest.raises(ValueError, match=missing):
        ptx.kernel("body_0", ptx=PROGRAM, ptxas=ptxas, resources=resources)


def test_dumped_kernels(tmp_path):
    assert ptx.kernels(tmp_path) == ()
    for number in (10, 9):
        (tmp_path / f"body_{number}.ptx").write_text(PROGRAM)
        (tmp_path / f"body_{number}.ptxas").write_text(CLEAN)
        (tmp_path / f"body_{number}.resources.txt").write_text(RESOURCES)
        (tmp_path / f"body_{number}.mlir-passes.log").write_text(PASSES)
        (tmp_path / f"body_{number}.sass_ctrl").write_text("")
    found = ptx.kernels(tmp_path)
    assert [kernel.name for kernel in found] == ["body_9", "body_10"]
    assert [kernel.loop for kernel in found] == [None, None]
    assert {kernel.grid for kernel in found} == {ptx.Grid(132, 2, 256)}
    (tmp_path / "body_9.ptxas").unlink()
    with pytest.raises(ValueError, match=r"body_9\.ptx was dumped, but body_9\.ptxas"):
        ptx.kernels(tmp_path)
