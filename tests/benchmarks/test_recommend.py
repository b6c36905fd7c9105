import functools
import json
import pathlib
import re

import pytest

import butterjax as bj
from benchmarks import recommend, results
from benchmarks.reporting import groups, sections, words
from benchmarks.timings import timings
from benchmarks.workloads import DENSE_LAYER
from tests import programs
from tests.benchmarks.test_report import NEW, rows, write
from tests.benchmarks.test_results import measurement, row

COMMITTED = programs.ROOT / "benchmarks" / "results" / "compare_cpu.jsonl"
LAYER = ("--in", "64", "--out", "64", "--batch", "8")


ask = functools.partial(programs.call, recommend.__name__)


def test_measured_rows_decide(tmp_path):
    path = write(tmp_path, "rows.jsonl", rows(**NEW))
    done = ask(*LAYER, "--device", "some cpu", path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "64 → 64, forward, float32, feature last, batch 8" in done.stdout
    assert re.search(r"einsum \* +\(1,8,8,8\) \(8,8,8,1\) +400 +0\.4 ", done.stdout)
    assert "implementation='einsum'" in done.stdout
    assert "bj.Chain([(1, 8, 8, 8), (8, 8, 8, 1)])" in done.stdout
    assert "Times were measured on this device" in done.stdout


def test_without_rows_the_model_decides():
    done = ask(
        *("--in", "1024", "--out", "4096", "--batch", "8192", "--dtype", "bf16"),
        *("--device", "H200"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on NVIDIA H200" in done.stdout
    assert "rates are assumed, not predictions" in done.stdout
    assert "The rates: 4.29 TB/s of memory" in done.stdout
    assert "ms, at least" in done.stdout
    # 2·8192·1024·4096 FLOPs at 828e12 FLOP/s, and a launch of 3 µs.
    assert re.search(r"dense layer +0\.086\d* +1 +8\.39 MB", done.stdout)


def test_the_report_gives_the_same_answers():
    """For every layer of the committed rows, against the raw lines of the file."""
    found = groups.groups(results.load(COMMITTED))
    known = list(timings(found))
    shown = {}
    for table in sections.answers(found).tables:
        for line in table.rows:
            shown[line[0], table.caption.split(",")[0]] = line[1]
    raw = [json.loads(line) for line in COMMITTED.read_text().splitlines()]
    expected = {}
    for one in raw:
        measured, work = one["measured"], one["workload"]
        if measured is None or one["implementation"] == DENSE_LAYER:
            continue
        first, last = work["chain"][0], work["chain"][-1]
        n_out, n_in = first[0] * first[1] * first[3], last[0] * last[2] * last[3]
        key = (f"{n_in} → {n_out}", work["direction"])
        answer = (*measured["ratio_to_dense_layer"][1:], one["implementation"], n_in)
        expected[key] = min(expected.get(key, answer), answer)
    assert shown.keys() == expected.keys()
    for (layer, direction), (_, high, implementation, _) in expected.items():
        wanted = implementation if high < 1 else DENSE_LAYER
        assert shown[layer, direction].startswith(wanted)
        n_in, n_out = map(int, layer.split(" → "))
        asked = bj.planning.recommend(
            n_in,
            n_out,
            batch=512,
            dtype="float32",
            device=found[0].device,
            backward=direction != "forward",
            timings=known,
        )
        assert asked.is_measured
        assert shown[layer, direction] == words.option(asked.best)


def test_rows_that_cannot_be_timings():
    made = [
        row("bmm"),
        row("wrong", error=1.0),
        row("refused", measured=None, unsupported="no"),
        row("alone", measured=measurement(ratio_to_dense_layer=None)),
    ]
    (only,) = timings(groups.groups(made))
    assert only.implementation == "bmm"
    assert only.seconds == 0.1
    assert only.peak_bytes == 4096
    assert only.axis == -1
    assert not only.backward
    trained = {"direction": "forward+backward", "layout": "feature_first"}
    (other,) = timings(groups.groups([row("bmm", work=trained)]))
    assert (other.axis, other.backward) == (0, True)


def test_rows_of_other_batches_are_told_of(tmp_path):
    path = write(tmp_path, "rows.jsonl", rows(**NEW))
    done = ask("--in=64", "--out=64", "--batch=9", "--device=Some CPU", path)
    assert done.returncode == 0
    assert "No timing of this layer on this device was given" in done.stdout
    assert "the highest seen in" in done.stdout
    assert "There are rows of layers of this size with a batch of 8." in done.stdout


def test_default_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = recommend.result_files([])
    assert [path.name for path in shipped] == ["compare_cpu.jsonl", "ks_grid_cpu.jsonl"]
    assert all(path.parent == COMMITTED.parent for path in shipped)
    (tmp_path / "results" / "compare").mkdir(parents=True)
    write(tmp_path / "results" / "compare", "compare.jsonl", rows(**NEW))
    assert recommend.result_files([])[-1].samefile("results/compare/compare.jsonl")
    assert recommend.result_files(["a"]) == [pathlib.Path("a")]


def test_device_named():
    devices = ["NVIDIA H200", "NVIDIA H100", "Some CPU, 2 threads"]
    assert recommend.device_named("some cpu", devices) == "Some CPU, 2 threads"
    assert recommend.device_named("NVIDIA H200", [*devices, "NVIDIA H200 NVL"]) == (
        "NVIDIA H200"
    )
    assert recommend.device_named("Abacus", devices) == "Abacus"
    with pytest.raises(ValueError, match="could be any of: NVIDIA H100; NVIDIA H200"):
        recommend.device_named("nvidia", devices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--in=64", "--out=64"), "--batch"),
        (
            (*LAYER, "--device=Abacus"),
            "error: rates_of: no rates are known for device='Abacus'",
        ),
        ((*LAYER, "--chain=foo"), "'foo' is no chain"),
        ((*LAYER, "none.jsonl"), "error: [Errno 2]"),
    ],
)
def test_bad_input(arguments, message):
    done = ask(*arguments)
    assert done.returncode == 1
    assert message in done.stdout + done.stderr


def test_help():
    shown = ask("--help").stdout
    for text in (
        "--in 1024 --out 4096 --batch 8192 --dtype bf16",
        "--device",
        "--chain",
    ):
        assert text in shown
