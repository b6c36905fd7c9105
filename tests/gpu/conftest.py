"""Set-up of the tests that apply kernels through the library."""

import pytest

from butterjax.gpu import plan
from pallas_kernels import factor


@pytest.fixture
def few_warpgroups(monkeypatch):
    """Small configurations: of many warpgroups the interpreter runs out of threads."""

    def small(shape, dtype, batch, *, axis=-1, **_):
        return factor.Config(64, 32, 16, m_warps=1, stages=2, ctas=2)

    monkeypatch.setattr(factor, "default_config", small)
    plan.plan.cache_clear()
    yield
    plan.plan.cache_clear()
