"""The search for configurations, rehearsed on a CPU: the kernel is interpreted."""

import dataclasses
import functools
import json

import pytest

from benchmarks import autotune, kernels
from benchmarks.cases import parse_chain
from benchmarks.workloads import Workload
from pallas_kernels import factor
from pallas_kernels.common import tuned
from tests import programs
from tests.benchmarks import rehearsal
from tests.benchmarks.test_results import row


def search(folder, *arguments, broken=""):
    return programs.run(
        *(
            rehearsal.__name__,
            "autotune",
            "--chain=(1,32,16,1)",
            "--layout=feature_last",
            "--batch=40",
        ),
        *("--time_limit=0", f"--output_dir={folder}", f"--table_dir={folder / 'made'}"),
        *arguments,
        BROKEN=broken,
    )


def read_table(folder):
    (file,) = (folder / "made").iterdir()
    return tuned.loads(file.read_text())


def test_a_table_is_written_and_added_to(tmp_path):
    done = search(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = read_table(tmp_path).entries
    assert (entry.kernel, entry.batch) == ("factor", 40)
    assert (entry.axis, entry.pieces) == (-1, 1)
    assert entry.shapes == ((1, 32, 16, 1),)
    assert factor.Config(**entry.config).stages in (1, 2)
    lines = (tmp_path / "autotune.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [one["configuration"]["stages"] for one in rows] == [2, 1]
    assert all(one["measured"]["error"] <= one["tolerance"] for one in rows)

    again = search(tmp_path, "--batch=72")
    assert again.returncode == 0, again.stdout + again.stderr
    assert [one.batch for one in read_table(tmp_path).entries] == [40, 72]
    assert "2 rows are in" in again.stdout  # Those of the first run.
    assert len((tmp_path / "autotune.jsonl").read_text().splitlines()) == 4


def test_a_wrong_configuration_is_never_recorded(tmp_path):
    done = search(tmp_path, broken="narrow")
    assert done.returncode == 1
    assert "WRONG" in done.stdout
    (entry,) = read_table(tmp_path).entries
    assert entry.config["stages"] == 2


def test_without_a_gpu(tmp_path):
    arguments = (f"--output_dir={tmp_path / 'made'}", f"--table_dir={tmp_path}")
    done = programs.call(autotune.__name__, *arguments)
    assert done.returncode == 1
    assert "error: autotune needs an NVIDIA GPU, from Hopper on" in done.stdout
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example():
    shown = programs.call(autotune.__name__, "--help").stdout
    assert "python -m benchmarks.autotune --chain=" in shown


def timed(low, middle, high, **kwargs):
    made = row(**kwargs)
    measured = dataclasses.replace(made.measured, seconds=(low, middle, high))
    return dataclasses.replace(made, measured=measured)


def test_the_fastest_is_taken_if_it_is_clearly_faster():
    by_rule, slightly, clearly = timed(9, 10, 11), timed(8, 9, 10), timed(7, 8, 8.9)
    assert autotune.fastest([by_rule, slightly]) is by_rule
    assert autotune.fastest([by_rule, slightly, clearly]) is clearly
    wrong = timed(1, 1, 1, error=1.0)
    assert autotune.fastest([by_rule, wrong]) is by_rule
    assert autotune.fastest([wrong, slightly, clearly]) is clearly
    assert autotune.fastest([wrong]) is None
    assert autotune.fastest([row(measured=None, unsupported="too wide")]) is None


@pytest.mark.parametrize("name", list(kernels.KERNELS))
def test_what_is_recorded_is_what_a_kernel_then_takes(name, tmp_path, monkeypatch):
    kernel = kernels.KERNELS[name]
    spec = kernel.example
    work = Workload(spec, parse_chain(spec), 512, "bfloat16", "feature_last", "forward")
    config = kernels.candidates(kernel, work, 3)[-1]
    measured = row(configuration=kernels.configuration(config))
    problem = autotune.Problem(kernel, work, None)
    file = tuned.path("a device", tmp_path)
    autotune.record([autotune.entry(problem, measured)], "a device", file)

    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    shapes, dtype = work.chain.shapes, "bfloat16"
    assert kernel.default_config(shapes, dtype, 512, device="a device") == config
    by_rule = kernels.rule_config(kernel, work)
    assert by_rule != config
    assert kernel.default_config(shapes, dtype, 512) == by_rule
    assert kernel.default_config(shapes, dtype, 8, device="a device") != config
    if name in ("strided", "fused"):
        return  # These have no wider results.
    of_wider = functools.partial(
        kernel.default_config, *(shapes, dtype, 512), out_dtype="float32"
    )
    assert of_wider(device="a device") == of_wider(device=tuned.NO_DEVICE)
