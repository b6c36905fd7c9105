"""The floor model against numbers worked out by hand."""

import dataclasses

import pytest

import butterjax as bj
from butterjax.planning import floor

H200 = dataclasses.replace(bj.planning.rates_of("NVIDIA H200"), launch_seconds=0.0)
# 100 bytes/s, 1000 FLOP/s, one second per launch.
SLOW = bj.planning.Rates("toy", 100.0, {"float32": 1000.0}, 1.0, False, "made up")


# What arithmetic and memory allow an H200 per row in bfloat16, in nanoseconds:
# n = 1024: dense 2·1024²/828e12 = 2.53, fused 2·2·1024/4.29e12 = 0.955;
# n = 4096: dense 2·4096²/828e12 = 40.5, fused 2·2·4096/4.29e12 = 3.82.
@pytest.mark.parametrize(
    ("chain", "dense_ns", "fused_ns", "gain"),
    [
        (bj.Chain.monarch(1024, 1024), 2.533, 0.9548, 2),
        (bj.Chain.monarch(4096, 4096), 40.52, 3.819, 2),
        (bj.Chain.square_dyadic(4096), 40.52, 3.819, 12),
    ],
)
def test_rows_of_a_large_batch(chain, dense_ns, fused_ns, gain):
    batch, n = 10**7, chain.in_features
    call = floor.Call(batch, 2, False)

    def ns_per_row(launches):
        return 1e9 * floor.seconds(launches, H200, "bfloat16") / batch

    assert ns_per_row(floor.dense_launches(n, n, call)) == pytest.approx(
        dense_ns, rel=2e-3
    )
    fused = ns_per_row(floor.chain_launches(chain, call, runs=[chain]))
    assert fused == pytest.approx(fused_ns, rel=2e-3)
    single = ns_per_row(floor.chain_launches(chain, call))
    assert single / fused == pytest.approx(gain, rel=2e-3)


# 6 -> 12 features: the last factor, (2, 4, 3, 1), has 24 weights and takes 6 to 8
# features; the first, (1, 3, 2, 4), has 24 and takes 8 to 12.
CHAIN = bj.Chain([(1, 3, 2, 4), (2, 4, 3, 1)])


def test_launches_of_a_chain():
    forward, both = floor.Call(10, 4, False), floor.Call(10, 4, True)
    applied_first = floor.Launch(4 * (10 * (6 + 8) + 24), 10 * 2 * 24)
    applied_last = floor.Launch(4 * (10 * (8 + 12) + 24), 10 * 2 * 24)
    single = (applied_first, applied_last)
    whole = floor.Launch(4 * (10 * (6 + 12) + 48), 10 * 2 * 48)
    assert floor.chain_launches(CHAIN, forward) == single
    assert floor.chain_launches(CHAIN, forward, runs=[CHAIN]) == (whole,)
    unfused = floor.chain_launches(CHAIN, both)
    assert sorted(unfused, key=str) == sorted(single * 3, key=str)
    # The intermediate between the factors is computed again.
    fused = floor.chain_launches(CHAIN, both, runs=[CHAIN])
    expected = (whole, applied_first, *single, *single)
    assert sorted(fused, key=str) == sorted(expected, key=str)


def test_runs_share_a_launch():
    call = floor.Call(10, 4, False)
    chain = bj.Chain.square_dyadic(8)
    # The first two to be applied, multiplied out: 8 features, 32 weights.
    runs = [bj.Chain([(1, 2, 2, 4)]), bj.Chain([(2, 4, 4, 1)])]
    assert floor.chain_launches(chain, call, runs=runs) == (
        floor.Launch(4 * (10 * 16 + 32), 10 * 2 * 32),
        floor.Launch(4 * (10 * 16 + 16), 10 * 2 * 16),
    )
    # x, y, three factors as they are given, and the one intermediate.
    assert floor.chain_bytes(chain, call, runs=runs) == 4 * (10 * 16 + 48 + 10 * 8)
    # The gradients are those of the two, with the one intermediate computed again.
    both = floor.Call(10, 4, True)
    assert len(floor.chain_launches(chain, both, runs=runs)) == 2 + 1 + 2 * 2
    trained = 4 * (2 * (10 * 16 + 48) + 10 * 8)
    assert floor.chain_bytes(chain, both, runs=runs) == trained
    radix2 = 4 * (2 * (10 * 16 + 48) + 2 * 10 * 8)
    assert floor.chain_bytes(chain, both) == radix2


def test_launches_of_a_dense_layer():
    one = floor.Launch(2 * (10 * (6 + 12) + 72), 2 * 10 * 72)
    forward, both = floor.Call(10, 2, False), floor.Call(10, 2, True)
    assert floor.dense_launches(6, 12, forward) == (one,)
    assert floor.dense_launches(6, 12, both) == (one,) * 3


def test_seconds_are_the_longer_of_two_and_the_start():
    memory, arithmetic = floor.Launch(300, 100), floor.Launch(100, 5000)
    assert floor.seconds([memory], SLOW, "float32") == 3 + 1
    assert floor.seconds([arithmetic], SLOW, "float32") == 5 + 1
    assert floor.seconds([memory, arithmetic], SLOW, "float32") == 10
    with pytest.raises(ValueError, match="no matmul rate of toy is known for float16"):
        floor.seconds([memory], SLOW, "float16")


def test_memory():
    forward, both = floor.Call(10, 4, False), floor.Call(10, 4, True)
    arrays = 10 * (6 + 12) + 48
    fits = floor.chain_bytes(CHAIN, forward, runs=[CHAIN])
    assert fits == 4 * arrays
    single = floor.chain_bytes(CHAIN, forward)
    assert single == 4 * (arrays + 10 * 8)
    trained = floor.chain_bytes(CHAIN, both, runs=[CHAIN])
    assert trained == 4 * (2 * arrays + 10 * 8)
    dense = floor.dense_bytes(6, 12, forward)
    assert dense == 4 * (10 * 18 + 72)
    # Three factors: two intermediates at a time.
    radix2 = floor.chain_bytes(bj.Chain.square_dyadic(16), forward)
    assert radix2 == 4 * (10 * 32 + 4 * 32 + 2 * 10 * 16)


@pytest.mark.parametrize(
    ("device", "found"),
    [
        ("NVIDIA H200", "NVIDIA H200"),
        ("nvidia h200 nvl", "NVIDIA H200"),
        ("Intel(R) Xeon(R) Processor, 2 threads", "cpu"),
        ("cpu", "cpu"),
    ],
)
def test_rates_of(device, found):
    rates = bj.planning.rates_of(device)
    assert rates.device == found
    assert rates.source == "assumed"


def test_rates_of_an_unknown_device():
    with pytest.raises(ValueError, match="'Abacus', only for: NVIDIA H200, cpu"):
        bj.planning.rates_of("Abacus")
