"""Launches timed on a device, beside what `pallas_kernels` predicts of them."""

import dataclasses
import functools
import importlib
import itertools
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import jax.numpy as jnp

import butterjax as bj
from benchmarks import jsonl, results
from benchmarks.units import Count, Seconds, Setting
from benchmarks.workloads import DENSE_LAYER, Workload
from butterjax.gpu.plan import plan_launches
from pallas_kernels.common.chip import Chip
from pallas_kernels.common.usage import Usage

Axis = Literal[0, -1]
Shape = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch of a kernel: what it applied and how, or what it asked for.

    Attributes:
      kernel: that has a cost in `pallas_kernels`; None for a prototype, or a form of a
        kernel that is gone.
      shape: the pattern (a, b, c, d).
      config: fields of the kernel's Config; those left out keep their defaults.
      usage: without a kernel, what the launch asked for, counted by hand or before the
        form went.
    """

    kernel: str | None
    shape: Shape
    config: dict[str, Setting | bool | str]
    usage: Usage | None


@dataclasses.dataclass(frozen=True)
class Timed:
    """Launches, one after the other, that were timed together.

    Attributes:
      name: what ran.
      problem: what it computed: of the same problem one takes the fastest.
      device: kind of the device.
      clock: "cupti" or "nsight" for device time; "wall" for the host's, less
        `host_seconds` for what it adds to a launch.
      host_seconds: that were taken off.
      axis: the feature axis of x.
      dtype: of x and the factors.
      batch: vectors in x.
      launches: what was launched.
      seconds: that it took.
    """

    name: str
    problem: str
    device: str
    clock: Literal["cupti", "nsight", "wall"]
    host_seconds: Seconds
    axis: Axis
    dtype: str
    batch: Count
    launches: tuple[Launch, ...]
    seconds: Seconds


class Cost(Protocol):
    """What a kernel's cost module has: a launch's seconds by its configuration."""

    def __call__(
        self,
        shape: Shape,
        config: Any,
        *,
        axis: Axis,
        dtype: Any,
        batch: int,
        chip: Chip,
    ) -> float: ...


@dataclasses.dataclass(frozen=True)
class Case:
    """Something that was timed, and a function that predicts it."""

    name: str
    problem: str
    seconds: float
    predict: Callable[[Chip], float]

    def error(self, chip: Chip) -> float:
        """By how much the prediction is off, as a share of what was measured."""
        return abs(self.predict(chip) / self.seconds - 1)


def of_launches(path: pathlib.Path) -> list[Case]:
    """The cases of a file of `Timed`."""
    return [_of_timed(one) for one in jsonl.load(path, Timed)]


def of_xla(rows: Iterable[results.Row]) -> list[Case]:
    """Cases of what XLA does forward, factor by factor or with a ready matrix.

    It is taken to move what its optimised HLO writes and reads, in as many launches as
    results are as large as y, and to compute as fast as a large product does. Products
    of blocks with d > 1, features last, that it reads where they are, are left out: how
    fast those strided reads are is not known.
    """
    cases = []
    for row in rows:
        work, measured = row.workload, row.measured
        known = (DENSE_LAYER, "einsum", "bmm")
        if measured is None or row.implementation not in known:
            continue
        if work.direction != "forward" or measured.written_bytes is None:
            continue
        strided = work.axis == -1 and any(d > 1 for *_, d in work.chain.shapes)
        if row.implementation == "einsum" and strided and not measured.moved_bytes:
            continue
        itemsize = jnp.dtype(work.dtype).itemsize * work.batch
        x, y = itemsize * work.chain.in_features, itemsize * work.chain.out_features
        written = max(measured.written_bytes, y)
        if row.implementation == DENSE_LAYER:
            steps, moved = 1, x + y + work.matrix_bytes
            flops = 2 * work.batch * work.chain.in_features * work.chain.out_features
        else:
            steps, moved, flops = round(written / y), 2 * written - y + x, row.flops
        cases.append(
            Case(
                f"{row.implementation} {work.name}",
                problem(work.chain.shapes, work.axis, work.batch),
                row.median,
                functools.partial(_xla_seconds, steps, moved, flops),
            )
        )
    return cases


def _xla_seconds(steps: int, moved: float, flops: float, chip: Chip) -> float:
    usage = Usage(
        hbm_bytes=moved / steps,
        l2_bytes=0.0,
        wgmma_flops=flops / steps,
        tiles=chip.multiprocessors,
        ctas=chip.multiprocessors,
    )
    return steps * chip.seconds(usage)


def of_library(rows: Iterable[results.Row], *, since: str) -> list[Case]:
    """Cases of what the library launches forward, as its own choice.

    Args:
      rows: of H200s.
      since: start of the first run, in ISO format, whose kernels are those of today.
    """
    cases = []
    for row in rows:
        work = row.workload
        if row.environment.run < since or row.configuration is not None:
            continue
        if row.measured is None or work.direction != "forward":
            continue
        if row.implementation not in ("pallas", "pallas_chain"):
            continue
        whole = row.implementation == "pallas_chain"
        parts = [work.chain] if whole else [bj.Chain([one]) for one in work.chain]
        cases.append(
            Case(
                f"library {row.implementation} {work.name}",
                problem(work.chain.shapes, work.axis, work.batch),
                row.median,
                functools.partial(_library_seconds, parts, work),
            )
        )
    return cases


def _library_seconds(parts: list[bj.Chain], work: Workload, chip: Chip) -> float:
    del chip  # Launches are planned for one kind.
    options: dict[str, Any] = {"batch": work.batch, "axis": work.axis}
    plans = [plan_launches(one, dtype=work.dtype, **options) for one in parts]
    return sum(launch.seconds for launch in itertools.chain(*plans))


def problem(shapes: Sequence[Sequence[int]], axis: int, batch: int) -> str:
    """What is computed, in a word; 16-bit types are not told apart."""
    patterns = "".join("(" + ",".join(map(str, shape)) + ")" for shape in shapes)
    return f"{patterns} {'last' if axis else 'first'} {batch}"


def _of_timed(timed: Timed) -> Case:
    def predict(chip: Chip) -> float:
        return sum(_seconds(launch, timed, chip) for launch in timed.launches)

    return Case(timed.name, timed.problem, timed.seconds, predict)


def _seconds(launch: Launch, timed: Timed, chip: Chip) -> float:
    if launch.kernel is None:
        assert launch.usage is not None, timed.name
        return chip.seconds(launch.usage)
    config, cost = _of_kernel(launch.kernel)
    return cost(
        launch.shape,
        config(**launch.config),
        axis=timed.axis,
        dtype=timed.dtype,
        batch=timed.batch,
        chip=chip,
    )


def _of_kernel(name: str) -> tuple[Callable[..., Any], Cost]:
    room = f"pallas_kernels.{name}"
    config = importlib.import_module(f"{room}.config").Config
    cost: Cost = importlib.import_module(f"{room}.cost").predicted_seconds
    return config, cost


def halves(cases: Iterable[Case]) -> tuple[list[Case], list[Case]]:
    """Cases to fit on, and cases to judge on: every other one, by name."""
    ordered = sorted(cases, key=lambda case: case.name)
    return ordered[::2], ordered[1::2]


def median_error(cases: Iterable[Case], chip: Chip) -> float:
    """The median of the errors, each as a share of what was measured."""
    return statistics.median(case.error(chip) for case in cases)


def order(cases: Sequence[Case], chip: Chip, *, apart: float = 0.15) -> tuple[int, int]:
    """In how many pairs of ways to compute the same the faster one is predicted.

    Args:
      cases: what was timed.
      chip: that predicts.
      apart: pairs count if one took this much longer than the other.

    Returns:
      Pairs in the right order, and all pairs.
    """
    right = pairs = 0
    for index, one in enumerate(cases):
        for other in cases[:index]:
            ratio = one.seconds / other.seconds
            if one.problem != other.problem or abs(math.log(ratio)) < math.log1p(apart):
                continue
            pairs += 1
            right += (one.predict(chip) > other.predict(chip)) == (ratio > 1)
    return right, pairs


MEASURED = "measured"  # The source of what `benchmarks.calibrate` measured.

# What is fitted, as nothing measures it by itself: and the steps that it is tried in.
FITTED = {
    "trip_seconds": 0.1e-6,
    "meeting_seconds": 0.02e-6,
    "launch_seconds": 0.25e-6,
    "instructions_per_clock": 0.25,
    "line_clocks": 0.25,
    "instructions_per_warp": 0.01,
}


def loss(cases: Iterable[Case], chip: Chip) -> float:
    """What is made small by the fit: the mean error."""
    return statistics.mean(case.error(chip) for case in cases)


def fit(cases: Sequence[Case], chip: Chip) -> Chip:
    """The chip with the constants of `FITTED` that suit the cases, from those it has.

    Steps one constant at a time up or down for as long as that makes the loss smaller.
    Those that were measured since are left as they are.
    """
    left = {
        name: step for name, step in FITTED.items() if chip.source(name) != MEASURED
    }
    least, found = loss(cases, chip), True
    while found:
        found = False
        for field, step in left.items():
            for change in (-step, step):
                value = round(getattr(chip, field) + change, 12)
                if value <= 0 or (field == "instructions_per_clock" and value > 4):
                    continue
                other = dataclasses.replace(chip, **{field: value})
                if (error := loss(cases, other)) < 0.999 * least:
                    least, chip, found = error, other, True
    return chip
