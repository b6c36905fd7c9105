import io

from rich.console import Console

from benchmarks import tables
from benchmarks.workloads import DENSE_LAYER
from tests.benchmarks.test_results import row

ROWS = [
    row(DENSE_LAYER, seconds=1.0),
    row("einsum", seconds=0.5),
    row("bmm", seconds=0.25, is_default=True),
    row("bcsr", measured=None, unsupported="no"),
    row(DENSE_LAYER, seconds=1.0, direction="forward+backward"),
    row("einsum", seconds=2.0, direction="forward+backward", error=0.1),
    row("bmm", seconds=3.0, direction="forward+backward", is_default=True),
]


def printed(what) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=100)
    console.print(what)
    return [line.split() for line in console.file.getvalue().splitlines()]


def test_compare():
    lines = printed(tables.compare(ROWS))
    assert ["dense", "layer", "1000.00", "0%", "1.00", "4.00", "1e-07"] in lines
    assert ["einsum", "500.00", "0%", "0.50", "2.00", "1e-07"] in lines
    assert ["bmm", "*", "250.00", "0%", "0.25", "1.00", "1e-07"] in lines
    assert ["bcsr:", "unsupported"] in lines
    assert ["einsum", "2000.00", "0%", "2.00", "1.00", "1e-01", "WRONG"] in lines


def test_summary():
    text = " ".join(tables.summary(ROWS).split())
    assert "at most 1.50 times as long as the best" in text
    assert "(monarch:16x16, forward+backward)" in text
    assert "in 1 of 2 workloads" in text
