"""The proof of alignment: what it infers holds, and it finds what is misaligned."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.common import compat
from tests import alignment
from tests.alignment import _Known

SOME = [
    *(_Known(0, n) for n in (0, 1, 2, 3, 4, 6, 8, 12)),
    *(_Known(m, r) for m in (1, 2, 4, 6, 8, 12) for r in (0, 1, m // 2, m - 1)),
]
UNSIGNED = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divui": lambda a, b: a // b if b else None,
    "remui": lambda a, b: a % b if b else None,
    "maxui": max,
    "minui": min,
    "xori": lambda a, b: a ^ b,
    "ori": lambda a, b: a | b,
    "andi": lambda a, b: a & b,
    "shli": lambda a, b: a << b,
    "shrui": lambda a, b: a >> b,
}


def members(known, start=0):
    if not known.modulus:
        return [known.residue]
    first = start + (known.residue - start) % known.modulus
    return list(range(first, start + 40, known.modulus))


def holds(known, number):
    if not known.modulus:
        return number == known.residue
    return number % known.modulus == known.residue


@pytest.mark.parametrize("name", UNSIGNED)
def test_what_is_inferred_holds(name):
    for a, b in itertools.product(SOME, SOME):
        found = alignment._BINARY[name](a, b)
        for one, other in itertools.product(members(a), members(b)):
            number = UNSIGNED[name](one, other)
            assert number is None or holds(found, number), (a, b, one, other, found)


@pytest.mark.parametrize("name", ["divsi", "remsi"])
def test_what_is_inferred_of_negative_numbers_holds(name):
    for a, by in itertools.product(SOME, range(1, 9)):
        found = alignment._BINARY[name](a, _Known(0, by))
        for one in members(a, start=-20):
            quotient = abs(one) // by * (1 if one >= 0 else -1)
            number = quotient if name == "divsi" else one - quotient * by
            assert holds(found, number), (a, by, one, found)


def test_a_swizzle_keeps_whole_vectors():
    """As in (row · 128 + column · 16) ^ (row % 8 · 16)."""
    row, column = _Known(), _Known()
    address = row * _Known(0, 128) + column * _Known(0, 16)
    other = alignment._remainder(row, _Known(0, 8)) * _Known(0, 16)
    assert alignment._BINARY["xori"](address, other) == _Known(16)


@pytest.mark.parametrize(
    ("asm", "expected"),
    [
        ("ld.shared.v4.b32 {$0, $1, $2, $3}, [$4];", [(4, 16)]),
        ("{ @!$5 st.global.v2.f32 [$0+8], {$1, $2}; }", [(0, 8)]),
        ("ld.global.nc.u16 $0, [$1];", [(1, 2)]),
        ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {$0, $1}, [$2];", [(2, 16)]),
        ("cp.async.cg.shared.global [$0], [$1], 16;", [(0, 16), (1, 16)]),
        ("cp.async.ca.shared.global [$0], [$1], 4, $2;", [(0, 4), (1, 4)]),
        (
            "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes "
            "[$1], [$2], $3, [$4];",
            [(1, 16), (2, 16), (4, 8)],
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes "
            "[$0], [$1, {$2, $3}], [$4];",
            [(0, 128), (4, 8)],
        ),
        ("cp.async.bulk.commit_group;", []),
        ("bar.sync $0, 128;\nmbarrier.arrive.shared.b64 _, [$1], 1;", [(1, 8)]),
        ("mma.sync.aligned.m16n8k16 {$0}, {$1}, {$2}, {$3};", []),
    ],
)
def test_what_ptx_accesses(asm, expected):
    assert list(alignment._widths_of_asm(asm)) == expected


@pytest.mark.parametrize(
    "asm",
    [
        "add.u32 a, $0, 4; ld.shared.v4.b32 {$1, $2, $3, $4}, [a];",
        "ld.shared.v4.b32 {$0, $1, $2, $3}, [$4+4];",
        "cp.reduce.async.bulk.global.shared::cta.add.f32 [$0], [$1], 16;",
    ],
)
def test_ptx_that_is_not_known_does_not_pass(asm):
    with pytest.raises(NotImplementedError):
        list(alignment._widths_of_asm(asm))


def copied(padding):
    """A kernel that copies (32, 4) float32 by way of shared memory, in padded rows."""
    layout = compat.tiled_layout(
        [(32, 4), (8, 4), (1,)], warp_dims=[-5], lane_dims=[-3, -2], vector_dim=-1
    )

    def body(x, y, rows):
        part = rows.at[:, :4]
        part[...] = plgpu.load(x, layout=layout, optimized=False)
        y[...] = plgpu.load(part, layout=layout, optimized=False)

    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((32, 4), jnp.float32),
        scratch_types=[plgpu.SMEM((32, 4 + padding), jnp.float32)],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
    )


@pytest.mark.parametrize("padding", [0, 4, 8])
def test_rows_of_whole_vectors_are_aligned(padding):
    x = jax.ShapeDtypeStruct((32, 4), "float32")
    alignment.check_alignment(copied(padding), x)
    matrix = {"nvvm.ldmatrix", "nvvm.stmatrix"}
    found = alignment.accesses(copied(padding), x)
    assert matrix <= {access.instruction for access in found}


@pytest.mark.parametrize("padding", [1, 2, 3, 5])
def test_other_rows_are_not(padding):
    x = jax.ShapeDtypeStruct((32, 4), "float32")
    with pytest.raises(AssertionError, match=r"nvvm\.ldmatrix.*test_alignment\.py"):
        alignment.check_alignment(copied(padding), x)


def test_there_has_to_be_a_kernel():
    with pytest.raises(AssertionError, match="no kernel"):
        alignment.check_alignment(jnp.sin, jax.ShapeDtypeStruct((4,), "float32"))
