"""Compiles functions, checks what they return, and times them against one another."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from benchmarks import energy, hlo, measure, results, workloads


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Something to measure.

    Attributes:
      function: of arrays; NotImplementedError while it is traced is a refusal.
      arguments: what to call it with. Candidates with the same arrays share them.
      expected: outputs in float64, leaf by leaf.
      checked: takes from the outputs what `expected` holds.
      built: the compiled function, where that was done before.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    expected: Sequence[Any]
    checked: Callable[[Any], Any] = lambda outputs: outputs
    built: measure.Built | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a candidate: `results.Row` has the same three fields."""

    measured: results.Measurement | None = None
    unsupported: str | None = None
    failed: str | None = None


def measure_candidates(
    candidates: Mapping[str, Candidate],
    *,
    reference: str | None,
    time_limit: float,
    seed: int,
    cache_bytes: int | None,
    clock: measure.Clock | None = None,
    has_energy: bool = True,
    tell: Callable[[str], None] = lambda name: None,
) -> dict[str, Outcome]:
    """Measures candidates side by side.

    One that does not compile or run is left out, and the others go on.

    Args:
      candidates: by name.
      reference: the one that times are compared with, None for none.
      time_limit: seconds for the timing of all of them.
      seed: of the order of calls.
      cache_bytes: what the rotated copies of arguments take together at least; None
        for no copies.
      clock: None for the device's own.
      has_energy: whether to meter energy where that can be done; it takes seconds.
      tell: is told which candidate comes next, before it is compiled and run once, and
        "" before all are timed.

    Returns:
      An outcome for each candidate.
    """
    clock = clock or measure.device_clock()
    outcomes: dict[str, Outcome] = {}
    ready: dict[str, _Ready] = {}
    for name, candidate in candidates.items():
        tell(name)
        try:
            ready[name] = _prepare(candidate)
        except NotImplementedError as refusal:
            outcomes[name] = Outcome(unsupported=str(refusal))
        except Exception as error:  # It is in the row, and the run fails for it.
            outcomes[name] = Outcome(failed=_shorten(error))
    num_calls = len(candidates) * measure.MAX_ROUNDS
    rotations: dict[tuple[int, ...], measure.Rotation] = {}
    for candidate in candidates.values():
        if _identity(candidate) not in rotations:
            rotations[_identity(candidate)] = measure.Rotation(
                candidate.arguments, cache_bytes=cache_bytes or 0, max_copies=num_calls
            )
    calls = {
        name: rotations[_identity(candidates[name])].calling(one.built.compiled)
        for name, one in ready.items()
    }
    tell("")
    samples = measure.interleave(calls, time_limit=time_limit, clock=clock, seed=seed)
    with energy.meter() if has_energy else contextlib.nullcontext() as meter:
        for name, one in ready.items():
            measured = results.Measurement(
                seconds=samples[name].quartiles(),
                num_samples=len(samples[name].seconds),
                clock=clock.name,
                is_noisy=samples[name].is_noisy,
                ratio_to_dense_layer=(
                    samples[name].ratio_to(samples[reference])
                    if reference in samples
                    else None
                ),
                compile_seconds=one.built.seconds,
                error=one.error,
                rotated_bytes=rotations[_identity(candidates[name])].num_bytes,
                peak_bytes=one.built.peak_bytes,
                device_peak_bytes=one.device_peak_bytes,
                moved_bytes=hlo.moved_bytes(one.launches),
                written_bytes=hlo.written_bytes(one.launches),
                moved_seconds=(
                    samples[name].seconds_in(hlo.moving_kernels(one.launches))
                    if clock.name == "cupti"
                    else None
                ),
                joules=energy.joules_per_call(calls[name], meter) if meter else None,
            )
            outcomes[name] = Outcome(measured=measured)
    return {name: outcomes[name] for name in candidates}


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A candidate that compiled and ran once."""

    built: measure.Built
    launches: tuple[hlo.Launch, ...]
    error: float | None
    device_peak_bytes: int | None


def _prepare(candidate: Candidate) -> _Ready:
    built = candidate.built or measure.build(candidate.function, candidate.arguments)

    def call() -> Any:
        return built.compiled(*candidate.arguments)

    peak = measure.device_peak_bytes(call)
    error = workloads.worst_error(candidate.checked(call()), candidate.expected)
    return _Ready(
        built=built,
        launches=hlo.launches(hlo.parse(built.compiled.as_text() or "")),
        error=error if error < float("inf") else None,
        device_peak_bytes=peak,
    )


def _identity(candidate: Candidate) -> tuple[int, ...]:
    return tuple(id(leaf) for leaf in jax.tree.leaves(candidate.arguments))


def _shorten(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) < 500 else f"{text[:500]}..."
