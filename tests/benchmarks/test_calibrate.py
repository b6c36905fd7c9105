"""Calibration: each thing by itself, and a table that is whole or as it was."""

import ctypes.util
import dataclasses
import json

import jax.numpy as jnp
import pytest

from benchmarks import calibrate, measure, residency
from pallas_kernels.common import chip as chips

SIZES = calibrate.Sizes(copied=2**12, matrices=16, cached=2**15, times=4, seconds=0.0)


class Steady:
    """A clock for which all calls take as long, and none is made."""

    name = "wall"

    def __init__(self, seconds):
        self.seconds = seconds

    def time(self, function):
        return measure.Timing(self.seconds)


@pytest.fixture
def without_kernels(monkeypatch):
    """Kernels that do nothing, as there is no GPU."""
    monkeypatch.setattr(calibrate.chip_kernels, "multiply", lambda a, b, **_: a)
    monkeypatch.setattr(calibrate.chip_kernels, "strided_loads", lambda x, **_: x[:1])
    monkeypatch.setattr(calibrate.chip_kernels, "copy_runs", lambda x, **_: x)
    monkeypatch.setattr(
        calibrate.chip_kernels, "meet", lambda *, times, **_: jnp.zeros(times)
    )
    limits = {"multiprocessors": 120, "residency": [[1, 120, 240], [2, 58, 118]]}
    monkeypatch.setattr(residency, "measure", lambda: limits)


def run(clock, folder):
    lines = []
    chip, failed = calibrate.measure_all(
        chips.load(), sizes=SIZES, clock=clock, report=lines.append
    )
    path = chips.path("NVIDIA H200", folder)
    calibrate.write(chip, path)
    return chips.load("NVIDIA H200", folder), failed, lines


def test_what_was_measured_is_in_the_table(without_kernels, tmp_path):
    chip, failed, lines = run(Steady(2e-3), tmp_path)
    # All but what is left when the time of a launch, as long, is taken off.
    assert set(failed) == {"mma", "runs", "lines", "meeting"}
    assert chip.hbm == 2 * 2**12 / 2e-3
    assert chip.wgmma == 2 * 16**3 / 2e-3
    assert chip.launch_seconds == 2e-3
    assert chip.multiprocessors == 120
    assert chip.resident(2, 2) == 118
    for rate in ("hbm", "wgmma", "launch_seconds", "residency"):
        assert chip.source(rate) == "measured"
    assert len(lines) == len(calibrate.MEASUREMENTS)
    kept = chips.load()
    assert chip.run_clocks == kept.run_clocks
    assert chip.source("run_clocks") == kept.source("run_clocks")


def test_one_that_fails_leaves_the_others(without_kernels, tmp_path, monkeypatch):
    def refuse():
        raise OSError("libcuda.so.1: no such file")

    monkeypatch.setattr(residency, "measure", refuse)
    chip, failed, lines = run(Steady(1e-3), tmp_path)
    assert "residency" in failed and "copy" not in failed
    assert any("residency: failed: libcuda" in line for line in lines)
    assert chip.residency == chips.load().residency


def test_rates_that_cannot_be_are_no_measurement(without_kernels, tmp_path):
    chip, failed, _ = run(Steady(0.0), tmp_path)
    assert {"copy", "product", "launch"} <= set(failed)
    assert chip.hbm == chips.load().hbm


def test_clocks_are_those_of_one_multiprocessor():
    chip = dataclasses.replace(chips.load(), clock=2e9, multiprocessors=100)
    bench = calibrate.Bench(chip, SIZES, Steady(1.0))
    # 10⁶ things on 100 multiprocessors in 1 µs: 10⁴ each in 2000 clocks.
    assert bench.clocks(1e-6, 1e6) == pytest.approx(0.2)


def test_a_table_that_cannot_be_written_is_as_it_was(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("{}")
    broken = dataclasses.replace(chips.load(), hbm=object())
    with pytest.raises(TypeError):
        calibrate.write(broken, path)
    assert path.read_text() == "{}"
    calibrate.write(chips.load(), path)
    assert json.loads(path.read_text())["rates"]["hbm"] == chips.load().hbm


@pytest.mark.skipif(
    ctypes.util.find_library("cuda") is not None, reason="there is a driver"
)
def test_without_a_driver_residency_says_so():
    with pytest.raises((OSError, RuntimeError)):
        residency.measure()
