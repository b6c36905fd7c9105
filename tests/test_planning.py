import hypothesis
import hypothesis.strategies as st
import pytest

import butterjax as bj
from tests import reference, strategies


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(strategies.chains(), st.integers(0, 4))
def test_the_default_runs_on_any_chain(chain, batch):
    x = reference.draw((batch, chain.in_features))
    factors = reference.draw_factors(chain)
    for axis, operand in [(-1, x), (0, x.T)]:
        name = bj.planning.choose(chain, batch=batch, axis=axis)
        assert name in bj.implementations.names()
        y = bj.butterfly(operand, factors, axis=axis)
        other = bj.butterfly(operand, factors, axis=axis, implementation=name)
        assert (y == other).all()


@pytest.mark.parametrize(
    ("chain", "batch", "axis", "expected"),
    [
        (bj.Chain.monarch(1024, 1024), 512, -1, "bmm"),
        (bj.Chain.square_dyadic(4096), 512, -1, "elementwise"),
        (bj.Chain.square_dyadic(256), 512, 0, "elementwise"),
        # A long chain for its width: dense, where the batch repays forming it.
        (bj.Chain.square_dyadic(256), 4096, -1, "dense"),
        (bj.Chain.square_dyadic(256), 512, -1, "elementwise"),
    ],
)
def test_choice(chain, batch, axis, expected):
    assert bj.planning.choose(chain, batch=batch, axis=axis) == expected
