import functools

import jax.numpy as jnp
import pytest

from benchmarks import builds
from pallas_kernels.common import compat


def refuse(x):
    raise NotImplementedError("too wide")


PROGRAMS = [
    (lambda x: x + 1, (1.0,)),
    (refuse, (1.0,)),
    (compat.gpu_only, (jnp.ones(8),)),  # Refuses a CPU while it is lowered.
    (functools.partial(jnp.multiply, 2.0), (3.0,)),
]


@pytest.mark.parametrize("threads", [1, 2])
def test_order_is_kept_and_what_is_raised(threads):
    first, refused, failed, last = builds.build_all(PROGRAMS, threads)
    assert first.compiled(1.0) == 2
    assert isinstance(refused, NotImplementedError)
    assert isinstance(failed, builds.LoweringError)
    assert "NVIDIA" in str(failed)
    assert last.compiled(3.0) == 6
