"""How everything here is timed: side by side, on random input, caches cold.

On a GPU the clock is the device's own: CUPTI tells how long each kernel ran. Elsewhere
it is the wall's, each call until its result is there.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import profiler

from benchmarks.units import RatioQuartiles, SecondsQuartiles

# Quartiles further apart than this share of the median make a measurement noisy.
MAX_SPREAD = 0.1
MAX_ROUNDS = 50

# CUPTI's names and times, in seconds, of the kernels of one call.
Kernels = tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Timing:
    """One timed call.

    Attributes:
      seconds: what the call took.
      kernels: that it ran, where the clock tells.
    """

    seconds: float
    kernels: Kernels = ()


class Clock(Protocol):
    """Runs a function once and tells what it took."""

    @property
    def name(self) -> Literal["wall", "cupti"]: ...

    def time(self, function: Callable[[], Any]) -> Timing: ...


class WallClock:
    """Time that passes until the results of a call are there."""

    name: Literal["wall"] = "wall"

    def time(self, function: Callable[[], Any]) -> Timing:
        start = time.perf_counter()
        jax.block_until_ready(function())
        return Timing(time.perf_counter() - start)


class CuptiClock:
    """Time that the kernels of a call ran on an NVIDIA GPU, added up.

    What the driver copies by itself is not in it. Calls the function twice: the
    profiler warms up first.
    """

    name: Literal["cupti"] = "cupti"

    def time(self, function: Callable[[], Any]) -> Timing:
        cupti = profiler.Cupti(finalize=False)  # type: ignore[call-arg]
        timed = cupti.measure(_AsIs(function), aggregate=False)
        _, found = timed()
        if found is None:
            raise RuntimeError("CUPTI saw no kernel run")
        kernels = tuple((name, milliseconds / 1e3) for name, milliseconds in found)
        return Timing(sum(seconds for _, seconds in kernels), kernels)


@dataclasses.dataclass(frozen=True)
class _AsIs:
    """A function that the profiler takes for a jitted one and does not jit itself."""

    function: Callable[[], Any]

    def __call__(self) -> Any:
        return self.function()

    def trace(self) -> Any:
        raise NotImplementedError

    def lower(self) -> Any:
        raise NotImplementedError


def device_clock() -> Clock:
    """The most exact clock of the default device."""
    is_nvidia = "cuda" in jax.devices()[0].client.platform_version.lower()
    return CuptiClock() if is_nvidia else WallClock()


@dataclasses.dataclass(frozen=True)
class Samples:
    """Timed calls of one function.

    Attributes:
      timings: one per call, in the order of the rounds; the i-th calls of two
        functions measured together lie side by side.
    """

    timings: tuple[Timing, ...]

    @property
    def seconds(self) -> tuple[float, ...]:
        """The times alone."""
        return tuple(timing.seconds for timing in self.timings)

    @property
    def is_noisy(self) -> bool:
        """Whether the quartiles lie further apart than `MAX_SPREAD` of the median."""
        low, middle, high = self.quartiles()
        return high - low > MAX_SPREAD * middle

    def quartiles(self) -> SecondsQuartiles:
        """First quartile, median and third quartile, in seconds."""
        return _quartiles(np.array(self.seconds))

    def ratio_to(self, other: "Samples") -> RatioQuartiles:
        """Quartiles of this function's time over the other's, round by round."""
        rounds = min(len(self.seconds), len(other.seconds))
        mine, others = self.seconds[:rounds], other.seconds[:rounds]
        return _quartiles(np.array(mine) / np.array(others))

    def seconds_in(self, kernels: Collection[str]) -> float:
        """Median over the calls of the time spent in kernels of these names."""
        spent = [
            sum(seconds for name, seconds in timing.kernels if name in kernels)
            for timing in self.timings
        ]
        return float(np.median(spent))


def _quartiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    *,
    time_limit: float,
    clock: Clock | None = None,
    min_rounds: int = 5,
    max_rounds: int = MAX_ROUNDS,
    seed: int = 0,
) -> dict[str, Samples]:
    """Times functions against one another.

    Each is called once to warm up. Then come rounds in which each is called once, in
    a random order, so that a change in the machine's speed meets all of them, until
    no function is noisy any more. A function that has used up its share of the time
    limit sits out the later rounds.

    Args:
      functions: what to time; a call returns JAX arrays, which are waited for.
      time_limit: seconds that all calls together may take, warm-up apart;
        `min_rounds` comes first.
      clock: that times a call; None for `device_clock()`.
      min_rounds: rounds in which every function takes part.
      max_rounds: rounds at most.
      seed: of the order of the calls.

    Returns:
      The samples of each function, under its name.
    """
    clock = clock or device_clock()
    rng = np.random.default_rng(seed)
    for function in functions.values():
        jax.block_until_ready(function())
    timings: dict[str, list[Timing]] = {name: [] for name in functions}
    spent = dict.fromkeys(functions, 0.0)

    def samples() -> dict[str, Samples]:
        return {name: Samples(tuple(values)) for name, values in timings.items()}

    for done in range(max_rounds):
        if done >= min_rounds and not any(s.is_noisy for s in samples().values()):
            break
        share = time_limit / max(1, len(functions))
        names = [n for n in functions if done < min_rounds or spent[n] < share]
        if not names:
            break
        for name in rng.permutation(names):
            start = time.perf_counter()
            timings[name].append(clock.time(functions[name]))
            spent[name] += time.perf_counter() - start
    return samples()


@dataclasses.dataclass(frozen=True)
class Built:
    """A compiled function, and the seconds it took to trace and compile."""

    compiled: jax.stages.Compiled
    seconds: float

    @property
    def peak_bytes(self) -> int | None:
        """Memory for arguments, results and temporaries, by XLA's analysis."""
        memory = self.compiled.memory_analysis()
        return None if memory is None else memory.peak_memory_in_bytes


