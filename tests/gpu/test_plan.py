"""Which launches a chain takes: sizes by hand, and the map stays the same."""

import functools
import itertools

import hypothesis
import pytest

import butterjax as bj
from butterjax.gpu.plan import collapse, plan_launches
from tests import strategies


def widest(chain):
    return max(max(pattern.b, pattern.c) for pattern in chain)


@pytest.mark.parametrize(
    ("chain", "max_block", "expected"),
    [
        (bj.Chain.square_dyadic(1024), 64, (5, 5)),  # 32·32, not 64·16.
        (bj.Chain.square_dyadic(1024), 16, (3, 3, 4)),
        (bj.Chain.square_dyadic(64), 64, (6,)),
        (bj.Chain.square_dyadic(64), 1, (1,) * 6),
        (bj.Chain.monarch(1024, 1024), 64, (1, 1)),
        (bj.Chain([(16, 16, 16, 1), (1, 16, 16, 16)]), 256, (1, 1)),  # Not chainable.
    ],
)
def test_collapse(chain, max_block, expected):
    found = collapse(chain, max_block)
    assert sorted(found) == sorted(expected)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(chain=strategies.chains(max_factors=5))
def test_collapse_is_the_shortest_with_the_fewest_weights(chain):
    allowed = []
    for cuts in itertools.product([False, True], repeat=len(chain) - 1):
        ends = [i for i, cut in enumerate([*cuts, True], 1) if cut]
        partition = tuple(b - a for a, b in zip([0, *ends], ends, strict=False))
        try:
            fused = chain.fuse(partition)
        except ValueError:
            continue
        products = [p for p, n in zip(fused, partition, strict=True) if n > 1]
        if not products or widest(products) <= 12:
            allowed.append((len(fused), fused.num_weights))
    fused = chain.fuse(collapse(chain, 12))
    assert (len(fused), fused.num_weights) == min(allowed)


plan = functools.partial(plan_launches, dtype="bfloat16", batch=4096)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize(
    ("chain", "num_launches"),
    [
        (bj.Chain.square_dyadic(256), 1),
        (bj.Chain.square_dyadic(1024), 1),
        (bj.Chain.monarch(512, 512), 1),
        (bj.Chain.square_dyadic(2048), 2),
        (bj.Chain.monarch(4096, 4096), 2),
    ],
    ids=str,
)
def test_small_factors_are_multiplied_out_and_pairs_share_a_launch(
    chain, num_launches, axis
):
    launches = plan(chain, axis=axis)
    assert len(launches) == num_launches
    patterns = [pattern for launch in launches for pattern in launch.chain]
    partition = tuple(itertools.chain(*(launch.partition for launch in launches)))
    assert bj.Chain(patterns) == chain.fuse(partition)


@pytest.mark.parametrize("axis", [-1, 0])
def test_no_other_cut_should_take_less(axis):
    chain = bj.Chain([(1, 16, 16, 256), (16, 16, 16, 16), (256, 16, 16, 1)])
    found = sum(launch.seconds for launch in plan(chain, axis=axis, batch=25_088))
    for cuts in itertools.product([False, True], repeat=2):
        ends = [i for i, cut in enumerate([*cuts, True], 1) if cut]
        runs = [
            bj.Chain(chain.patterns[start:end])
            for start, end in zip([0, *ends], ends, strict=False)
        ]
        pieces = [plan(run, axis=axis, batch=25_088) for run in runs]
        assert found <= sum(one.seconds for some in pieces for one in some) * (1 + 1e-9)


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_long_chains_take_several_launches(dtype, axis):
    chain = bj.Chain.square_dyadic(16384)
    launches = plan(chain, axis=axis, dtype=dtype)
    assert 1 < len(launches) < len(chain)
    partition = tuple(itertools.chain(*(launch.partition for launch in launches)))
    patterns = [pattern for launch in launches for pattern in launch.chain]
    assert bj.Chain(patterns) == chain.fuse(partition)


@pytest.mark.parametrize("precision", [None, "highest"])
def test_float32_of_small_blocks_needs_no_tensor_core(precision):
    chain = bj.Chain.square_dyadic(512)
    options = {"batch": 25_088, "precision": precision}
    (launch,) = plan(chain, dtype="float32", **options)
    assert (launch.kernel, launch.chain) == ("radix", chain)
    (launch,) = plan(chain, **options)
    assert launch.kernel == "fused"


BOTH, LAST, FIRST = (-1, 0), (-1,), (0,)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("kernel", "layouts", "shape"),
    [
        # Neighbours would be merged.
        ("radix", BOTH, (1, 2, 2, 512)),
        ("radix", BOTH, (512, 2, 2, 1)),
        ("radix", BOTH, (16, 4, 4, 16)),
        ("radix", BOTH, (64, 8, 8, 1)),
        ("radix", BOTH, (1, 8, 8, 64)),
        ("radix", BOTH, (2048, 2, 2, 1)),
        ("radix", BOTH, (1, 2, 2, 16384)),
        # No merging brings these into boxes that TMA can copy.
        ("radix", FIRST, (3, 2, 4, 5)),
        ("radix", LAST, (1, 16, 4, 16)),
        # They are taken as they are, padded on chip.
        ("factor", BOTH, (1, 8, 8, 1)),
        ("factor", FIRST, (1, 16, 4, 16)),
        ("factor", BOTH, (1, 48, 48, 1)),
        ("factor", FIRST, (1, 16, 16, 512)),
        # Merged, as a thread has no room for so many weights.
        ("factor", BOTH, (64, 12, 12, 1)),
        ("factor", LAST, (16, 8, 8, 2)),
    ],
)
def test_small_blocks_of_a_single_factor_need_no_tensor_core(
    kernel, layouts, shape, dtype
):
    for axis in layouts:
        (launch,) = plan(bj.Chain([shape]), dtype=dtype, axis=axis)
        assert launch.kernel == kernel
        assert launch.chain.shapes == (shape,)


@pytest.mark.parametrize("shape", [(1, 32, 32, 64), (4, 64, 48, 16), (1, 16, 16, 512)])
def test_neighbours_of_a_features_last_array_are_taken_in_place(shape):
    (launch,) = plan(bj.Chain([shape]))
    assert launch.kernel == "strided"
    (launch,) = plan(bj.Chain([shape]), axis=0)
    assert launch.kernel == "factor"
    (launch,) = plan(bj.Chain([shape]), dtype="float32")
    assert launch.kernel == "factor"


def test_blocks_that_lie_far_apart_are_transposed():
    (launch,) = plan(bj.Chain([(2, 512, 512, 16)]))
    assert launch.is_transposed
    (launch,) = plan(bj.Chain([(2, 512, 512, 16)]), axis=0)
    assert not launch.is_transposed


def test_a_plan_reads_well():
    (launch,) = plan(bj.Chain([(2, 512, 512, 16)]))
    assert str(launch) == (
        "factor between two transposes: 1 factors as (2, 512, 512, 16)"
    )


def test_what_no_kernel_takes():
    with pytest.raises(NotImplementedError, match="16 bytes"):
        plan(bj.Chain([(1, 3, 5, 1)]))


def test_a_batch_has_a_vector_at_least():
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        plan(bj.Chain.square_dyadic(1024), batch=0)
