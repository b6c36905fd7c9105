"""Compiles many kernels at the same time.

For hand-written kernels alone: XLA tries out alternatives for its own products on the
device while it compiles them, which nothing else may disturb.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import measure

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def build_all(
    programs: Sequence[Program], threads: int | None = None
) -> list[measure.Built | Exception]:
    """Compiles functions for their arguments.

    Args:
      programs: functions, and arrays or shapes to call them with.
      threads: how many to use, None for as many as there are processors. With 1, all
        is done in the caller's.

    Returns:
      For each what was compiled, or what was raised: a NotImplementedError is a refusal
      while it was traced, and `LoweringError` stands for one that came later.
    """
    threads = threads or os.cpu_count() or 1
    if threads == 1:
        return list(map(_build, programs))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_build, programs))


class LoweringError(Exception):
    """What a kernel took does not lower; it should have refused it, if anything."""


def _build(program: Program) -> measure.Built | Exception:
    function, arguments = program
    try:
        jax.jit(function).trace(*arguments)
    except Exception as error:
        return error
    try:
        return measure.build(function, arguments)
    except NotImplementedError as error:
        return LoweringError(str(error))
    except Exception as error:
        return error
