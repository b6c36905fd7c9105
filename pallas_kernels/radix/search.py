"""Which configuration of the radix kernel is taken.

A chain takes the largest tile that fits. A single factor is as many independent ones,
its *parts*: blocks that follow one another along a, or along d. A CTA takes one part of
all vectors, so that its weights stay in registers, and tiles are as large as wanted,
whatever the number of features. Of these the configuration is taken that the chip's
model has as the fastest.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from pallas_kernels.common import arguments, chip, tiles, tuned
from pallas_kernels.radix import cost
from pallas_kernels.radix import plan as passes
from pallas_kernels.radix.config import Config, plan_for

_ROWS = (256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 4)
_WARPGROUPS = (1, 2, 4)

# Of a single factor.
_TALL = (256, 128, 64, 32, 16)
_TILE_BYTES = (32_768, 16_384)  # Of x or y that are tried, at most.
_LEAST_BYTES = 4096  # Parts of which there are no tiles of so many are too small.
_MAX_STAGES = 4
_SPARE = 6144  # Bytes that allocations are rounded up by, barriers and the system.
_CHIP = chip.load()


@tuned.before_rule("radix", Config)
def default_config(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """A configuration that fits the chip, by rule where none was measured to be best.

    For several factors every tile loads all weights anew, so the largest tile comes
    first, but one that leaves work for all multiprocessors. Two CTAs of two warpgroups,
    of which one computes while the other waits, come before one of four where weights
    are less than a quarter of what goes through the L2 cache. For a single factor it is
    what `cost` has as the fastest.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      dtype: of x and the factors.
      batch: vectors in x.
      axis: the feature axis of x.
      out_dtype: of the result; None for that of x.
      precision: as in `radix`.
      device: whose measurements count; see `pallas_kernels.tuned.lookup`.

    Raises:
      NotImplementedError: if no configuration fits the chain; the message says why
        the smallest one does not.
    """
    del precision
    types = arguments.check_dtypes("radix", dtype, out_dtype)
    fixed = tuple((int(a), int(b), int(c), int(d)) for a, b, c, d in shapes)
    if len(fixed) == 1:
        return _of_one_factor(fixed[0], types, batch, axis)
    weights = types[0].itemsize * sum(math.prod(shape) for shape in fixed)
    row = _vector_bytes(fixed, types)
    # A tile that leaves multiprocessors idle only if no other fits.
    by_rows = sorted(
        _ROWS, key=lambda rows: rows > max(4, batch // _CHIP.multiprocessors)
    )
    reasons = {}
    for (occupancy, warpgroups), rows in itertools.product(((2, 2), (1, 4)), by_rows):
        if occupancy > 1 and 4 * weights > rows * row:
            continue
        config = Config(
            rows=rows,
            warpgroups=warpgroups,
            occupancy=occupancy,
            ctas=_CHIP.multiprocessors * occupancy,
        )
        try:
            plan_for(fixed, types, config, axis)
        except NotImplementedError as error:
            reasons[rows] = error
            continue
        return config
    raise reasons[min(reasons)]


@functools.lru_cache(maxsize=256)
def _of_one_factor(
    shape: passes.Shape,
    types: tuple[jnp.dtype, jnp.dtype],
    batch: int,
    axis: Literal[0, -1],
) -> Config:
    """The configuration that should take the least time, of a bounded set."""
    best: tuple[tuple[float, ...], Config] | None = None
    reason: NotImplementedError | None = None
    for config in _candidates(shape, types, axis):
        try:
            seconds = cost.seconds(
                plan_for((shape,), types, config, axis), types, config, batch, _CHIP
            )
        except NotImplementedError as error:
            reason = error
            continue
        # Of those as fast, the one with fewer threads and a smaller tile.
        key = (seconds, config.warpgroups * config.occupancy, config.rows)
        if best is None or key < best[0]:
            best = key, config
    if best is None:
        assert reason is not None
        raise reason
    return best[1]


def _cuts_along_d(
    d: int, types: tuple[jnp.dtype, jnp.dtype], axis: Literal[0, -1]
) -> bool:
    """Whether `plan_for` takes so many neighbours along d of more."""
    return d > 1 and (axis == 0 or d * min(one.itemsize for one in types) % 16 == 0)


def _candidates(
    shape: passes.Shape, types: tuple[jnp.dtype, jnp.dtype], axis: Literal[0, -1]
) -> Iterator[Config]:
    """Configurations for one factor: few, with as many stages as there is room for.

    For tiles of so many rows and bytes the fewest parts; of as many, those along d,
    whose weights follow one another.
    """
    a, b, c, d = shape
    all_parts = sorted(
        (
            (parts_a, parts_d)
            for parts_a in tiles.divisors(a)
            for parts_d in tiles.divisors(d)
            if parts_d == 1 or _cuts_along_d(d // parts_d, types, axis)
        ),
        key=lambda parts: (math.prod(parts), -parts[1]),
    )
    found = set()
    for rows, most in itertools.product(_TALL, _TILE_BYTES):
        for parts_a, parts_d in all_parts:
            blocks = a // parts_a * (d // parts_d)
            row_in = blocks * c * types[0].itemsize
            row_out = blocks * b * types[1].itemsize
            least = min(_LEAST_BYTES, _ROWS[0] * a * max(b, c) * d)
            if least <= rows * max(row_in, row_out) <= most:
                found.add((rows, parts_a, parts_d, row_in, row_out))
                break
    if not found:  # Of so many features even the smallest tile is large.
        found.add(
            (
                _ROWS[-1],
                1,
                1,
                a * c * d * types[0].itemsize,
                a * b * d * types[1].itemsize,
            )
        )
    for one, occupancy, warpgroups in itertools.product(
        sorted(found), (2, 1), _WARPGROUPS
    ):
        rows, parts_a, parts_d, row_in, row_out = one
        room = _CHIP.smem_bytes // occupancy - _SPARE - rows * row_out
        stages = min(_MAX_STAGES, room // max(1024, rows * row_in))
        yield Config(
            rows=rows,
            warpgroups=warpgroups,
            stages=max(1, stages),
            occupancy=occupancy,
            ctas=_CHIP.multiprocessors * occupancy,
            parts_a=parts_a,
            parts_d=parts_d,
        )


def _vector_bytes(
    shapes: Sequence[passes.Shape], types: tuple[jnp.dtype, jnp.dtype]
) -> int:
    """Bytes of a vector of x and one of the result."""
    n_in = math.prod(shapes[-1]) // shapes[-1][1]
    n_out = math.prod(shapes[0]) // shapes[0][2]
    return n_in * types[0].itemsize + n_out * types[1].itemsize
