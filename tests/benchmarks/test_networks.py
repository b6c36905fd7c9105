import dataclasses
import functools
import io
import types

import jax
import pytest
from rich.console import Console

from benchmarks import jsonl, models, network_rows, networks
from tests import programs
from tests.benchmarks.test_results import ENVIRONMENT, measurement

SIZES = models.Sizes(depth=1, width=16, heads=2, hidden=32, tokens=5, classes=7)


def workload(network="llama_mlp", mode="inference", dtype="float32"):
    classes = 0 if network == "llama_mlp" else 7
    sizes = dataclasses.replace(SIZES, classes=classes)
    return network_rows.Workload(network, sizes, 3, dtype, mode)


def measure(work, implementations):
    return network_rows.rows(
        work, implementations, environment=ENVIRONMENT, seed=0, time_limit=0.0
    )


@pytest.fixture
def small_chains(monkeypatch):
    """The networks with chains that `SIZES` has room for."""
    for name, network in models.NETWORKS.items():
        chains = dict.fromkeys(network.chains)
        small = dataclasses.replace(network, chains=chains)
        monkeypatch.setitem(models.NETWORKS, name, small)


@pytest.mark.parametrize(
    ("network", "mode", "dtype"),
    [
        ("vit_s16", "inference", "float32"),
        ("gpt2_medium", "training step", "bfloat16"),
    ],
)
def test_rows(small_chains, network, mode, dtype):
    rows = measure(workload(network, mode, dtype), ["default"])
    assert [row.implementation for row in rows] == ["dense layers", "default"]
    for row in rows:
        assert 0 < row.measured.error <= row.tolerance
        assert row.measured.clock == "wall"
    assert rows[1].num_weights < rows[0].num_weights
    assert rows[0].measured.ratio_to_dense_layer == (1, 1, 1)


def test_a_wrong_gradient_is_seen(small_chains, monkeypatch):
    step = models.training_step

    def wrong(module):
        def run(*arguments):
            parameters, state, loss = step(module)(*arguments)
            return parameters, jax.tree.map(lambda leaf: leaf * 1.01, state), loss

        return run

    monkeypatch.setattr(models, "training_step", wrong)
    (row,) = measure(workload("llama_mlp", "training step"), [])
    assert row.is_wrong
    assert row.measured.error == pytest.approx(0.01, rel=0.01)
    (problem,) = networks.problems([row])
    assert "dense layers, llama_mlp, training step, batch 3: WRONG" in problem


def test_a_refusal_is_a_row(small_chains):
    row = measure(workload(), ["pallas_chain"])[1]
    assert row.measured is None
    assert row.unsupported


def test_table():
    def row(implementation, **changes):
        made = network_rows.Row(
            environment=ENVIRONMENT,
            workload=workload(),
            implementation=implementation,
            num_weights=2_500_000,
            tolerance=1e-5,
            measured=measurement(0.25),
            unsupported=None,
            failed=None,
        )
        return dataclasses.replace(made, **changes)

    rows = [row("dense layers"), row("bmm", measured=None, failed="crash")]
    console = Console(file=io.StringIO(), width=80)
    console.print(networks.table(rows))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    cells = ["dense", "layers", "250.00", "0%", "0.25", "12.0", "2.5", "0", "1e-07"]
    assert cells in lines
    assert ["bmm:", "failed"] in lines
    assert networks.problems(rows) == ["bmm, llama_mlp, inference, batch 3: crash"]


run = functools.partial(programs.call, networks.__name__)


def test_program(tmp_path):
    options = (
        *("--network=llama_mlp", "--depth=1", "--tokens=8", "--classes=10"),
        *("--mode=inference", "--batch=1", "--time_limit=0"),
        f"--output_dir={tmp_path}",
    )
    done = run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = jsonl.load(tmp_path / "networks.jsonl", network_rows.Row)
    assert [row.workload.sizes.tokens for row in rows] == [8, 8]
    assert [row.workload.sizes.classes for row in rows] == [0, 0]
    assert "llama_mlp, inference, batch 1" in done.stdout


def test_sizes(monkeypatch):
    values = {
        name: types.SimpleNamespace(value=value)
        for name, value in {"depth": 3, "tokens": 8, "classes": None}.items()
    }

    class Flags(dict):
        sizes = "small"

    monkeypatch.setattr(networks.flags, "FLAGS", Flags(values))
    full = models.NETWORKS["vit_s16"].sizes
    assert networks._sizes("vit_s16") == dataclasses.replace(full, depth=3)
    text = networks._sizes("gpt2_medium")
    assert (text.depth, text.tokens, text.classes) == (3, 8, 8192)
    Flags.sizes = "full"
    assert networks._sizes("gpt2_medium").classes == 50257


def test_flags_are_checked_first(tmp_path):
    done = run("--depth=0", f"--output_dir={tmp_path / 'made'}")
    assert done.returncode == 1
    assert "depth" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


def test_help_shows_an_example():
    assert "python -m benchmarks.networks --network=vit_s16" in run("--help").stdout
