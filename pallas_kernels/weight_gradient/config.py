"""Configurations of `weight_gradient`, and which one a problem gets."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import chip
from pallas_kernels.common.chip import Chip
from pallas_kernels.common.tiles import Shape
from pallas_kernels.common.zipped_products import EIGHT, TILE
from pallas_kernels.weight_gradient import cost
from pallas_kernels.weight_gradient.plan import (
    ROOM,
    Config,
    Plan,
    make_plan,
)

DTYPES = ("bfloat16", "float16")
_WORTH = 0.75  # Of XLA's time, both predicted.
_MOST_STAGES = 6
_FEWEST_TURNS = 4  # A CTA with a step or two spends its time on its sums.
_CLUSTERS = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1))
_MOST_SUMS = 32_768  # Of a CTA: half of the registers.


def default_config(
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
) -> Config:
    """A configuration that fits the chip, for problems that XLA is slower at.

    Args:
      shape: the pattern (a, b, c, d).
      dtype: of x and dy.
      batch: vectors in x.
      axis: the feature axis of x and dy.

    Raises:
      NotImplementedError: if the kernel does not support the problem, or XLA's product
        is as fast; the message says why.
    """
    check_supported(shape, dtype, axis)
    a, b, c, d = shape
    return _best((int(a), int(b), int(c), int(d)), batch)


def check_supported(
    shape: Sequence[int], dtype: jax.typing.DTypeLike, axis: int
) -> None:
    """Raises NotImplementedError for what no configuration is for."""
    if axis != -1:
        raise NotImplementedError(
            f"weight_gradient: XLA's product is as fast for axis={axis}"
        )
    if jnp.dtype(dtype).name not in DTYPES:
        raise NotImplementedError(
            f"weight_gradient: the dtype must be one of {', '.join(DTYPES)}; got "
            f"{jnp.dtype(dtype).name}"
        )
    _, b, c, d = shape
    if d == 1:
        raise NotImplementedError(
            f"weight_gradient: XLA's product is as fast where d = 1, as in {shape}"
        )
    if b % TILE or c % TILE or d % EIGHT:
        raise NotImplementedError(
            f"weight_gradient: b and c must be multiples of {TILE} and d of {EIGHT}, "
            f"got the shape {shape}"
        )


@functools.lru_cache(maxsize=1024)
def _best(shape: Shape, batch: int) -> Config:
    device = chip.load()
    plans = list(_plans(shape, batch, device))
    if not plans:
        raise NotImplementedError(
            f"weight_gradient: no configuration fits the shape {shape}"
        )
    best = min(plans, key=lambda plan: cost.seconds(plan, device))
    if cost.seconds(best, device) > _WORTH * cost.xla_seconds(best, device):
        raise NotImplementedError(
            f"weight_gradient: XLA's product is expected to be as fast for the shape "
            f"{shape} and {batch} vectors"
        )
    return best.config


def _plans(shape: Shape, batch: int, device: Chip) -> Iterator[Plan]:
    """Worth a comparison: what fits, with as many shares and stages as there can be."""
    _, b, c, d = shape
    for neighbours, outputs, inputs in itertools.product(
        (64, 32, 16, 8), _tiles(b), _tiles(c)
    ):
        sums = neighbours * outputs * inputs
        few = sums < min(_MOST_SUMS // 8, neighbours * b * c)
        if d % neighbours or few or sums > _MOST_SUMS:
            continue
        for cluster in _CLUSTERS:
            if outputs * (cluster[0] - 1) >= b or inputs * (cluster[1] - 1) >= c:
                continue
            config = Config(neighbours, outputs, inputs, 1, cluster, 1)
            try:
                yield _filled(make_plan(shape, batch, config), device)
            except NotImplementedError:
                continue


def _filled(plan: Plan, device: Chip) -> Plan:
    """With shares for one wave of CTAs, if not more, and all stages that fit."""
    resident = device.resident(math.prod(plan.config.cluster))
    most = max(1, resident // math.prod(plan.clusters))
    turns = max(1, -(-plan.steps // most), min(plan.steps, _FEWEST_TURNS))
    shares = most if turns > _FEWEST_TURNS else max(1, -(-plan.steps // turns))
    stages = max(1, min(_MOST_STAGES, turns, ROOM // plan.stage_bytes))
    config = dataclasses.replace(plan.config, shares=shares, stages=stages)
    return make_plan(plan.shape, plan.batch, config)


def _tiles(features: int) -> list[int]:
    """Of so many features: all, a half and so on, in whole 16."""
    tiles = features // TILE
    return sorted({TILE * -(-tiles // parts) for parts in (1, 2, 3, 4, 6, 8, 12, 16)})
