import dataclasses

import pytest

from benchmarks import ceilings, suite_cases, targets
from benchmarks.workloads import DTYPES, LAYOUTS
from tests.benchmarks.test_results import ENVIRONMENT, row

# One byte and one operation in a second.
CEILINGS = [
    ceilings.Row(ENVIRONMENT, "copy", "float32", 4, 0, (4.0, 4.0, 4.0), "wall"),
    ceilings.Row(ENVIRONMENT, "matmul", "bfloat16", 0, 8, (8.0, 8.0, 8.0), "wall"),
]


def workload(index=0):
    found = suite_cases.workloads_of("fused", DTYPES, LAYOUTS, num_factors=1)
    return list(found)[index]


def group(index=0, *, environment=ENVIRONMENT, **seconds):
    return [
        row(
            name.replace("_layer", " layer"),
            seconds=one,
            workload=workload(index),
            environment=environment,
            floor_bytes=6,
            flops=3,
        )
        for name, one in seconds.items()
    ]


def target(value, threshold, num=1, share=1.0):
    works = tuple(map(workload, range(num)))
    return targets.Target("it", works, value, threshold, share)


def judge(one, rows, ceiling_rows=CEILINGS):
    (judgement,) = targets.judge([one], rows, ceiling_rows)
    return judgement


FASTER = targets.faster_than(("bmm", "dense layer"))


@pytest.mark.parametrize(
    ("threshold", "verdict"), [(1.9, "PASS"), (2.0, "PASS"), (2.1, "MISS")]
)
def test_speedup_is_over_the_best_of_the_rivals(threshold, verdict):
    rows = group(bmm=7.0, dense_layer=6.0, einsum=1.0, pallas=4.0, pallas_chain=3.0)
    judgement = judge(target(FASTER, threshold), rows)
    assert judgement.values == (2.0,)
    assert judgement.verdict == verdict


def test_share_of_the_floor():
    rows = group(bmm=7.0, pallas=8.0)
    for value, expected in (
        (targets.share_of_copy, 6 / 8),
        (targets.share_of_floor, 6 / 8),
    ):
        assert judge(target(value, 0.5), rows).values == (expected,)
    bound_by_products = [dataclasses.replace(one, flops=7) for one in rows]
    one = judge(target(targets.share_of_floor, 0.5), bound_by_products)
    assert one.values == (7 / 8,)
    one = judge(target(targets.share_of_copy, 0.5), bound_by_products)
    assert (one.values, one.verdict) == ((), "not measured")


def test_temporary_memory():
    rows = [
        dataclasses.replace(
            one, measured=dataclasses.replace(one.measured, peak_bytes=peak)
        )
        for one, peak in zip(
            group(bmm=1.0, einsum=1.0, dense=1.0, pallas=2.0, pallas_chain=1.0),
            (32, 22, 12, 12, 16),
            strict=True,
        )
    ]
    one = target(targets.smaller_than(("bmm", "einsum")), 2.0)
    assert judge(one, rows).values == (10 / 4,)  # Of the fastest kernel.
    assert judge(one, rows[:4]).values == (10.0,)
    assert judge(one, group(pallas=1.0)).verdict == "not measured"


def test_what_does_not_count():
    wrong = [dataclasses.replace(one, tolerance=0.0) for one in group(pallas=1.0)]
    tried = [dataclasses.replace(one, configuration={"rows": 1}) for one in wrong]
    rows = [*group(bmm=6.0, pallas_chain=3.0), *wrong]
    rows += [dataclasses.replace(one, tolerance=1.0) for one in tried]
    assert judge(target(FASTER, 1.0), rows).values == (2.0,)
    refused = row(
        "pallas", measured=None, unsupported="too wide", workload=workload(), flops=3
    )
    assert judge(target(FASTER, 1.0), [*group(bmm=6.0), refused]).values == (0.0,)


def test_nothing_is_passed_before_all_is_measured():
    fast, slow = group(0, bmm=6.0, pallas=3.0), group(1, bmm=6.0, pallas=9.0)
    assert judge(target(FASTER, 1.0, 2), fast).verdict == "not measured"
    assert judge(target(FASTER, 1.0, 2), slow).verdict == "MISS"
    assert judge(target(FASTER, 1.0, 2), [*fast, *slow]).verdict == "MISS"
    assert judge(target(FASTER, 1.0, 2, 0.5), [*fast, *slow]).verdict == "PASS"
    assert judge(target(FASTER, 1.0, 2, 0.5), slow).verdict == "not measured"
    assert judge(target(FASTER, 1.0), fast, ()).verdict == "not measured"
    found = judge(target(FASTER, 1.0, 3), [*fast, *slow]).found
    assert found == "1 of 2, worst 0.67, median 1.33, 1 left"


def test_only_one_run_is_compared():
    later = dataclasses.replace(ENVIRONMENT, run="2026-02-02")
    rows = [
        *group(bmm=6.0, pallas=3.0),
        *group(bmm=6.0, pallas=2.0, environment=later),
        *group(einsum=1.0),
    ]
    again = [dataclasses.replace(one, environment=later) for one in CEILINGS]
    assert judge(target(FASTER, 1.0), rows, again).values == (3.0,)


def test_the_targets():
    found = targets.targets(60)
    assert [one.threshold for one in found] == [
        *(0.85, 1.7, 0.75, 1.7, 0.75, 1.3, 6, 1.5, 2, 5, 6, 1, 1)
    ]
    for one in found:
        assert one.workloads
    one_factor, gain, *_, radix, last, first = found
    assert {work.dtype for work in one_factor.workloads} == {"float16"}
    assert len(one_factor.workloads) == 120
    assert {work.case for work in gain.workloads} == {"monarch:1024x1024"}
    assert {work.layout for work in gain.workloads} == set(LAYOUTS)
    assert all("square_dyadic" in work.case for work in radix.workloads)
    trained = found[7:10]
    for one in trained:
        assert {work.direction for work in one.workloads} == {"forward+backward"}
        assert {work.dtype for work in one.workloads} == {"bfloat16"}
    assert {work.case for work in trained[2].workloads} == {"square_dyadic:4096/6"}
    for one, layout in ((last, "feature_last"), (first, "feature_first")):
        assert all(work.chain.density < 0.25 for work in one.workloads)
        assert {work.layout for work in one.workloads} == {layout}
        assert one.share == 0.9
