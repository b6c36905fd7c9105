import pytest

from benchmarks import nsight

HEADER = (
    *("Address", "Source", "# Samples", "Instructions Executed"),
    *("L1 Wavefronts Shared", "L1 Wavefronts Shared Ideal"),
    *("stall_barrier", "stall_long_sb", "stall_selected", "stall_barrier (Not Issued)"),
)
# Of Nsight Compute's source page, most columns left out.
LINES = (
    ("Kernel Name", "body_mosaic_gpu_kernel", ""),
    HEADER,
    ("0x00", "     LDSM.16.M88.4 R4, [R2] ", 10, 64, 512, 256, 0, 8, 2, 0),
    ("0x10", "@P0  HMMA.16816.F32.BF16 R8, R4, R6, R8 ", 30, 32, 0, 0, 20, 0, 10, 20),
    ("Kernel Name", "other", ""),
    HEADER,
    ("0x00", "     EXIT ", 0, 1, 0, 0, 0, 0, 0, 0),
)
PAGE = "\n".join(",".join(f'"{cell}"' for cell in line) for line in LINES)


def test_the_source_page_is_read():
    first, other = nsight.parse(PAGE)
    assert (first.kernel, other.kernel) == ("body_mosaic_gpu_kernel", "other")
    load, product = first.lines
    assert (load.opcode, product.opcode) == ("LDSM", "HMMA")
    assert (load.executed, load.wavefronts, load.ideal_wavefronts) == (64, 512, 256)
    assert product.stalls == {"barrier": 20, "long_sb": 0, "selected": 10}


def test_what_warps_wait_for():
    lines = list(nsight.describe(nsight.parse(PAGE)[0]))
    assert lines[:6] == [
        "body_mosaic_gpu_kernel: 40 samples, 96 instructions",
        "  waits for: barrier 50%, selected 30%, long_sb 20%",
        "  at: HMMA 75%, LDSM 25%",
        "  executed: LDSM 67%, HMMA 33%",
        "  3.0 instructions for each HMMA or HGMMA",
        "  shared memory: 2.00 of the ideal wavefronts",
    ]
    assert lines[6].split() == [
        *("30", "@P0", "HMMA.16816.F32.BF16", "R8,", "R4,", "R6,", "R8"),
        *("barrier", "67%,", "selected", "33%"),
    ]


def test_cases_are_read():
    work = nsight.workload("monarch:64x64/32/bfloat16/feature_first")
    assert (work.batch, work.layout, work.direction) == (32, "feature_first", "forward")
    work = nsight.workload("(1,16,16,4)/8/float16/feature_last/forward+backward")
    assert work.direction == "forward+backward"
    with pytest.raises(ValueError, match="no case is named 'monarch:64x64'"):
        nsight.workload("monarch:64x64")
