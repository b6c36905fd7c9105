"""Programs are XLA's for an H200, cut down; what they hold was counted by hand."""

import pytest

from benchmarks import hlo

# A batched product that reads and writes its arrays in another order, in one kernel.
TRANSPOSES_INSIDE_A_PRODUCT = """\
HloModule jit_bmm, is_scheduled=true, entry_computation_layout={(bf16[512,1024]{1,0})}

%gemm_computation (p0: bf16[512,32,32], p1: bf16[32,32,32]) -> bf16[512,32,32] {
  %p0 = bf16[512,32,32]{2,1,0} parameter(0)
  %transpose.1 = bf16[32,512,32]{2,1,0} transpose(%p0), dimensions={1,0,2}
  %p1 = bf16[32,32,32]{2,1,0} parameter(1)
  %dot.1 = f32[32,512,32]{2,1,0} dot(%transpose.1, %p1), lhs_batch_dims={0}, \
lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}
  %convert.1 = bf16[32,512,32]{2,1,0} convert(%dot.1)
  ROOT %transpose.2 = bf16[512,32,32]{2,1,0} transpose(%convert.1), dimensions={1,0,2}
}

ENTRY %main.1 (x.1: bf16[512,1024], w.1: bf16[1,32,32,32]) -> bf16[512,1024] {
  %w.1 = bf16[1,32,32,32]{3,2,1,0} parameter(1)
  %bitcast.1 = bf16[32,32,32]{2,1,0} bitcast(%w.1)
  %x.1 = bf16[512,1024]{1,0} parameter(0), metadata={op_name="x"}
  %bitcast.2 = bf16[512,32,32]{2,1,0} bitcast(%x.1)
  %gemm_fusion_dot = bf16[512,32,32]{2,1,0} fusion(%bitcast.2, %bitcast.1), \
kind=kCustom, calls=%gemm_computation, backend_config={"kind":"__triton_gemm"}
  ROOT %bitcast.3 = bf16[512,1024]{1,0} bitcast(%gemm_fusion_dot)
}
"""

# The same around a library, which wants and gives each block in one piece, and float32.
TRANSPOSES_AROUND_A_LIBRARY_CALL = """\
HloModule jit_bmm, is_scheduled=true

%fused_transpose (p: bf16[512,1024]) -> bf16[32,512,32] {
  %p = bf16[512,1024]{1,0} parameter(0)
  %bitcast.5 = bf16[512,32,32]{2,1,0} bitcast(%p)
  ROOT %transpose.5 = bf16[32,512,32]{2,1,0} transpose(%bitcast.5), dimensions={1,0,2}
}

%fused_transpose.1 (p.1: f32[32,512,32]) -> bf16[512,32,32] {
  %p.1 = f32[32,512,32]{2,1,0} parameter(0)
  %convert.2 = bf16[32,512,32]{2,1,0} convert(%p.1)
  ROOT %transpose.6 = bf16[512,32,32]{2,1,0} transpose(%convert.2), dimensions={1,0,2}
}

ENTRY %main.1 (x.1: bf16[512,1024], w.1: bf16[32,32,32]) -> bf16[512,32,32] {
  %x.1 = bf16[512,1024]{1,0} parameter(0)
  %loop_transpose_fusion = bf16[32,512,32]{2,1,0} fusion(%x.1), kind=kLoop, \
calls=%fused_transpose
  %w.1 = bf16[32,32,32]{2,1,0} parameter(1)
  %custom-call.2 = (f32[32,512,32]{2,1,0}, s8[4194304]{0}) \
custom-call(%loop_transpose_fusion, %w.1), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"alpha_real":1}}
  %get-tuple-element.2 = f32[32,512,32]{2,1,0} get-tuple-element(%custom-call.2), \
index=0
  ROOT %input_transpose_fusion = bf16[512,32,32]{2,1,0} \
fusion(%get-tuple-element.2), kind=kInput, calls=%fused_transpose.1
}
"""


def read(text):
    return hlo.launches(hlo.parse(text))


def entry(*lines):
    body = "".join(f"  {line}\n" for line in lines)
    return f"ENTRY %main.1 (x: f32[4]) -> f32[4] {{\n{body}}}\n"


def test_transposes_inside_a_product_move_nothing():
    assert read(TRANSPOSES_INSIDE_A_PRODUCT) == (
        hlo.Launch("gemm_fusion_dot", "fusion", 1, moved_bytes=0, written_bytes=2**20),
    )


def test_transposes_around_a_library_call():
    found = read(TRANSPOSES_AROUND_A_LIBRARY_CALL)
    moved = 2 * 512 * 1024  # bfloat16, in and out.
    assert found == (
        hlo.Launch("loop_transpose_fusion", "fusion", 1, moved, written_bytes=moved),
        hlo.Launch(
            "custom-call.2", "__cublas$lt$matmul", 1, 0, written_bytes=2 * moved
        ),
        hlo.Launch("input_transpose_fusion", "fusion", 1, moved, written_bytes=moved),
    )
    assert hlo.count(found) == 3
    assert hlo.moved_bytes(found) == 2 * moved
    assert hlo.written_bytes(found) == 4 * moved
    names = {"loop_transpose_fusion", "input_transpose_fusion"}
    assert hlo.moving_kernels(found) == names


