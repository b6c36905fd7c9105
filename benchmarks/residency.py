"""What the CUDA driver says of a device: its limits, and clusters that fit at once."""

import ctypes
from typing import Any

# CUdevice_attribute, CUfunction_attribute and CUlaunchAttributeID of cuda.h.
_LIMITS = {
    "multiprocessors": 16,
    "smem_bytes": 81,
    "smem_bytes_per_cta": 97,
    "system_bytes": 111,
    "registers": 82,
}
_DYNAMIC_SMEM, _BEYOND_PORTABLE = 8, 14
_CLUSTER_DIMENSION = 4
_THREADS = 128
_ROUNDED = 1024  # Bytes that dynamic shared memory is kept clear of.

# A kernel that does nothing: how much fits depends on what a launch asks for.
_PTX = b""".version 8.0
.target sm_90
.address_size 64
.visible .entry nothing() { ret; }
"""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute with the value of a cluster's dimensions."""

    _fields_ = (
        ("id", ctypes.c_uint),
        ("pad", ctypes.c_uint),
        ("dimensions", ctypes.c_uint * 3),
        ("rest", ctypes.c_ubyte * 52),
    )


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("smem_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class Driver:
    """The driver, on the first device.

    Raises:
      OSError: if there is no driver.
      RuntimeError: if it refuses something; says what.
    """

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        context = ctypes.c_void_p()  # That of JAX, if it has one.
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} returned {status}")

    def limits(self) -> dict[str, int]:
        """Limits of the device, by the fields of `pallas_kernels.common.chip.Chip`."""
        found = {}
        for name, attribute in _LIMITS.items():
            value = ctypes.c_int()
            self._call(
                "cuDeviceGetAttribute", ctypes.byref(value), attribute, self._device
            )
            found[name] = value.value
        return found

    def residency(self, cluster: int, smem_bytes: int) -> int:
        """Clusters that run at once.

        Args:
          cluster: CTAs of a cluster, up to 16.
          smem_bytes: dynamic shared memory of a CTA.
        """
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), _PTX)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, b"nothing")
        for attribute, value in ((_DYNAMIC_SMEM, smem_bytes), (_BEYOND_PORTABLE, 1)):
            self._call("cuFuncSetAttribute", function, attribute, value)
        dimension = _Attribute(id=_CLUSTER_DIMENSION)
        dimension.dimensions[:] = (cluster, 1, 1)
        config = _LaunchConfig(
            smem_bytes=smem_bytes,
            attributes=ctypes.pointer(dimension),
            num_attributes=1,
        )
        config.grid[:] = (1024 * cluster, 1, 1)
        config.block[:] = (_THREADS, 1, 1)
        clusters = ctypes.c_int()
        self._call(
            "cuOccupancyMaxActiveClusters",
            ctypes.byref(clusters),
            function,
            ctypes.byref(config),
        )
        return clusters.value


def measure() -> dict[str, Any]:
    """Limits and residency of the device, as `pallas_kernels.common.chip` has them.

    Raises:
      OSError, RuntimeError: as `Driver`.
    """
    driver = Driver()
    limits = driver.limits()
    half = limits["smem_bytes"] // 2 - limits["system_bytes"] - _ROUNDED
    sizes = (limits["smem_bytes_per_cta"] - _ROUNDED, half)
    clusters = [
        [cluster, *(driver.residency(cluster, size) for size in sizes)]
        for cluster in (1, 2, 4, 8, 16)
    ]
    return {**limits, "residency": clusters}
