import dataclasses
import pathlib

import pytest

import butterjax as bj
from benchmarks import ceilings, gpu_programs, jsonl, predictions, results
from benchmarks.environment import Environment
from benchmarks.workloads import Workload

ENVIRONMENT = Environment("2026-01-01", "some CPU", {"jax": "0.0"}, None, 2**25)
WORKLOAD = Workload(
    "monarch:16x16", bj.Chain.monarch(16, 16), 8, "float32", "feature_last", "forward"
)


def measurement(seconds=0.1, **changes):
    """Takes just these seconds each time, a dense layer takes one."""
    made = results.Measurement(
        seconds=(seconds, seconds, seconds),
        num_samples=3,
        clock="wall",
        is_noisy=False,
        ratio_to_dense_layer=(seconds, seconds, seconds),
        compile_seconds=1.0,
        error=1e-7,
        rotated_bytes=2**26,
        peak_bytes=4096,
        device_peak_bytes=None,
        moved_bytes=0,
        written_bytes=1024,
        moved_seconds=None,
        joules=None,
    )
    return dataclasses.replace(made, **changes)


def row(implementation="bmm", *, seconds=0.1, error=1e-7, work=None, **changes):
    """A row; `work` holds changes to its workload."""
    made = results.Row(
        environment=ENVIRONMENT,
        workload=dataclasses.replace(WORKLOAD, **(work or {})),
        implementation=implementation,
        configuration=None,
        is_default=False,
        tolerance=2e-6,
        flops=1,
        floor_bytes=1,
        measured=measurement(seconds, error=error),
        unsupported=None,
        failed=None,
    )
    return dataclasses.replace(made, **changes)


def test_rows_survive_a_file(tmp_path):
    rows = [
        row(configuration={"rows": 64, "swizzle": True, "layout": "x", "none": None}),
        row("b", measured=None, unsupported="too wide"),
        row("c", measured=measurement(clock="cupti", moved_seconds=1e-6, joules=2.0)),
    ]
    jsonl.append(tmp_path / "rows.jsonl", rows)
    assert results.load(tmp_path / "rows.jsonl") == rows


@pytest.mark.parametrize("row_type", [results.Row, gpu_programs.Row])
def test_every_number_has_a_unit(row_type):
    units = dict(jsonl.numbers(row_type))
    assert [where for where, unit in units.items() if unit is None] == []


def test_units():
    units = dict(jsonl.numbers(results.Row))
    assert units["row.measured.seconds"] == "s"
    assert units["row.measured.joules"] == "J"
    assert units["row.floor_bytes"] == "B"
    for where, unit in units.items():
        assert where.endswith("seconds") == (unit == "s"), where
        assert where.endswith("bytes") == (unit == "B"), where


def test_committed_rows_have_the_schema():
    folder = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
    others = {"_ceilings": ceilings.Row, "_launches": predictions.Timed}
    paths = list(folder.glob("*.jsonl"))
    assert paths
    for path in paths:
        (kind,) = [k for end, k in others.items() if path.stem.endswith(end)] or [None]
        rows = jsonl.load(path, kind) if kind else results.load(path)
        assert rows
        assert kind or not any(one.is_wrong for one in rows)


@pytest.mark.parametrize(
    ("error", "is_wrong"), [(1e-7, False), (3e-6, True), (None, True)]
)
def test_is_wrong(error, is_wrong):
    assert row(error=error).is_wrong == is_wrong
    assert not row(measured=None, unsupported="no").is_wrong


def test_key_is_all_that_decides_a_measurement():
    def moved(**changes):
        return row(environment=dataclasses.replace(ENVIRONMENT, **changes))

    assert row().key == row(seconds=9.0).key == moved(run="2027").key
    others = [
        row("einsum"),
        row(configuration={"rows": 64}),
        row(configuration={"rows": 32}),
        row(work={"batch": 9}),
        row(work={"direction": "forward+backward"}),
        row(work={"chain": bj.Chain.square_dyadic(16)}),
        moved(device="another"),
        moved(commit="abc"),
        moved(versions={"jax": "0.1"}),
    ]
    assert len({row().key, *(other.key for other in others)}) == 1 + len(others)


def test_latest_takes_the_last_of_a_key():
    first, second, other = row(seconds=1.0), row(seconds=2.0), row("einsum")
    assert list(results.latest([first, other, second]).values()) == [second, other]
