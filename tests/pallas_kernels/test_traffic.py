"""Bytes counted by hand, and what follows from them."""

import dataclasses
import math

import pytest

from pallas_kernels import chain_plan, chain_steps, chips, traffic
from pallas_kernels.chain import Config, predicted_seconds
from pallas_kernels.tiles import Mma

MONARCH = [(1, 16, 16, 16), (16, 16, 16, 1)]
MMA = Mma(2)


def make_plan(shapes=MONARCH, x="bfloat16", num_pieces=1, batch_first=True):
    types = chain_plan.Types(x, x, num_pieces)
    return chain_steps.plan(shapes, types, rows=32, mma=MMA, batch_first=batch_first)


def test_features_first():
    # Two factors of 16 blocks (16 × 16), each block of x read by both pairs of warps.
    found = traffic.count(make_plan(batch_first=False), rows=32, mma=MMA)
    n, weights = 256, 2 * 16 * 256 * 2 / 32
    assert found.hbm == 2 * n + 2 * n
    assert found.l2 == 4 * n + weights
    by_tma = 4 * n + weights
    per_factor = 2 * 2 * n + 2 * n
    assert found.shared == by_tma + 2 * per_factor + 2 * weights


def test_features_last_are_transposed_once():
    first = traffic.count(make_plan(batch_first=False), rows=32, mma=MMA)
    last = traffic.count(make_plan(), rows=32, mma=MMA)
    assert last.hbm == first.hbm
    assert last.shared == first.shared + 2 * 2 * 256


def test_pieces():
    # Loaded as 4 bytes, kept as 2 + 2, multiplied three times.
    found = traffic.count(make_plan([(1, 32, 32, 1)], "float32", 2), rows=32, mma=MMA)
    n, weights = 32, 32 * 32 * 2 / 32
    assert found.hbm == 8 * n
    assert found.l2 == 8 * n + 2 * weights
    loaded, read, stored = 8 * n, 2 * 4 * n, 4 * n
    by_tma = 8 * n + 2 * weights
    assert found.shared == by_tma + loaded + read + 3 * 2 * weights + stored


def test_clusters():
    # Two CTAs, each with half of the blocks of either factor.
    cluster = chain_steps.plan(
        [(1, 32, 32, 32), (32, 32, 32, 1)],
        chain_plan.Types("bfloat16", "bfloat16"),
        rows=32,
        mma=MMA,
        batch_first=True,
        cluster=2,
        resident=1,
    )
    alone = make_plan([(1, 32, 32, 32), (32, 32, 32, 1)])
    found = traffic.count(cluster, rows=32, mma=MMA)
    whole = traffic.count(alone, rows=32, mma=MMA)
    n, weights = 1024, 32 * 32 * 32 * 2 / 32
    assert found.hbm == whole.hbm == 4 * n
    # The weights of one factor are not fetched anew; half of the tile changes hands.
    assert found.l2 == whole.l2 - weights == 4 * n + weights
    assert found.peers == 2 * n / 2
    assert found.shared == whole.shared - weights + 2 * 2 * n


def test_weights_are_put_in_order_before_the_launch_or_in_it():
    weights = 16 * 16 * 16

    def count(resident, **kwargs):
        plan = make_plan(**kwargs).keeping(resident)
        return traffic.count(plan, rows=32, mma=MMA)

    # XLA reads and writes those of d = 16; or each CTA reads them, and arranges them.
    streamed = count(0)
    assert streamed.ordered == (2 * 2 * weights,)
    assert streamed.kept == streamed.arranged == 0
    one, both = count(1), count(2)
    assert one.ordered == both.ordered == ()
    assert one.arranged == both.arranged == weights
    assert (one.kept, both.kept) == (2 * weights, 2 * 2 * weights)
    # Of neighbours that do not fill a sector, it is read for these alone.
    few = count(1, shapes=[(1, 16, 16, 6)], batch_first=False)
    assert (few.arranged, few.kept) == (6 * 256, (6 // 2) * 256 * 12)
    # Read as 4 bytes; written by XLA as 2 + 2.
    pieces = {"x": "float32", "num_pieces": 2}
    assert count(0, **pieces).ordered == (8 * weights,) * 2
    assert count(1, **pieces).ordered == (8 * weights,)
    assert count(2, **pieces).kept == 2 * 4 * weights


def test_short_runs_take_whole_sectors():
    shapes = [(1, 32, 32, 32), (32, 32, 32, 1)]
    types = chain_plan.Types("bfloat16", "bfloat16")
    counted = [
        traffic.count(
            chain_steps.plan(
                shapes, types, rows=64, mma=MMA, batch_first=True, cluster=size
            ),
            rows=64,
            mma=MMA,
        )
        for size in (2, 4)  # Runs of y of 32 and 16 bytes.
    ]
    assert counted[1].l2 == counted[0].l2 + 2 * 1024
    assert counted[1].peers == 1.5 * counted[0].peers


def seconds(**changes):
    given = {
        "batch": 2**20,
        "rows": 32,
        "mma": MMA,
        "warpgroups": 4,
        "stages": 4,
        "smem_bytes": 100_000,
    }
    return traffic.seconds(make_plan(), **{**given, **changes})


def test_nothing_is_faster_than_the_floor():
    floor = 2**20 * 1024 / chips.H200.hbm
    assert seconds() > floor
    slow = dataclasses.replace(chips.H200, hbm=chips.H200.hbm / 100)
    assert seconds(chip=slow) == pytest.approx(100 * floor, rel=0.01)


def test_what_makes_it_slower():
    assert seconds(stages=1) > seconds()
    assert seconds(warpgroups=1) > seconds()
    assert seconds(smem_bytes=200_000) > seconds()
    assert seconds(warpgroups=16) == math.inf  # There are 65,536 registers.
    # One vector takes as long as a tile, one tile more as long as a round.
    assert seconds(batch=1) == seconds(batch=32 * 264) < seconds(batch=32 * 264 + 1)


def test_a_launch_before_counts():
    def of(resident, batch):
        config = Config(resident=resident)
        return predicted_seconds(MONARCH, "bfloat16", batch, config=config)

    assert of(0, 1) > of(1, 1)


def test_the_default_configuration_is_no_slower_than_others():
    shapes = [(1, 32, 32, 32), (32, 32, 32, 1)]
    best = predicted_seconds(shapes, "bfloat16", 25088)
    for rows in (16, 32, 64):
        m_warps = 1 if rows == 16 else 2
        other = Config(rows=rows, m_warps=m_warps, warpgroups=2)
        assert best <= predicted_seconds(shapes, "bfloat16", 25088, config=other)
    too_large = Config(rows=256, m_warps=4)
    assert predicted_seconds(shapes, "bfloat16", 1, config=too_large) == math.inf
