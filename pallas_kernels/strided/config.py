"""Which configuration of `strided` to take."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import jax

from pallas_kernels.common import arguments, tuned
from pallas_kernels.common.tiles import SMEM_BYTES
from pallas_kernels.strided.plan import (
    CLUSTERS,
    NEIGHBOURS,
    Config,
    Plan,
    check_shape,
    plan,
)

# Relative time by bytes of a run that TMA moves, and by CTAs that x is sent to.
_RUNS = {128: 1.0, 112: 1.05, 80: 1.08, 64: 1.1, 48: 1.2, 32: 1.3, 16: 2.5}
_SHARED = {1: 1.0, 2: 1.03, 4: 1.15}
# How many CTAs of a cluster run at a time.
_CTAS = {1: 132, 2: 132, 4: 120}
_IN_FLIGHT = 131_072  # Bytes of x; more do not make it faster.


@tuned.before_rule("strided", Config)
def default_config(
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """A configuration that fits, by a rule: long runs first, then few CTAs a cluster.

    Args:
      shape: the pattern (a, b, c, d).
      dtype: of x and the factor.
      batch: vectors in x.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: has no effect on 16-bit numbers.

    Raises:
      NotImplementedError: if the kernel does not support the case; the message says
        why.
    """
    del precision
    check_supported(dtype, out_dtype, axis)
    a, b, c, d = shape
    return _best((a, b, c, d), batch)


def check_supported(
    dtype: jax.typing.DTypeLike, out_dtype: jax.typing.DTypeLike | None, axis: int
) -> None:
    """Raises NotImplementedError for dtypes and layouts that the kernel has not."""
    if axis != -1:
        raise NotImplementedError(
            f"strided: features must come last, with axis=-1, got axis={axis}"
        )
    for name, found in zip(
        ("the dtype of x", "out_dtype"),
        arguments.check_dtypes("strided", dtype, out_dtype),
        strict=True,
    ):
        if found.itemsize != 2:
            raise NotImplementedError(
                f"strided: {name} must be bfloat16 or float16, got {found.name}"
            )


@functools.lru_cache(maxsize=1024)
def _best(shape: tuple[int, int, int, int], batch: int) -> Config:
    check_shape(shape)
    fitting, refusals = [], []
    for neighbours, cluster in itertools.product(NEIGHBOURS, CLUSTERS):
        if shape[3] % neighbours:
            continue
        try:
            fitting.append(_filled(shape, batch, neighbours, cluster))
        except NotImplementedError as refusal:
            refusals.append(refusal)
    if not fitting:
        # The last one asks for the least.
        raise (
            refusals[-1]
            if refusals
            else NotImplementedError(
                f"strided: d must be a multiple of 8, got {shape[3]}"
            )
        )
    return min(fitting, key=_relative_time).config


def _filled(
    shape: tuple[int, int, int, int], batch: int, neighbours: int, cluster: int
) -> Plan:
    """The plan with as many stages as are of use."""
    config = Config(neighbours, cluster, stages=1, ctas=_CTAS[cluster])
    bare = Plan(shape, batch, config)
    rows, pitch, line = bare.slot_in
    slot = 2 * rows * pitch * line
    room = (SMEM_BYTES - bare.smem_bytes) // slot + 1
    wanted = max(bare.chunks, 4, _IN_FLIGHT // slot)
    stages = max(bare.chunks, min(room, wanted))
    return plan(shape, batch, dataclasses.replace(config, stages=stages))


def _relative_time(found: Plan) -> float:
    return _RUNS[2 * found.line] * _SHARED[found.config.cluster]
