"""What devices can do at most: the one table behind the floor model."""

import dataclasses
import re
from collections.abc import Mapping

from butterjax import checks
from pallas_kernels.common import chip

_H200 = chip.load("NVIDIA H200")


@dataclasses.dataclass(frozen=True)
class Rates:
    """Ceilings of a device.

    Attributes:
      device: name of the device, or of its kind.
      copy_rate: bytes read plus bytes written per second by a copy in its memory.
      matmul_rates: floating-point operations per second of a large dense product, by
        the name of the dtype.
      launch_seconds: what starting one more kernel or library call costs.
      runs_kernels: whether the kernels of `pallas_kernels` run there.
      source: where the numbers come from; "assumed" until rows have calibrated them.
    """

    device: str
    copy_rate: float
    matmul_rates: Mapping[str, float]
    launch_seconds: float
    runs_kernels: bool
    source: str


# Assumed: no row of this project holds them yet.
ASSUMED = (
    Rates(
        device=_H200.device,
        copy_rate=_H200.hbm,
        matmul_rates={
            "bfloat16": _H200.wgmma,
            "float16": _H200.wgmma,
            "float32": _H200.wgmma / 2,
        },
        launch_seconds=3e-6,
        runs_kernels=True,
        source="assumed",
    ),
    Rates(
        device="cpu",
        copy_rate=2e10,
        matmul_rates={
            "bfloat16": 1e11,
            "float16": 5e10,
            "float32": 1e11,
            "float64": 5e10,
        },
        launch_seconds=5e-6,
        runs_kernels=False,
        source="assumed",
    ),
)


def rates_of(device: str) -> Rates:
    """The ceilings that are assumed for a device.

    Args:
      device: its name, as in the rows of the benchmarks: "NVIDIA H200", or
        "Some Processor, 8 threads" for a CPU; or "cpu".

    Raises:
      TypeError: if that is no string.
      ValueError: if nothing is known of it; the message lists what is.
    """
    checks.instance("rates_of", "device", device, str, "the name of a device")
    is_cpu = re.search(r", \d+ threads$", device) is not None
    for rates in ASSUMED:
        if rates.device.lower() in device.lower() or (is_cpu and rates.device == "cpu"):
            return rates
    known = ", ".join(rates.device for rates in ASSUMED)
    raise ValueError(
        f"rates_of: no rates are known for device={device!r}, only for: {known}. "
        "Measure the layer there, or one like it, with the benchmarks and pass the "
        "rows."
    )
