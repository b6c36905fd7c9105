import pytest

from benchmarks import patterns, suite_cases
from benchmarks.cases import parse_chain
from benchmarks.workloads import LAYOUTS, Workload


def workloads_of(part, num_patterns=20, layouts=tuple(LAYOUTS)):
    return list(suite_cases.workloads_of(part, layouts, num_patterns=num_patterns))


def test_what_matters_most_comes_first():
    assert suite_cases.PARTS == ("chains", "training", "factors", "radix", "paper")
    first = [(work.case, work.layout) for work in workloads_of("chains")[:6]]
    assert first == [
        (f"monarch:{n}x{n}", layout) for n in (1024, 2048, 4096) for layout in LAYOUTS
    ]
    every = [work for part in suite_cases.PARTS for work in workloads_of(part)]
    assert len(set(every)) == len(every)
    assert len(every) < 90  # They have to be done in some minutes.
    assert {work.batch for work in every} == {25088, 4096}


def test_parts():
    trained = workloads_of("training")
    assert {work.direction for work in trained} == {"forward+backward"}
    assert {work.chain.in_features for work in trained} == {1024, 2048}
    (single,) = {len(work.chain) for work in workloads_of("factors")}
    assert single == 1
    blocks = {
        (pattern.b, pattern.d > 1)
        for work in workloads_of("factors")
        for pattern in work.chain
    }
    assert {(16, True), (128, True), (64, False)} <= blocks
    assert {work.dtype for work in workloads_of("paper")} == {"float16"}
    assert len(workloads_of("paper")) == 40


def test_layouts_are_kept():
    chosen = workloads_of("radix", layouts=["feature_first"])
    assert {work.layout for work in chosen} == {"feature_first"}


@pytest.mark.parametrize("count", [1, 60, 904, 5000])
def test_patterns_are_spread(count):
    every = patterns.tuned()
    chosen = suite_cases.spread(every, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(every))
    assert set(chosen) <= set(every)
    if count == 60:
        blocks = {(pattern.b, pattern.c) for pattern in chosen}
        assert blocks == {(pattern.b, pattern.c) for pattern in every}
        sparse = sum(pattern.density < 1 / 4 for pattern in every) / len(every)
        assert sum(p.density < 1 / 4 for p in chosen) / 60 == pytest.approx(
            sparse, abs=0.05
        )
        half = {pattern.b for pattern in chosen[:30]}
        assert len(half) > 6


def test_all_patterns_in_a_size_that_can_be_checked():
    chosen = workloads_of("paper", 904)
    assert len(chosen) == 2 * 904
    assert max(work.floor_bytes for work in chosen) < 4e9


def implementations(spec):
    chain = parse_chain(spec)
    work = Workload(spec, chain, 25088, "bfloat16", "feature_last", "forward")
    return suite_cases.implementations(work)


def test_implementations():
    xla, ours = ["dense layer", "einsum", "bmm"], ["pallas", "pallas_chain"]
    assert implementations("monarch:1024x1024") == [*xla, *ours]
    assert implementations("(4,64,64,4)") == [*xla, "pallas"]
    assert implementations("square_dyadic:1024") == [*xla, "elementwise", *ours]
    assert implementations("(64,1024,1024,1)") == ["einsum", "bmm", "pallas"]
