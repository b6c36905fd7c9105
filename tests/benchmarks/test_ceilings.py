import pytest

from benchmarks import ceilings
from benchmarks.measure import Timing
from tests.benchmarks.test_results import ENVIRONMENT

SIZES = ceilings.Sizes(copied=2**12, matrices=16)


class Clock:
    """Says that each call took half a second."""

    name = "wall"

    def time(self, function):
        function()
        return Timing(0.5)


def test_rates():
    copy, *products = ceilings.measure_all(
        ["bfloat16", "float32"],
        environment=ENVIRONMENT,
        sizes=SIZES,
        time_limit=0.0,
        clock=Clock(),
    )
    assert copy.name == "copy"
    assert copy.bytes_per_second == 2 * 2**12 / 0.5  # Read and written.
    assert [row.dtype for row in products] == ["bfloat16", "float32"]
    for row in products:
        assert row.name == "matmul"
        assert row.flops_per_second == pytest.approx(2 * 16**3 / 0.5)


def test_each_run_measures_its_own():
    task = ceilings.task(["float16"], ENVIRONMENT, sizes=SIZES, time_limit=0.0)
    rows = task.run(task.keys)
    assert [row.key for row in rows] == list(task.keys)
    assert all(ENVIRONMENT.run in key for key in task.keys)
