"""Hypothesis strategies for patterns and chains."""

import math

from hypothesis import strategies as st

import butterjax as bj

SMALL = st.integers(1, 4)


def patterns() -> st.SearchStrategy[bj.Pattern]:
    return st.builds(bj.Pattern, SMALL, SMALL, SMALL, SMALL)


@st.composite
def chains(draw, min_factors: int = 1, max_factors: int = 4) -> bj.Chain:
    """Chainable chains, built from the definition: a₁ | a₂, d₂ | d₁, r an integer."""
    length = draw(st.integers(min_factors, max_factors))
    ins = [draw(st.integers(1, 3)) for _ in range(length)]
    outs = [draw(st.integers(1, 3)) for _ in range(length)]
    ranks = [1, *(draw(st.integers(1, 2)) for _ in range(length - 1)), 1]
    return bj.Chain(
        (
            math.prod(ins[:i]),
            outs[i] * ranks[i],
            ins[i] * ranks[i + 1],
            math.prod(outs[i + 1 :]),
        )
        for i in range(length)
    )
