"""The few cases that are no exhaustive ones show every value."""

import itertools

import pytest

from tests.covering import covering


@pytest.mark.parametrize("sizes", [(1,), (2, 2), (8, 3, 2), (2, 2, 9, 2), (3, 3, 3)])
def test_every_value_occurs_in_the_few(sizes):
    parameters = [range(size) for size in sizes]
    cases = covering(*parameters)
    assert [case.values for case in cases] == [*itertools.product(*parameters)]
    few = [case.values for case in cases if not case.marks]
    assert len(few) == max(sizes)
    assert [set(values) for values in zip(*few, strict=True)] == list(
        map(set, parameters)
    )


def test_short_lists_meet_in_all_ways():
    few = [case.values for case in covering(range(9), "ab", "cd") if not case.marks]
    assert {case[1:] for case in few} == {*itertools.product("ab", "cd")}
    assert {(case[0] % 2, case[1]) for case in few} == {
        *itertools.product((0, 1), "ab")
    }
