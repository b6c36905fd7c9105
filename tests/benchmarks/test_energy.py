import sys
import time
import types

import jax
import pytest

from benchmarks import energy


class Meter:
    """A device that takes so many watts."""

    def __init__(self, watts):
        self.watts = watts

    def joules(self):
        return self.watts * time.perf_counter()


def test_energy_of_a_known_cost():
    joules = energy.joules_per_call(lambda: time.sleep(0.02), Meter(50.0), seconds=0.3)
    assert joules == pytest.approx(50.0 * 0.02, rel=0.3)


def test_a_counter_that_stands_still_is_no_zero():
    assert energy.joules_per_call(lambda: None, Meter(0.0), seconds=0.01) is None


def test_a_cpu_has_no_meter():
    with energy.meter() as meter:
        assert meter is None


class NotSupported(Exception):
    pass


def library(log, *, is_supported=True):
    def total(handle):
        if not is_supported:
            raise NotSupported
        log.append(handle)
        return 1500

    return types.SimpleNamespace(
        nvmlInit=lambda: log.append("init"),
        nvmlShutdown=lambda: log.append("shutdown"),
        nvmlDeviceGetHandleByIndex=lambda index: f"index {index}",
        nvmlDeviceGetHandleByUUID=lambda name: f"uuid {name}",
        nvmlDeviceGetTotalEnergyConsumption=total,
        NVMLError_NotSupported=NotSupported,
    )


@pytest.fixture
def gpu(monkeypatch):
    def install(pynvml):
        monkeypatch.setitem(sys.modules, "pynvml", pynvml)
        monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: pynvml)

    device = types.SimpleNamespace(local_hardware_id=1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    return install


@pytest.mark.parametrize(
    ("visible", "handle"),
    [("", "index 1"), ("2, 5", "index 5"), ("GPU-a,GPU-b", "uuid GPU-b")],
)
def test_reads_the_gpu_that_jax_uses(gpu, monkeypatch, visible, handle):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    log = []
    gpu(library(log))
    with energy.meter() as meter:
        assert meter.joules() == 1.5
    assert log == ["init", handle, handle, "shutdown"]


def test_a_gpu_without_a_counter(gpu, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    log = []
    gpu(library(log, is_supported=False))
    with energy.meter() as meter:
        assert meter is None
    assert log == ["init", "shutdown"]


def test_without_the_library(gpu):
    gpu(None)
    with energy.meter() as meter:
        assert meter is None
