"""What the chip's model says, beside times worked out by hand."""

import dataclasses
import json

import pytest

from pallas_kernels.common import chip as chips
from pallas_kernels.common.usage import Usage

CHIP = chips.Chip(
    device="made up",
    multiprocessors=10,
    smem_bytes=100_000,
    smem_bytes_per_cta=99_000,
    system_bytes=1000,
    registers=65_536,
    residency=((1, 10, 20), (2, 5, 10), (4, 2, 4)),
    clock=1e9,
    hbm=1e12,
    l2=2e12,
    peers=1e12,
    wgmma=1e13,
    mma_clocks=2.0,
    run_clocks=((16, 2.0), (32, 3.0), (128, 6.0)),
    line_clocks=2.0,
    instructions_per_clock=2.0,
    instructions_per_warp=0.25,
    trip_seconds=1e-6,
    meeting_seconds=1e-7,
    launch_seconds=3e-6,
    overlap=4.0,
)


def usage(**fields):
    return Usage(
        **{"hbm_bytes": 0.0, "l2_bytes": 0.0, "tiles": 10, "ctas": 10} | fields
    )


@pytest.mark.parametrize(
    ("fields", "part", "seconds"),
    [
        ({"hbm_bytes": 1e6}, "hbm", 1e-6),
        ({"l2_bytes": 1e6}, "l2", 0.5e-6),
        ({"peer_bytes": 1e6}, "peers", 1e-6),
        # Of 10 multiprocessors each has a tenth, at 1 GHz.
        ({"wavefronts": 1e4}, "shared", 1e-6),
        ({"instructions": 1e4}, "issue", 0.5e-6),
        ({"instructions": 1e4, "warps": 4}, "issue", 1e-6),  # Of so few one a clock.
        ({"lines": 1e4}, "lines", 2e-6),
        ({"mmas": 1e4}, "tensor", 2e-6),
        ({"wgmma_flops": 1e7}, "tensor", 1e-6),
        ({"runs": ((16, 1e4),)}, "tma", 2e-6),
        ({"runs": ((24, 1e4),)}, "tma", 2.5e-6),  # Between 2 and 3 clocks.
        ({"runs": ((80, 1e4), (256, 1e4))}, "tma", 10.5e-6),
        ({"trips": 0.5, "tiles": 30}, "waits", 1.5e-6),  # Three rounds.
        ({"meetings": 2}, "waits", 2e-7),
        # 11 tiles take two rounds, as 20 do.
        ({"wavefronts": 1.1e4, "tiles": 11}, "shared", 2e-6),
        # A cluster that finds no room waits for two others: 12 CTAs, two waves of 8.
        ({"wavefronts": 1.2e4, "tiles": 12, "ctas": 12, "cluster": 4}, "shared", 2e-6),
        # Two CTAs share a multiprocessor.
        (
            {"wavefronts": 2e4, "tiles": 20, "ctas": 20, "per_multiprocessor": 2},
            *("shared", 2e-6),
        ),
    ],
    ids=str,
)
def test_parts(fields, part, seconds):
    busy = CHIP.busy(usage(**fields))
    assert busy[part] == pytest.approx(seconds)
    assert sum(busy.values()) == pytest.approx(seconds)  # All else does nothing.


def test_what_comes_before_the_first_tile():
    asked = usage(prologue_bytes=2e5, prologue_trips=2)
    # A launch, the first fetch and two more; 2 MB of all ten CTAs from L2.
    assert CHIP.before(asked) == pytest.approx(3e-6 + 3e-6 + 1e-6)


def test_parts_overlap():
    asked = usage(hbm_bytes=1e8, wavefronts=1e6)
    both = CHIP.seconds(asked) - CHIP.before(asked)
    assert both == pytest.approx(1e-4 * 2 ** (1 / 4))
    alone = usage(hbm_bytes=1e8, wavefronts=5e5)
    assert CHIP.seconds(alone) - CHIP.before(alone) == pytest.approx(1e-4, rel=0.02)


@pytest.mark.parametrize(
    ("smem", "registers", "count"),
    [(49_000, 32_768, 2), (49_001, 32_768, 1), (49_000, 32_769, 1)],
)
def test_ctas_that_share_a_multiprocessor(smem, registers, count):
    assert CHIP.ctas_per_multiprocessor(smem, registers) == count


def test_clusters_that_are_not_in_the_table():
    with pytest.raises(ValueError, match=r"one of \[1, 2, 4\], got 3"):
        CHIP.resident(3)


def test_usage_is_of_a_launch():
    with pytest.raises(ValueError, match="tiles must be positive, got 0"):
        usage(tiles=0)


def test_tables_that_are_there():
    h200, h100 = chips.load("NVIDIA H200"), chips.load("NVIDIA H100 80GB HBM3")
    assert h200.resident(8) == 15 and h200.resident(2, 2) == 132
    assert h100.hbm < h200.hbm and h100.l2 == h200.l2
    assert h200.source("hbm").startswith("measured")
    assert h100.source("l2").startswith("of an NVIDIA H200")
    unknown = chips.load("NVIDIA B200")
    assert dataclasses.replace(unknown, device="", sources=()) == dataclasses.replace(
        h200, device="", sources=()
    )
    assert unknown.source("hbm").startswith("of an NVIDIA H200")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rates": {"hbm": -1.0}}, "rates.hbm cannot be -1.0"),
        ({"rates": {"speed": 1.0}}, "rates.speed is no field of Chip"),
        ({"rates": {"hbm": 1.0}, "sources": {}}, "sources.hbm is missing"),
        ({"more": 1}, "must have the fields device, rates and sources"),
    ],
)
def test_tables_that_are_none(change, reason, tmp_path):
    table = {"device": "x", "rates": {}, "sources": {"hbm": "", "speed": ""}} | change
    chips.path("x", tmp_path).write_text(json.dumps(table))
    with pytest.raises(ValueError, match=reason):
        chips.load("x", tmp_path)