def build(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Built:
    """Compiles a function of arrays; raises what tracing and compiling raise."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    return Built(compiled, time.perf_counter() - start)


class Rotation:
    """Copies of a function's arguments for its calls to go through in turn.

    Args:
      arguments: a tuple of (trees of) arrays.
      cache_bytes: what the copies are to take together at least.
      max_copies: how many to make at most: no more than there will be calls.
    """

    def __init__(
        self, arguments: tuple[Any, ...], *, cache_bytes: int, max_copies: int
    ) -> None:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments))
        # One more than fills the cache: a call's own results lie there too.
        copies = 1 if size >= cache_bytes else cache_bytes // size + 2
        copies = max(1, min(copies, max_copies))
        self._copies = [arguments]
        self._copies += [_copy(arguments) for _ in range(copies - 1)]
        self._next = 0
        self.num_bytes = copies * size
        jax.block_until_ready(self._copies)

    def calling(self, function: Callable[..., Any]) -> Callable[[], Any]:
        """A function of no arguments that takes the next copy at each call.

        Functions of one rotation share its copies, and their turn.
        """

        def call() -> Any:
            self._next = (self._next + 1) % len(self._copies)
            return function(*self._copies[self._next])

        return call


@jax.jit
def _copy(arguments: Any) -> Any:
    return jax.tree.map(jnp.copy, arguments)


def device_peak_bytes(function: Callable[[], Any]) -> int | None:
    """By how much a call raises the most that the device's memory ever held.

    Returns:
      The bytes above what it held before the call; None where the device does not
      tell, or held more at some time before.
    """
    device = jax.devices()[0]
    before = device.memory_stats()
    jax.block_until_ready(function())
    after = device.memory_stats()
    if not before or not after:
        return None
    if after["peak_bytes_in_use"] <= before["peak_bytes_in_use"]:
        return None
    return int(after["peak_bytes_in_use"] - before["bytes_in_use"])
