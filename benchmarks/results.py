"""The row that a benchmark of layers writes for each measurement, and reading it."""

import dataclasses
import json
import pathlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal, Protocol

from benchmarks import jsonl
from benchmarks.environment import Environment
from benchmarks.units import (
    Bytes,
    Count,
    Flops,
    Joules,
    Ratio,
    RatioQuartiles,
    Seconds,
    SecondsQuartiles,
    Setting,
)
from benchmarks.workloads import Workload

Key = tuple[Hashable, ...]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What one implementation took on one workload.

    Attributes:
      seconds: first quartile, median and third quartile of a call.
      num_samples: number of timed calls.
      clock: "wall" for the time until the results are there, as the host sees it;
        "cupti" for the time that the kernels of the call ran on the device, added up.
      is_noisy: whether the quartiles lie far apart though the time limit was used up.
      ratio_to_dense_layer: quartiles of the ratio of the times, call by call; None
        where no dense layer was measured beside it.
      compile_seconds: time to trace and compile.
      error: largest relative Frobenius error of an output against float64, None where
        an output is not finite.
      rotated_bytes: what the arguments take that the calls went through in turn; at
        least `Environment.cache_bytes` where no call found its arguments in a cache.
      peak_bytes: memory for arguments, results and temporaries, by XLA's analysis.
      device_peak_bytes: by how much a call raised the most that the device's memory
        ever held, above what it held before; None where no peak was set or known.
      moved_bytes: that transposes and copies write, by XLA's optimised HLO.
      written_bytes: that all of the call writes, results and intermediates.
      moved_seconds: that the kernels of those took, median; None without a device's
        clock.
      joules: energy of the device for a call; None where none was metered.
    """

    seconds: SecondsQuartiles
    num_samples: Count
    clock: Literal["wall", "cupti"]
    is_noisy: bool
    ratio_to_dense_layer: RatioQuartiles | None
    compile_seconds: Seconds
    error: Ratio | None
    rotated_bytes: Bytes | None
    peak_bytes: Bytes | None
    device_peak_bytes: Bytes | None
    moved_bytes: Bytes | None
    written_bytes: Bytes | None
    moved_seconds: Seconds | None
    joules: Joules | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One implementation on one workload.

    Just one of `measured`, `unsupported` and `failed` is not None.

    Attributes:
      environment: of the run.
      workload: what was run.
      implementation: name in the registry, or "dense layer" for one product with a
        ready matrix of the same size.
      configuration: of the implementation's kernel, None for its own choice.
      is_default: whether `implementation=None` takes this one.
      tolerance: the error that is allowed.
      flops: of the chain's forward pass as given, for the whole batch.
      floor_bytes: of x, the factors and y, each moved once.
      measured: what was measured.
      unsupported: why the implementation refused.
      failed: why it did not compile or run.
    """

    environment: Environment
    workload: Workload
    implementation: str
    configuration: dict[str, Setting | bool | str | None] | None
    is_default: bool
    tolerance: Ratio
    flops: Flops
    floor_bytes: Bytes
    measured: Measurement | None
    unsupported: str | None
    failed: str | None

    @property
    def key(self) -> Key:
        """What is not measured twice; see `key`."""
        return key(
            self.environment, self.workload, self.implementation, self.configuration
        )

    @property
    def median(self) -> float:
        """Median time in seconds; infinite where nothing was measured."""
        return self.measured.seconds[1] if self.measured else float("inf")

    @property
    def is_wrong(self) -> bool:
        """Whether an output is further from float64 than allowed."""
        if self.measured is None:
            return False
        error = self.measured.error
        return error is None or not error <= self.tolerance


def key(
    environment: Environment,
    workload: Workload,
    implementation: str,
    configuration: Mapping[str, Any] | None,
) -> Key:
    """What a resumed run does not measure again: all that decides a measurement.

    That is the device, all versions, the commit (with uncommitted changes), the
    workload, the implementation and its configuration. The seed, the time limit and
    the start of the run are left out.
    """
    return (
        environment.device,
        tuple(sorted(environment.versions.items())),
        environment.commit,
        workload,
        implementation,
        json.dumps(configuration, sort_keys=True),
    )


class Keyed(Protocol):
    """A row that a resumed run finds again."""

    @property
    def key(self) -> Key: ...


def latest[K: Keyed](rows: Iterable[K]) -> dict[Key, K]:
    """The rows by key; of those with the same key the last."""
    return {row.key: row for row in rows}


def load(path: pathlib.Path) -> list[Row]:
    """The rows of a file; see `benchmarks.jsonl.load`."""
    return jsonl.load(path, Row)
