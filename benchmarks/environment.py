"""Where and when something is measured: device, versions, commit."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

import butterjax
from benchmarks.units import Bytes

# More than any GPU has: an H200 has 50 MiB of L2, a B200 126.
_GPU_CACHE_BYTES = 128 * 2**20
_CPU_CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")
_FACTORS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where and when a run took place.

    Attributes:
      run: start of the run in UTC; rows of one run with one workload were measured
        side by side.
      device: kind of the device, with the processor's name for a CPU.
      versions: of Python and the packages that decide a measurement.
      commit: of the source tree; where files were changed, with "+" and a digest of
        the changes after it; None where the tree is no checkout.
      cache_bytes: size of the last cache before the device's memory, at most; None
        where that is not known.
    """

    run: str
    device: str
    versions: dict[str, str]
    commit: str | None
    cache_bytes: Bytes | None

    @classmethod
    def now(cls) -> "Environment":
        """That of this process, from now on."""
        packages = ("jax", "jaxlib", "numpy")
        found = {name: importlib.metadata.version(name) for name in packages}
        found["butterjax"] = butterjax.__version__
        return cls(
            run=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            device=_device_name(),
            versions={"python": platform.python_version(), **found},
            commit=_commit(),
            cache_bytes=_cache_bytes(),
        )


def _device_name() -> str:
    """Kind of the default device; for a CPU the processor's name."""
    kind = jax.devices()[0].device_kind
    if kind != "cpu":
        return kind
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} threads"


def _cache_bytes() -> int | None:
    if jax.default_backend() == "gpu":
        return _GPU_CACHE_BYTES
    sizes = [path.read_text().strip() for path in _CPU_CACHES.glob("index*/size")]
    return max((int(size[:-1]) * _FACTORS[size[-1]] for size in sizes), default=None)


def memory_bytes() -> int:
    """Size of the default device's memory; for a CPU what this process may use."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    if _CGROUP_LIMIT.exists() and (text := _CGROUP_LIMIT.read_text().strip()) != "max":
        sizes.append(int(text))
    return min(sizes)


def _commit() -> str | None:
    """Commit of this source tree, None where it is not a checkout."""
    root = pathlib.Path(__file__).parents[1]
    try:
        head = _git(root, "rev-parse", "HEAD").decode().strip()
        changes = _git(root, "diff", "HEAD", "--binary")
        added = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    for name in filter(None, added.decode().split("\0")):
        changes += name.encode() + (root / name).read_bytes()
    return f"{head}+{hashlib.sha1(changes).hexdigest()[:12]}" if changes else head


def _git(root: pathlib.Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout
