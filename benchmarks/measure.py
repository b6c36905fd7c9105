"""How everything here is timed: interleaved, each call until its result is there."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Samples:
    """Wall-clock times of one function.

    Attributes:
      seconds: one time per call, in the order of the rounds; the i-th calls of two
        functions measured together lie side by side.
    """

    seconds: tuple[float, ...]

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile, in seconds."""
        return _quartiles(np.array(self.seconds))

    def ratio_to(self, other: "Samples") -> tuple[float, float, float]:
        """Quartiles of this function's time over the other's, round by round."""
        rounds = min(len(self.seconds), len(other.seconds))
        mine, others = self.seconds[:rounds], other.seconds[:rounds]
        return _quartiles(np.array(mine) / np.array(others))


def _quartiles(values: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def interleave(
    functions: Mapping[str, Callable[[], Any]],
    *,
    time_limit: float,
    min_rounds: int = 3,
    max_rounds: int = 50,
    seed: int = 0,
) -> dict[str, Samples]:
    """Times functions against one another.

    Each is called once to warm up. Then come rounds in which each is called once, in
    a random order, so that a change in the machine's speed meets all of them. A
    function that has used up its share of the time limit sits out the later rounds.

    Args:
      functions: what to time; a call returns JAX arrays, which are waited for.
      time_limit: seconds that all calls together may take, warm-up apart;
        `min_rounds` comes first.
      min_rounds: rounds in which every function takes part.
      max_rounds: rounds at most.
      seed: of the order of the calls.

    Returns:
      The samples of each function, under its name.
    """
    rng = np.random.default_rng(seed)
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for done in range(max_rounds):
        share = time_limit / len(functions)
        names = [n for n in functions if done < min_rounds or sum(seconds[n]) < share]
        if not names:
            break
        for name in rng.permutation(names):
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            seconds[name].append(time.perf_counter() - start)
    return {name: Samples(tuple(values)) for name, values in seconds.items()}
