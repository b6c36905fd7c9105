"""Compiles many kernels at the same time.

For hand-written kernels alone: XLA tries out alternatives for its own products on the
device while it compiles them, which nothing else may disturb.
"""

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

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
      For each what was compiled, or what was raised.
    """
    threads = threads or os.cpu_count() or 1
    if threads == 1:
        return list(map(_build, programs))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(_build, programs))


def _build(program: Program) -> measure.Built | Exception:
    try:
        return measure.build(*program)
    except Exception as error:
        return error
