import json
import multiprocessing
import pathlib

import pytest

from benchmarks import results

ENVIRONMENT = results.Environment("2026-01-01", "some CPU", {"jax": "0.0"}, None)


def row(implementation="bmm", *, seconds=0.1, error=1e-7, **kwargs):
    fields = {
        "environment": ENVIRONMENT,
        "case": "monarch:16x16",
        "chain": ((1, 4, 4, 4), (4, 4, 4, 1)),
        "batch": 8,
        "dtype": "float32",
        "layout": "feature_last",
        "direction": "forward",
        "implementation": implementation,
        "is_default": False,
        "tolerance": 2e-6,
        "flops": 1,
        "floor_bytes": 1,
        "measured": results.Measurement(
            seconds=(seconds, seconds, seconds),
            num_samples=3,
            ratio_to_dense_layer=(seconds, seconds, seconds),
            compile_seconds=1.0,
            error=error,
        ),
        "unsupported": None,
    }
    return results.Row(**(fields | kwargs))


def test_rows_are_json_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    results.append(path, [row("a"), row("b", measured=None, unsupported="too wide")])
    results.append(path, [row("c")])
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert [one["implementation"] for one in read] == ["a", "b", "c"]
    assert read[0]["chain"] == [[1, 4, 4, 4], [4, 4, 4, 1]]
    assert read[0]["measured"]["error"] == 1e-7
    assert read[1]["measured"] is None
    assert read[2]["environment"]["versions"] == {"jax": "0.0"}


def append_many(path: pathlib.Path, name: str) -> None:
    for _ in range(50):
        results.append(path, [row(name), row(name)])


def test_two_processes_may_append(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=append_many, args=(path, name)) for name in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = path.read_text().splitlines()
    names = [json.loads(line)["implementation"] for line in lines]
    assert sorted(names) == ["a"] * 100 + ["b"] * 100


@pytest.mark.parametrize(
    ("error", "is_wrong"), [(1e-7, False), (3e-6, True), (float("nan"), True)]
)
def test_is_wrong(error, is_wrong):
    assert row(error=error).is_wrong == is_wrong


def test_environment_tells_what_runs():
    environment = results.Environment.now()
    assert environment.device not in ("", "cpu")
    assert {"python", "jax", "jaxlib", "butterjax"} <= set(environment.versions)
