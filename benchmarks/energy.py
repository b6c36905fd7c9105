"""Energy that a GPU takes, by NVIDIA's management library (pip's nvidia-ml-py)."""

import contextlib
import importlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

# The GPU's counter moves on every tenth of a second or so.
_AT_LEAST = 2.0


class Meter(Protocol):
    """Reads a counter of energy."""

    def joules(self) -> float: ...


@contextlib.contextmanager
def meter() -> Iterator[Meter | None]:
    """The meter of the default device; None where it has none, or no library reads it.

    Raises:
      pynvml.NVMLError: if there is a GPU and a library, but the one denies the other.
    """
    if jax.default_backend() != "gpu" or importlib.util.find_spec("pynvml") is None:
        yield None
        return
    pynvml = importlib.import_module("pynvml")

    pynvml.nvmlInit()
    try:
        gpu = _Gpu(pynvml, _handle(pynvml))
        try:
            gpu.joules()
        except pynvml.NVMLError_NotSupported:
            yield None
        else:
            yield gpu
    finally:
        pynvml.nvmlShutdown()


class _Gpu:
    """Counts since the driver was loaded."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def joules(self) -> float:
        millijoules = self._library.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return float(millijoules) / 1e3


def _handle(pynvml: Any) -> Any:
    """NVML's name for JAX's default device: it ignores CUDA_VISIBLE_DEVICES."""
    index = jax.devices()[0].local_hardware_id or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not visible:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    name = visible.split(",")[index].strip()
    if name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def joules_per_call(
    function: Callable[[], Any], meter: Meter, *, seconds: float = _AT_LEAST
) -> float | None:
    """Energy of a call, averaged over as many as fill some seconds.

    Args:
      function: what to call; its results are waited for.
      meter: the device's.
      seconds: to go on at least.

    Returns:
      Joules, idle power included; None if the counter did not move.
    """
    jax.block_until_ready(function())
    start, before, calls = time.perf_counter(), meter.joules(), 1
    running = function()
    while time.perf_counter() - start < seconds:
        following = function()  # So that the device never waits for the host.
        calls += 1
        jax.block_until_ready(running)
        running = following
    jax.block_until_ready(running)
    total = meter.joules() - before
    return total / calls if total > 0 else None
