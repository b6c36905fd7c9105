"""What is said of kernels that have not been measured is what the model says."""

import io
import json
import pathlib

import pytest
from rich.console import Console

from benchmarks import expected, results, suite_cases, targets
from benchmarks.cases import parse_chain
from benchmarks.workloads import LAYOUTS, Workload

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def workload(spec, direction="forward"):
    chain = parse_chain(spec)
    return Workload(spec, chain, 25088, "bfloat16", "feature_last", direction)


def test_the_floor_by_hand():
    x = 2 * 25_088 * 1024
    forward = expected.expect(workload("monarch:1024x1024"), {})
    assert forward.floor == pytest.approx(2 * x / 4.29e12, rel=0.01)
    both = expected.expect(workload("monarch:1024x1024", "forward+backward"), {})
    assert both.floor == pytest.approx(5 * x / 4.29e12, rel=0.01)  # x, y; x, dy, dx.
    assert both.seconds > forward.seconds > forward.floor
    assert forward.xla is forward.dense is None


def test_no_kernel_takes_it():
    assert expected.predicted_seconds(workload("(1,3,5,1)")) is None


def test_the_table_of_the_readme():
    rows = targets.by_workload(results.load(expected.ROWS))
    console = Console(width=96, file=io.StringIO())
    works = [
        work
        for part in ("chains", "training", "radix")
        for work in suite_cases.workloads_of(part, list(LAYOUTS), num_patterns=1)
    ]
    console.print(expected.table(expected.expect(work, rows) for work in works))
    for line in console.file.getvalue().splitlines():
        assert line.rstrip() in README


def test_the_measured_times_of_the_readme():
    """Each is the median of a committed row."""
    medians = {}
    for line in expected.ROWS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        work = row["workload"]
        if row["configuration"] is None and row["measured"]:
            key = (work["case"], work["layout"], work["direction"])
            seconds = row["measured"]["seconds"][1]
            medians.setdefault(key, {})[row["implementation"]] = f"{seconds * 1e6:.0f}"
    shown = [line for line in README.splitlines() if line.startswith("| `")]
    columns = ["dense layer", "einsum", "bmm", "pallas", "pallas_chain"]
    found = 0
    for (case, layout, direction), times in medians.items():
        gradients = ", with gradients" if direction != "forward" else ""
        start = f"| `{case}` {layout.removeprefix('feature_')}{gradients}"
        cells = " | ".join(times.get(name, "") for name in columns)
        found += any(
            line.startswith((f"{start} ", f"{start},")) and line.endswith(f"{cells} |")
            for line in shown
        )
    assert found == len(medians)
