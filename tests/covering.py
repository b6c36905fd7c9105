"""All combinations of parameters, and a few of them that show as much."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def covering(*parameters: Sequence[Any]) -> list[Any]:
    """All combinations, of which all but a few are marked as exhaustive.

    In the few each value of each parameter occurs: as many as the longest list has.
    Shorter lists count up, the earlier ones faster, so that they meet in all ways if
    there is room for that; and each begins anew a step further, so that it does not go
    along with what alternates in the longest list.
    """
    sizes = [len(values) for values in parameters]
    longest = max(sizes)
    strides, stride = [], 1
    for size in sizes:
        if size == longest or stride * size > longest:
            strides.append(1)
        else:
            strides.append(stride)
            stride *= size
    few = {
        tuple(
            i if size == longest else (i // stride + i // (stride * size)) % size
            for stride, size in zip(strides, sizes, strict=True)
        )
        for i in range(longest)
    }
    return [
        pytest.param(
            *(values[n] for values, n in zip(parameters, at, strict=True)),
            marks=() if at in few else pytest.mark.exhaustive,
        )
        for at in itertools.product(*map(range, sizes))
    ]
