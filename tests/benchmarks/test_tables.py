import dataclasses
import io

from rich.console import Console

from benchmarks import tables
from benchmarks.workloads import DENSE_LAYER
from tests.benchmarks.test_results import measurement, row

BACKWARD = {"direction": "forward+backward"}
ROWS = [
    row(DENSE_LAYER, seconds=1.0),
    row("einsum", seconds=0.5),
    row("bmm", seconds=0.25, is_default=True),
    row("bcsr", measured=None, unsupported="no"),
    row("pallas", measured=None, failed="crash"),
    row(DENSE_LAYER, seconds=1.0, work=BACKWARD),
    row("einsum", seconds=2.0, work=BACKWARD, error=0.1),
    row("bmm", seconds=3.0, work=BACKWARD, is_default=True),
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
    assert ["pallas:", "failed"] in lines
    assert ["einsum", "2000.00", "0%", "2.00", "1.00", "1e-01", "WRONG"] in lines


def test_summary():
    text = " ".join(tables.summary(ROWS).split())
    assert "at most 1.50 times as long as the best" in text
    assert "(monarch:16x16, forward+backward)" in text
    assert "in 1 of 2 workloads" in text
    assert "bcsr is unsupported in 1 of 1 workloads: no" in text
    two = [row("bcsr", measured=None, unsupported=why) for why in ("no", "no", "never")]
    assert tables.refusals([*two, row("bmm")]) == [
        "bcsr is unsupported in 3 of 3 workloads: no (and 1 more)"
    ]


def test_overview():
    lines = printed(tables.overview(ROWS))
    assert ["dense", "layer", "1", "of", "1", "0", "1.00", "4.00", "0", "0.00"] in lines
    assert ["dense", "layer", "1", "of", "1", "1", "1.00", "1.00", "0", "0.00"] in lines
    assert ["bmm", "1", "of", "1", "1", "0.25", "1.00", "0", "0.00"] in lines
    assert ["bmm", "1", "of", "1", "0", "3.00", "3.00", "0", "0.00"] in lines
    assert ["bcsr", "0", "of", "1", "0", "0"] in lines


def test_noise_is_marked():
    noisy = dataclasses.replace(measurement(), seconds=(0.1, 0.2, 0.4), is_noisy=True)
    lines = printed(tables.compare([row(measured=noisy)]))
    assert any(line[:3] == ["bmm", "200.00", "75%~"] for line in lines)


def test_titles_leave_out_what_all_have_in_common():
    rows = [row(), row(work={"batch": 9}), row(work={"layout": "feature_first"})]
    assert list(tables.titles(rows).values()) == [
        "monarch:16x16, batch 8, feature_last, forward",
        "monarch:16x16, batch 9, feature_last, forward",
        "monarch:16x16, batch 8, feature_first, forward",
    ]
    assert list(tables.titles(rows[:1]).values()) == ["monarch:16x16, forward"]


def test_problems():
    first, second = tables.problems(ROWS)
    assert first == "pallas, monarch:16x16, forward: crash"
    assert second.startswith("einsum, monarch:16x16, forward+backward: WRONG")


def test_where_a_run_was_killed_in_between():
    rows = [row(DENSE_LAYER)]
    lines = printed(tables.compare(rows))
    assert ["dense", "layer", "100.00", "0%", "0.10", "1.00", "1e-07"] in lines
    assert tables.summary(rows)


def test_where_only_the_dense_layer_runs():
    rows = [row(DENSE_LAYER), row("pallas", measured=None, unsupported="no")]
    lines = printed(tables.compare(rows))
    assert ["dense", "layer", "100.00", "0%", "0.10", "1e-07"] in lines
    assert "in 0 of 1 workloads" in tables.summary(rows)
