"""Which configuration of the backward kernel should be fastest, and how fast it is.

Bytes are counted from the plan; whether device memory, shared memory, that of peers or
waiting binds the kernel follows from the chip's rates. Nothing here is measured.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax

from pallas_kernels import arguments
from pallas_kernels.backward_plan import ITEMSIZE, Config, Plan, check_patterns, plan
from pallas_kernels.chips import H200, Chip

_CLUSTERS = (1, 2, 4, 8, 16)
_ROWS = (16, 32, 64)
_WARPGROUPS = (1, 2, 4)
_STAGES = (1, 2)
_OUT_STAGES = (1, 2)

_PULL = 0.3e-6  # Seconds, assumed, that bringing one piece from a peer takes.
_THREADS = 128
_ALIKE = (
    1.05  # Predictions tell no smaller differences: then fewer registers are better.
)


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes for each vector of the batch, in a full tile.

    Attributes:
      hbm: x and dy, read once, and dx, written once: the floor; L2 moves as much.
      shared: all that is written to shared memory or read from it.
      peers: of these, read from another CTA's.
      once: written and read again by each cluster in all, not for each vector: its
        sums, which XLA adds up.
    """

    hbm: float
    shared: float
    peers: float
    once: float


def count(made: Plan) -> Traffic:
    """Counts the bytes of a plan; with an activation shared memory moves more."""
    config, left, right = made.config, made.left, made.right
    n_in, n_out = right.a * right.c, left.b * left.d
    n_mid = made.outer * made.inner
    hbm = ITEMSIZE * (2 * n_in + n_out)
    shared = float(hbm)  # Between HBM and the slabs, by TMA.
    if made.batch_first:
        shared += 2 * ITEMSIZE * (n_in + n_out)  # Turned.
    for product in made.products:
        written = 0 if product.is_summed else ITEMSIZE * product.m * product.n
        each = product.read_bytes + written
        shared += config.cluster * product.number * each / config.rows
    peers = 0.0
    if config.cluster > 1:
        pulled = ITEMSIZE * (2 * n_mid + (n_out if made.batch_first else 0))
        shared += 2 * pulled
        peers = pulled * (config.cluster - 1) / config.cluster
    return Traffic(hbm, shared, peers, 8.0 * (left.num_weights + right.num_weights))


def check_arguments(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    axis: Literal[0, -1],
) -> None:
    """Raises NotImplementedError unless the kernel takes the patterns and the dtype."""
    x, _ = arguments.check_dtypes("backward", dtype, None)
    if x.itemsize != ITEMSIZE:
        raise NotImplementedError(
            f"backward: the dtype of x must be bfloat16 or float16, got {x.name}"
        )
    check_patterns(shapes)
    (a, b, _, d), (a_in, _, c_in, d_in) = shapes[0], shapes[-1]
    for what, features in (("x", a_in * c_in * d_in), ("dy", a * b * d)):
        shape = (batch, features) if axis == -1 else (features, batch)
        arguments.check_runs("backward", what, shape, x.itemsize, axis)


def default_config(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    precision: jax.lax.PrecisionLike = None,
) -> Config:
    """The configuration that should be fastest, as predicted.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      dtype: of x, dy and the factors.
      batch: vectors in x.
      axis: the feature axis of x.
      precision: as in `backward`.

    Raises:
      NotImplementedError: if no configuration fits the chain; the message says why the
        smallest one does not.
    """
    del precision  # Products of 16-bit numbers are exact.
    check_arguments(shapes, dtype, batch, axis)
    found: list[tuple[float, int, Config]] = []
    reason: NotImplementedError | None = None
    for cluster, rows, warpgroups in itertools.product(_CLUSTERS, _ROWS, _WARPGROUPS):
        for x_stages, dy_stages, out_stages in itertools.product(
            _STAGES, _STAGES, _OUT_STAGES
        ):
            config = Config(
                *(cluster, rows, warpgroups, x_stages, dy_stages, out_stages),
                ctas=cluster * H200.clusters(cluster),
            )
            try:
                made = plan(shapes, config, axis)
            except NotImplementedError as error:
                reason = reason or error
                break  # More stages fit no better.
            together = _together(made, H200)
            config = dataclasses.replace(config, ctas=together * config.ctas)
            seconds = _seconds(
                dataclasses.replace(made, config=config), max(batch, 1), together, H200
            )
            found.append((seconds, made.registers, config))
    if not found:
        raise NotImplementedError(
            f"backward: no configuration takes {[tuple(s) for s in shapes]}: {reason}"
        )
    fastest = min(seconds for seconds, *_ in found)
    alike = [one for one in found if one[0] < _ALIKE * fastest]
    return min(alike, key=lambda one: (one[1], one[0]))[2]


def predicted_seconds(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    config: Config | None = None,
) -> float:
    """How long a launch, and adding up its sums, should take on an H200.

    Args:
      shapes, dtype, batch, axis: as `default_config` has them.
      config: None for `default_config`.

    Raises:
      NotImplementedError: as `default_config` does.
    """
    config = config or default_config(shapes, dtype, batch, axis=axis)
    made = plan(shapes, config, axis)
    return _seconds(made, batch, _together(made, H200), H200)


def _together(made: Plan, chip: Chip) -> int:
    """How many CTAs a multiprocessor holds: 1 or 2."""
    registers = made.registers * _THREADS * made.config.warpgroups
    return 2 if chip.has_room_for_two(made.smem_bytes, registers) else 1


def _seconds(made: Plan, batch: int, together: int, chip: Chip) -> float:
    """The slowest of memory, shared memory and the latency of a tile, for all tiles."""
    config, traffic = made.config, count(made)
    tiles_in_all = math.ceil(batch / config.rows)
    launched = min(config.ctas // config.cluster, tiles_in_all)
    at_once = min(together * chip.clusters(config.cluster), launched)
    busy = at_once * config.cluster / (together * chip.multiprocessors)
    per_tile = max(
        at_once * config.rows * traffic.hbm / chip.hbm,
        at_once * config.rows * traffic.hbm / chip.l2,
        at_once * config.rows * traffic.shared / (chip.shared * busy),
        at_once * config.rows * traffic.peers / (chip.peers * busy),
        _latency(made, chip),
    )
    turns = math.ceil(tiles_in_all / at_once)
    return turns * per_tile + launched * traffic.once / chip.hbm


def _latency(made: Plan, chip: Chip) -> float:
    """What a tile takes with the chip to itself: one thing after another."""
    config = made.config
    units = sum(product.number for product in made.products) / config.warpgroups
    meetings = 2 * chip.meet_seconds
    pieces = 0.0
    if config.cluster > 1:
        meetings += 2 * chip.cluster_meet_seconds
        bytes_pulled = ITEMSIZE * config.rows * made.inner // config.cluster
        pieces = 2 * bytes_pulled * made.outer
        pieces += bytes_pulled * made.left.b if made.batch_first else 0
        pieces /= 16 * _THREADS * config.warpgroups
    turned = 0.0
    if made.batch_first:
        turned = (made.x_slab[1] + made.dy_slab[1]) / config.warpgroups
    # Features first, a slab is in use until the end.
    waits = not made.batch_first and config.x_stages == 1
    products = (units + turned / 2) * chip.unit_seconds
    return products + pieces * _PULL + meetings + waits * chip.copy_seconds
