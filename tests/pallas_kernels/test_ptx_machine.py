"""The machine that runs PTX computes, and sees what is wrong with a small kernel."""

import numpy as np
import pytest

from tests.ptx_machine import Cta, Program, TensorMap, run_cluster

# Copies rows of 16 bytes, one for each lane, by way of shared memory.
KERNEL = """
.visible .entry copy(
	.param .align 64 .b8 copy_param_0[128],
	.param .u64 .ptr .align 256 copy_param_1
)
{
	.reg .pred %p<2>;
	mov.b64 %rd1, copy_param_0;
	cvta.param.u64 %rd2, %rd1;
	ld.param.b64 %rd3, [copy_param_1];
	mov.u32 %r1, %tid.x;
	elect.sync %r2|%p1, -1;
	mov.b64 %rd4, __dynamic_shmem__0;
	cvt.u32.u64 %r3, %rd4;
	mov.b32 %r4, 1;
	mov.b32 %r5, 0;
	@%p1 mbarrier.init.shared.b64 [__dynamic_shmem__0+4096], %r4;
	mov.b32 %r6, 512;
	@%p1 mbarrier.arrive.expect_tx.shared.b64 %rd5, [__dynamic_shmem__0+4096], %r6;
	add.s32 %r7, %r3, 4096;
	@%p1 cp.async.bulk.tensor.2d.shared::cluster.global [%r3], [%rd2, {%r5,%r5}], [%r7];
	{
	.reg .pred P1;
	LAB_WAIT:
	mbarrier.try_wait.parity.shared.b64 P1, [%r7], %r5;
	@P1 bra.uni DONE;
	bra.uni LAB_WAIT;
	DONE:
	}
	mul.lo.s32 %r8, %r1, STRIDE;
	add.s32 %r9, %r3, %r8;
	ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r9+OFFSET];
	mul.wide.u32 %rd6, %r1, 16;
	add.s64 %rd7, %rd3, %rd6;
	setp.gt.u32 %p0, %r1, 27;
	@%p0 bra $L__BB0_1;
	st.global.v4.b32 [%rd7], {%r10, %r11, %r12, %r13};
$L__BB0_1:
	ret;
}
"""


def run(text=KERNEL, *, seed=0, stride=16, offset=0):
    text = text.replace("STRIDE", str(stride)).replace("OFFSET", str(offset))
    x = np.arange(256, dtype=np.uint16).reshape(32, 8)
    y = np.zeros_like(x)
    cta = Cta(
        Program.parse(text),
        index=0,
        rank=0,
        threads=32,
        arrays=[x, y],
        pointers=[1],
        maps=[TensorMap(x, (32, 8), (8, 1), (32, 8), 16)],
    )
    run_cluster([cta], seed)
    return x, y, cta


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_copied_but_those_that_lanes_skip(seed):
    x, y, cta = run(seed=seed)
    np.testing.assert_array_equal(y[:28], x[:28])
    assert not y[28:].any()
    assert cta.wavefronts == cta.fewest == 4


def test_a_missing_wait_gives_wrong_results():
    text = KERNEL.replace("@P1 bra.uni DONE", "bra.uni DONE")
    with pytest.raises(AssertionError, match="leaves before its copies"):
        run(text, seed=0)


def test_bank_conflicts_are_counted():
    _, _, cta = run(stride=32)
    assert (cta.wavefronts, cta.fewest) == (8, 4)


def test_a_misaligned_address_is_seen():
    with pytest.raises(AssertionError, match="16 bytes at"):
        run(offset=4)


def test_arrivals_that_never_come_are_seen():
    text = KERNEL.replace("mov.b32 %r4, 1;", "mov.b32 %r4, 2;")
    with pytest.raises(AssertionError, match="wait for ever"):
        run(text)


def test_an_instruction_that_is_not_known_is_refused():
    with pytest.raises(NotImplementedError, match="popc"):
        run(KERNEL.replace("mov.b32 %r4, 1;", "popc.b32 %r4, %r1;"))
