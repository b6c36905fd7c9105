import pytest

from benchmarks import kernels, patterns, suite_cases
from benchmarks.cases import parse_chain
from benchmarks.workloads import DTYPES, LAYOUTS, Workload


def workloads_of(part, num_factors=60, dtypes=DTYPES, layouts=LAYOUTS):
    return list(
        suite_cases.workloads_of(part, dtypes, layouts, num_factors=num_factors)
    )


def test_what_matters_most_comes_first():
    parts = list(suite_cases.PARTS)
    assert parts[:4] == ["correctness", "ceilings", "fused", "training"]
    assert parts[4:6] == ["factors", "radix"]
    cases = [(work.case, work.dtype, work.batch) for work in workloads_of("fused")]
    assert list(dict.fromkeys(cases)) == [
        (f"monarch:{n}x{n}", "bfloat16", 25088) for n in (1024, 2048, 4096)
    ]
    every = [work for part in parts for work in workloads_of(part)]
    assert len(set(every)) == len(every)
    sizes = {work.chain.in_features for work in every if len(work.chain) == 2}
    assert {256, 512, 1024, 2048, 4096, 8192, 16384} <= sizes
    assert {work.batch for work in every} == {25088, 4096, 512, 64}


def test_training():
    works = workloads_of("training")
    assert {work.direction for work in works} == {"forward+backward"}
    assert {len(work.chain) for work in works} == {2, 6}
    others = [work for part in suite_cases.PARTS for work in workloads_of(part)]
    assert {work.direction for work in others if work not in works} == {"forward"}
    (one, *_) = works
    found = suite_cases.contestants(one, list(kernels.KERNELS), 2)
    assert all(contestant.kernel is None for contestant in found)


def test_dtypes_and_layouts_are_kept():
    chosen = workloads_of("radix", dtypes=["float32"], layouts=["feature_first"])
    assert chosen
    assert {(work.dtype, work.layout) for work in chosen} == {
        ("float32", "feature_first")
    }


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
    chosen = workloads_of("factors", 904)
    assert len(chosen) == 2 * 904
    assert max(work.floor_bytes for work in chosen) < 4e9


def names(work):
    found = suite_cases.contestants(work, list(kernels.KERNELS), 2)
    assert len({one.name for one in found}) == len(found)
    return [one.implementation for one in found if one.kernel is None], [
        one.kernel.name for one in found if one.kernel
    ]


def workload(spec):
    chain = parse_chain(spec)
    return Workload(spec, chain, 25088, "bfloat16", "feature_last", "forward")
