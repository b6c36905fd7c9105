"""How the radix kernel cuts chains into passes: sizes, threads and bank conflicts."""

import itertools
import math

import numpy as np
import pytest

import butterjax as bj
from pallas_kernels.common import tiles
from pallas_kernels.radix import plan as passes
from tests import reference

RADIX_2 = bj.Chain.square_dyadic(1024).shapes
CHAINS = [
    (RADIX_2, 16),
    (tuple(reversed(RADIX_2)), 16),
    (bj.Chain.square_dyadic(32).shapes, 64),
    (((1, 2, 4, 16), (2, 8, 4, 4), (8, 4, 2, 1)), 64),
    (((1, 6, 3, 8), (3, 2, 4, 4), (12, 4, 8, 1)), 64),
]

each_chain = pytest.mark.parametrize(("shapes", "rows"), CHAINS, ids=str)
both_layouts = pytest.mark.parametrize("rows_last", [False, True])


def plan(shapes, rows, *, rows_last=False, warpgroups=2):
    return passes.plan(
        shapes,
        rows=rows,
        warpgroups=warpgroups,
        stages=1,
        itemsizes=(4, 4),
        rows_last=rows_last,
        smem_bytes=tiles.SMEM_BYTES,
    )


@both_layouts
@each_chain
def test_passes_make_up_the_chain(shapes, rows, rows_last):
    """Units that apply their share of each pass give the product with the chain."""
    factors = reference.draw_factors(bj.Chain(shapes))
    h = reference.draw((math.prod(shapes[-1]) // shapes[-1][1],)).astype(float)
    expected = reference.apply(h[None], factors)[0]
    for step in plan(shapes, rows, rows_last=rows_last).steps:
        work = step.work
        units = h.reshape(work.a, work.c, work.d)
        made = np.empty((work.a, work.b, work.d))
        for i, k in itertools.product(range(work.a), range(work.d)):
            values = units[i, :, k]
            for index, (a, b, c, d) in zip(work.indices, work.factors, strict=True):
                w = factors[index].reshape(work.a, a, b, c, d, work.d)[i, ..., k]
                values = reference.matrix(w.reshape(a, b, c, d)) @ values
            made[i, :, k] = values
        h = made.ravel()
    np.testing.assert_allclose(h, expected, rtol=1e-12)


@both_layouts
@each_chain
def test_every_unit_and_row_is_taken_once(shapes, rows, rows_last):
    found = plan(shapes, rows, rows_last=rows_last)
    for step in found.steps:
        threads = step.threads
        assert math.prod(threads.lanes) == 32
        assert math.prod(threads.warps) == 4
        assert math.prod(threads.groups) == 2
        taken = zip(step.turns, threads.groups, threads.block, strict=True)
        assert tuple(map(math.prod, taken)) == (rows, *step.reads.units)
        for access, tile, features in (
            (step.reads, found.tiles[step.source], step.work.c),
            (step.writes, found.tiles[step.target], step.work.b),
        ):
            assert access.outer + access.middle + access.inner == tile.digits
            assert math.prod(access.middle) == features
            assert math.prod(access.inner) == step.work.d


@both_layouts
@each_chain
def test_rows_begin_at_whole_vectors(shapes, rows, rows_last):
    found = plan(shapes, rows, rows_last=rows_last)
    for tile in found.tiles:
        assert sorted(tile.strides)[0] == tile.itemsize
        assert all(stride % 16 == 0 for stride in sorted(tile.strides)[1:])


@pytest.mark.parametrize(
    ("lanes", "width", "clocks"),
    [
        (((32, 4),), 4, 1),
        (((32, 8),), 4, 2),
        (((32, 128),), 4, 32),
        (((32, 132),), 4, 1),
        (((8, 0), (4, 4)), 4, 1),
        (((4, 128), (8, 4)), 4, 4),
        (((4, 160), (8, 4)), 4, 1),
        (((32, 2),), 2, 1),
        (((32, 16),), 16, 4),
        (((32, 32),), 16, 8),
        (((32, 8),), 8, 2),
    ],
)
def test_bank_conflicts(lanes, width, clocks):
    """Lanes along each axis, and the bytes from one to the next."""
    places = np.indices([count for count, _ in lanes]).reshape(len(lanes), -1)
    addresses = np.array([stride for _, stride in lanes]) @ places
    assert passes.wavefronts(np.stack([addresses] * 2), width).tolist() == [clocks] * 2


def test_radix_2_has_no_conflict_with_features_last():
    found = plan(RADIX_2, 16, warpgroups=4)
    assert len(found.steps) == 4
    for step in found.steps:
        threads = math.prod(step.threads.groups) * 128
        turns = math.prod(step.turns[1:])
        moved = 2 * 16 * 1024 * 4 // 128
        at_once, rest = divmod(step.wavefronts - moved, turns * threads // 32)
        assert rest == 0
        # Of weights there may be conflicts: they lie as they are given.
        assert step.work.num_weights <= at_once <= 4 * step.work.num_weights


@pytest.mark.parametrize(
    ("count", "itemsize", "vector"),
    [(16, 4, 4), (16, 2, 8), (4, 2, 4), (6, 4, 2), (12, 2, 4), (15, 4, 1), (64, 4, 4)],
)
def test_weights_that_follow_one_another_are_loaded_in_vectors(count, itemsize, vector):
    assert passes.load_vector(count, itemsize) == vector


@both_layouts
@pytest.mark.parametrize(
    ("d", "rows"),
    [(512, 16), (340, 32)],  # 170 features, the most, would be no whole 16 bytes.
)
def test_tma_moves_no_more_than_256_features_along_an_axis(d, rows, rows_last):
    found = plan(((1, 2, 2, d),), rows, rows_last=rows_last, warpgroups=1)
    for tile in found.tiles:
        assert math.prod(tile.digits) == 2 * d
        assert max(tile.digits) <= 256
        assert rows_last or tile.digits[-1] % 4 == 0


def test_a_pass_alone_loads_its_weights_once():
    alone, among = plan(((64, 2, 2, 1),), 64), plan(RADIX_2, 16)
    assert alone.keeps_weights and not among.keeps_weights
    (step,) = alone.steps
    assert step.wavefronts == 2 * 64 * 128 * 4 // 128  # Reads and writes.


def test_intermediates_are_worked_on_in_place():
    found = plan(RADIX_2, 16)
    assert [(step.source, step.target) for step in found.steps] == [
        (0, 1),
        (1, 1),
        (1, 1),
        (1, 2),
    ]


def test_what_does_not_fit_is_refused():
    with pytest.raises(NotImplementedError, match=r"factors\[1\] of shape .*registers"):
        plan(((1, 2, 2, 32), (4, 16, 16, 1)), 16)
    with pytest.raises(NotImplementedError, match="bytes of shared memory, more than"):
        plan(RADIX_2, 32)
    with pytest.raises(NotImplementedError, match="128 threads cannot share 16 rows"):
        plan(((1, 2, 2, 4),), 16, warpgroups=1)
    with pytest.raises(NotImplementedError, match="runs of whole 16 bytes"):
        plan(RADIX_2, 2, rows_last=True)
