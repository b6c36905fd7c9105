import dataclasses

import pytest

from benchmarks import ceilings, suite_cases, targets
from benchmarks.workloads import LAYOUTS
from tests.benchmarks.test_results import ENVIRONMENT, row

# One byte and one operation in a second.
CEILINGS = [
    ceilings.Row(ENVIRONMENT, "copy", "float32", 4, 0, (4.0, 4.0, 4.0), "wall"),
    ceilings.Row(ENVIRONMENT, "matmul", "bfloat16", 0, 8, (8.0, 8.0, 8.0), "wall"),
]


def workload(index=0):
    found = suite_cases.workloads_of("chains", list(LAYOUTS), num_patterns=1)
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
    return targets.Target("it", "times", works, value, threshold, share)


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
    found = targets.targets(20)
    assert [(one.threshold, one.unit) for one in found] == [
        (0.85, "of a copy"),
        (0.8, "of a copy"),
        (0.8, "of the floor"),
        (2.2, "× XLA"),
        (2.5, "× XLA"),
        (2.0, "× XLA"),
        (4.5, "× dense"),
        (1.5, "× XLA"),
        (2.0, "× XLA"),
        (6.0, "× XLA by factor"),
        (1.0, "× XLA"),
    ]
    for one in found:
        assert one.workloads
    aligned, strided, gain, *_ = found
    assert all(work.chain[0].d == 1 for work in aligned.workloads)
    assert all(work.chain[0].d > 1 for work in strided.workloads)
    assert {work.layout for work in strided.workloads} == {"feature_last"}
    assert {work.dtype for work in gain.workloads} == {"bfloat16", "float16"}
    for one in found[7:9]:
        assert {work.direction for work in one.workloads} == {"forward+backward"}
    assert len(found[-1].workloads) == 40
    assert found[-1].share == 0.9
