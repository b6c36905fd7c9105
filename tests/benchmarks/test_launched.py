import jax
import pytest

from benchmarks import launched, workloads
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload


@pytest.mark.parametrize(
    ("spec", "implementation", "direction", "expected"),
    [
        ("(2,48,48,1)", "pallas", "forward", ("factor",)),
        ("(2,48,48,1)", "pallas", "forward+backward", ("factor",)),
        ("(1,4,4,4)", "pallas", "forward", ("radix",)),
        ("(2,48,48,1)", "bmm", "forward", ()),
    ],
)
def test_kernels_are_named(spec, implementation, direction, expected):
    work = Workload(spec, parse_chain(spec), 64, "bfloat16", "feature_last", direction)
    function, arguments = workloads.program(
        work, implementation, workloads.shapes(work)
    )
    assert launched.kernels(jax.jit(function).trace(*arguments)) == expected
