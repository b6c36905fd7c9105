"""Result files: JSON lines, one self-contained row per measurement."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

import jax

import butterjax

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where and when a run took place.

    Attributes:
      run: start of the run in UTC; the rows of one run were measured together.
      device: kind of the device, with the processor's name for a CPU.
      versions: of Python and the packages that decide a measurement.
      commit: of the source tree, with "+" after it where files were changed; None
        where the tree is no checkout.
    """

    run: str
    device: str
    versions: dict[str, str]
    commit: str | None

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
        )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one implementation took on one workload. Times are in seconds.

    Attributes:
      seconds: first quartile, median and third quartile of a call.
      num_samples: number of timed calls.
      ratio_to_dense_layer: quartiles of the ratio of the times, call by call.
      compile_seconds: time to trace and compile.
      error: largest relative Frobenius error of an output against float64.
    """

    seconds: tuple[float, float, float]
    num_samples: int
    ratio_to_dense_layer: tuple[float, float, float]
    compile_seconds: float
    error: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation on one workload.

    Attributes:
      environment: of the run.
      case: the chain as the flag spelt it.
      chain: patterns (a, b, c, d), in the order of the matrix product.
      batch: rows of x.
      dtype: of x and of the factors.
      layout: "feature_last" for x (batch, features), or "feature_first".
      direction: "forward" or "forward+backward".
      implementation: name in the registry, or "dense layer" for one product with a
        ready matrix of the same size.
      is_default: whether `implementation=None` takes this one.
      tolerance: the error that is allowed.
      flops: of the chain's forward pass as given, for the whole batch.
      floor_bytes: bytes of x, the factors and y, each moved once.
      measured: what was measured, None where the implementation refused.
      unsupported: why it refused, None where it did not.
    """

    environment: Environment
    case: str
    chain: tuple[tuple[int, int, int, int], ...]
    batch: int
    dtype: str
    layout: str
    direction: str
    implementation: str
    is_default: bool
    tolerance: float
    flops: int
    floor_bytes: int
    measured: Measurement | None
    unsupported: str | None

    @property
    def median(self) -> float:
        """Median time in seconds; infinite where nothing was measured."""
        return self.measured.seconds[1] if self.measured else float("inf")

    @property
    def is_wrong(self) -> bool:
        """Whether an output is further from float64 than allowed."""
        return self.measured is not None and not self.measured.error <= self.tolerance


def append(path: pathlib.Path, rows: Iterable["DataclassInstance"]) -> None:
    """Adds rows to a file, in one write, so that a reader sees whole lines."""
    text = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    with path.open("ab", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())


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


def _commit() -> str | None:
    """Commit of this source tree, None where it is not a checkout."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")
