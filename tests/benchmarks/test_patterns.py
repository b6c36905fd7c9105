import hashlib
import json

import pytest

from benchmarks import patterns

# Of the lists as they were derived from the paper's code, sorted, as JSON.
DIGESTS = {
    patterns.script: (376, "d9b89064049e1bd9"),
    patterns.paper: (627, "b866990097414482"),
    patterns.tuned: (904, "cc60e8ef30a5f199"),
}


@pytest.mark.parametrize("subset", DIGESTS, ids=lambda subset: subset.__name__)
def test_lists_are_those_of_the_paper(subset):
    found = [list(pattern) for pattern in subset()]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    assert (len(found), digest[:16]) == DIGESTS[subset]


def test_what_the_rule_takes_and_leaves():
    shapes = {subset: {p.shape for p in subset()} for subset in DIGESTS}
    script, paper, tuned = shapes.values()
    assert script < paper < tuned
    assert (96, 192, 192, 4) in script
    assert (1, 64, 256, 16) in paper - script
    assert (128, 48, 48, 1) in tuned - paper
    # 25,088 · 2 · 1024 · 64 is beyond 32 bits.
    assert (1, 1024, 1024, 64) in script
    assert (2, 1024, 1024, 64) not in tuned
    assert (5, 48, 48, 4) not in tuned


def test_quick_is_a_part_that_has_all_kinds():
    quick = patterns.quick()
    assert set(quick) < set(patterns.tuned())
    assert {p.b / p.c for p in quick} == {0.25, 1, 4}
    assert {p.density for p in quick} == {1, 1 / 4, 1 / 16}
    assert max(max(p.in_features, p.out_features) for p in quick) <= 3072