def test_copies_transposes_and_bitcasts_of_the_entry():
    found = read(
        entry(
            "%x = f32[4]{0} parameter(0)",
            "%bitcast.1 = f32[2,2]{0,1} bitcast(%x)",
            "%copy.1 = f32[2,2]{1,0} copy(%bitcast.1)",
            "%transpose.1 = f32[2,2]{1,0} transpose(%copy.1), dimensions={1,0}",
            "%copy-start.1 = (f32[2,2]{1,0}, f32[2,2]{1,0}, u32[]) "
            "copy-start(%transpose.1)",
            "%copy-done.1 = f32[2,2]{1,0} copy-done(%copy-start.1)",
            "ROOT %tuple.1 = (f32[2,2]{1,0}) tuple(%copy-done.1)",
        )
    )
    assert all(launch.written_bytes == 16 for launch in found)
    assert hlo.moving_kernels(found) == {"copy_1", "transpose_1", "copy_start_1"}
    assert [(launch.name, launch.moved_bytes) for launch in found] == [
        ("copy.1", 16),
        ("transpose.1", 16),
        ("copy-start.1", 16),
    ]


@pytest.mark.parametrize(
    ("lines", "moved"),
    [
        # The order stays as it is.
        (["ROOT %y = bf16[2,3]{1,0} convert(%p)"], 0),
        (
            ["%t = f32[3,2]{0,1} bitcast(%p)", "ROOT %y = f32[6]{0} bitcast(%t)"],
            0,
        ),
        (
            [
                "%t = f32[3,2]{1,0} transpose(%p), dimensions={1,0}",
                "ROOT %y = bf16[3,2]{1,0} convert(%t)",
            ],
            12,
        ),
        (
            [
                "%s = f32[2,1]{1,0} slice(%p), slice={[0:2], [0:1]}",
                "ROOT %y = f32[1,2]{1,0} transpose(%s), dimensions={1,0}",
            ],
            8,
        ),
        (["ROOT %y = f32[2,3]{0,1} copy(%p)"], 24),
        # Computed here, and only written in another order.
        (
            [
                "%n = f32[2,3]{1,0} negate(%p)",
                "ROOT %y = f32[3,2]{1,0} transpose(%n), dimensions={1,0}",
            ],
            0,
        ),
        # Two results, of which one is computed.
        (
            [
                "%t = f32[3,2]{1,0} transpose(%p), dimensions={1,0}",
                "%n = f32[3,2]{1,0} negate(%t)",
                "ROOT %both = (f32[3,2]{1,0}, f32[3,2]{1,0}) tuple(%n, %t)",
            ],
            24,
        ),
    ],
)
def test_what_a_fusion_only_moves(lines, moved):
    body = "".join(f"  {line}\n" for line in lines)
    (launch,) = read(
        "%fused (p: f32[2,3]) -> f32[3,2] {\n"
        "  %p = f32[2,3]{1,0} parameter(0)\n"
        f"{body}}}\n\n"
        + entry(
            "%x = f32[2,3]{1,0} parameter(0)",
            "ROOT %f = f32[3,2]{1,0} fusion(%x), kind=kLoop, calls=%fused",
        )
    )
    assert launch.moved_bytes == moved


def one_copy(name, copies=1):
    lines = "".join(
        f"  %copy.{name}.{i} = f32[4]{{0}} copy(%p)\n" for i in range(copies)
    )
    parameter = "  %p = f32[4]{0} parameter(0)\n"
    return f"%{name} (p: f32[4]) -> f32[4] {{\n{parameter}{lines}}}\n"


@pytest.mark.parametrize(
    ("line", "times"),
    [
        ("%r = f32[4]{0} call(%x), to_apply=%a", [1]),
        (
            "%r = f32[4]{0} while(%x), condition=%a, body=%b, "
            'backend_config={"known_trip_count":{"n":"12"}}',
            [12, 12, 12],
        ),
        ("%r = f32[4]{0} while(%x), condition=%a, body=%b", [1, 1, 1]),
        ("%r = f32[4]{0} conditional(%x), branch_computations={%a, %b}", [1, 1]),
        (
            "%r = f32[4]{0} conditional(%x), true_computation=%b, false_computation=%a",
            [1, 1],
        ),
        ("%r = ((f32[4]), f32[4], u32[]) async-start(%x), calls=%a", [1]),
        ("%r = f32[4]{0} async-done(%x), calls=%a", []),
        ("%r = f32[4]{0} sort(%x), dimensions={0}, to_apply=%a", [1]),
    ],
)
def test_loops_and_calls(line, times):
    found = read(one_copy("a") + one_copy("b", copies=2) + entry(line))
    assert [launch.times for launch in found] == times
    assert hlo.count(found) == sum(times)
    copies = sum(launch.times for launch in found if launch.kind == "copy")
    assert hlo.moved_bytes(found) == 16 * copies


def test_the_program_of_a_kernel_is_not_read_as_hlo():
    line = (
        '%kernel.1 = f32[4]{0} custom-call(%x), custom_call_target="mosaic_gpu_v2", '
        'backend_config={kernel_hash = "\\AE\\22", module = "ML\\EFR calls=%gone \\" '
        'body=%gone "}'
    )
    module = hlo.parse(entry("%x = f32[4]{0} parameter(0)", f"ROOT {line}"))
    assert module.computations["main.1"][1].called == ()
    assert hlo.launches(module) == (
        hlo.Launch("kernel.1", "mosaic_gpu_v2", 1, moved_bytes=0, written_bytes=16),
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[512,32]{1,0}", 32768),
        ("f32[]", 4),
        ("pred[3]{0}", 3),
        ("c64[2]{0}", 16),
        ("f8e4m3fn[7]{0}", 7),
        ("s4[6]{0:E(4)}", 3),
        ("f32[5,0]{1,0}", 0),
        ("token[]", 0),
        ("(f32[2,2]{1,0}, /*index=1*/s8[5]{0})", 21),
    ],
)
def test_num_bytes(shape, size):
    assert hlo.num_bytes(shape) == size


def test_unreadable():
    with pytest.raises(ValueError, match="unknown element type 'float'"):
        hlo.num_bytes("float[2]")
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse(one_copy("a"))
