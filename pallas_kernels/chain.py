"""`chain`: a whole chain of factors in one launch, intermediates in shared memory.

    x in HBM ──TMA──▶ slab ──ldmatrix──▶ registers ─┐
                                                    ├─ mma.sync, f32 sums
    weights (L2) ──TMA──▶ slab ──ldmatrix──▶ regs ──┘        │ rounded
                                                             ▼
      next factor ◀──ldmatrix.trans── buffer ◀──stmatrix.trans
           │              (features first, batch innermost)
           └─▶ slab ──TMA──▶ y in HBM

One CTA takes `rows` vectors of the batch at a time and keeps taking more until there
are none. A factor of shape (a, b, c, d) is a·d products of a (rows × c) by a (c × b)
tile; they are dealt out to the CTA's warpgroups. Each warpgroup fetches what its own
products need, x and weights alike, by TMA `stages` units ahead, across the ends of
factors and tiles, so that warpgroups wait for one another only between two factors.

In the buffer a block of any factor, contiguous or not, is a slice with the batch
contiguous, which is what ldmatrix and stmatrix want; so nothing is ever permuted in
HBM. Features-first arrays are read and written that way at once. Of a batch-first
array that holds only where d = 1, so a first factor with d > 1 is preceded, and a
last one followed, by a pass that transposes in shared memory: one such pass for a
Monarch chain (1, b, c, d)(a, b', c', 1).

Bytes moved per vector, with n₀ = n_in, …, n_L = n_out and s = itemsize:

    HBM     s·(n_in + n_out), read once and written once: the floor
    L2      the same, and s·(all weights) / rows
    SMEM    each factor: s·n read per warp that shares the rows, s·n written; each
            transposing pass: s·n read and written; TMA: s·(n_in + n_out)

Shared memory: one buffer of about s·rows·n for each intermediate (factors with b = c
may work in place), and slabs of `stages` blocks for each warpgroup, s·(rows·c + b·c).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import compat, tiles

DTYPES = ("bfloat16", "float16")
_MAX_BARRIERS = 32  # In one allocation.
_SMEM_OF_TWO = 233_472  # Of a multiprocessor, 1024 bytes per CTA for the system.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Attributes:
      rows: vectors of the batch in a tile, a multiple of 16·m_warps.
      warpgroups: warpgroups of 128 threads in a CTA.
      m_warps: warps of a warpgroup along the batch, the rest along output features.
      stages: units whose x and weights are in flight or in use, per warpgroup.
      out_stages: slabs of y that may be on their way to HBM, per warpgroup.
      ctas: CTAs to launch at most; each takes tiles until there are none left.
    """

    rows: int = 32
    warpgroups: int = 4
    m_warps: Literal[1, 2, 4] = 2
    stages: int = 2
    out_stages: int = 2
    ctas: int = 264

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"Config: {field.name} must be positive, got {value}")
        if self.m_warps not in (1, 2, 4):
            raise ValueError(f"Config: m_warps must be 1, 2 or 4, got {self.m_warps}")
        if self.rows % self.mma.m or self.rows > tiles.MAX_BLOCK:
            raise ValueError(
                f"Config: rows must be a multiple of 16·m_warps = {self.mma.m} and at "
                f"most {tiles.MAX_BLOCK}, got {self.rows}"
            )
        if self.warpgroups > 8:
            raise ValueError(
                f"Config: warpgroups must be at most 8, got {self.warpgroups}"
            )
        if self.warpgroups * self.stages > _MAX_BARRIERS:
            raise ValueError(
                f"Config: warpgroups · stages must be at most {_MAX_BARRIERS}, got "
                f"{self.warpgroups} · {self.stages}"
            )

    @property
    def mma(self) -> tiles.Mma:
        """The tile of one mma."""
        return tiles.Mma(self.m_warps)


_TILES: tuple[tuple[int, Literal[1, 2, 4]], ...] = ((64, 2), (64, 4), (32, 2), (16, 1))
_CREWS = ((4, 4), (4, 2), (2, 2), (2, 1))  # Warpgroups and stages.
_MAX_SUMS = 64  # Registers per thread for a block's sums.


def default_config(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
) -> Config:
    """A configuration that fits the chip, by rule and not by measurement.

    Every tile fetches all weights anew, so the largest tile comes first; but one of 32
    rows that leaves room for a second CTA, which computes while the first waits for
    memory, comes before one of 64 that does not.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      dtype: of x and the factors.
      batch: vectors in x.
      axis: the feature axis of x.

    Raises:
      NotImplementedError: if no configuration fits the chain; the message says why
        the smallest one does not.
    """
    _check_dtype(dtype)
    fitting: list[Config] = []
    reason = None
    # A tile much larger than the batch only if no other fits.
    by_rows = sorted(_TILES, key=lambda tile: tile[0] > 16 and tile[0] >= 2 * batch)
    for (rows, m_warps), (warpgroups, stages) in itertools.product(by_rows, _CREWS):
        config = Config(
            rows=rows, warpgroups=warpgroups, m_warps=m_warps, stages=stages
        )
        try:
            plan = _plan(shapes, config, axis)
        except NotImplementedError as error:
            reason = error
            continue
        widest = max(factor.b for factor in plan.factors)
        if rows * widest > _MAX_SUMS * 128 and rows > 16:
            continue
        fetches_ahead = stages > 1
        if (
            fetches_ahead
            and rows > 16
            and 2 * (_smem_bytes(plan, config) + 1024) <= _SMEM_OF_TWO
        ):
            return config
        fitting.append(dataclasses.replace(config, ctas=132))
    if not fitting:
        assert reason is not None
        raise reason
    return max(fitting, key=lambda config: config.stages > 1)  # The first of these.


def chain(
    x: jax.Array,
    factors: Sequence[jax.Array],
    *,
    axis: Literal[0, -1] = -1,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Applies a chain of factors, y = K₁K₂…K_L x, in one launch.

    Products accumulate in float32 and are rounded to the dtype of x after each
    factor. A block may be embedded in a larger one with zeros for weights, so a NaN
    or an infinity in x may reach more outputs of its own vector than it would
    otherwise; it never reaches another vector.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16 or float16.
      factors: arrays (a, b, c, d) of the dtype of x, in the order of the matrix
        product: the last one touches x first.
      axis: the feature axis of x and of the result.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`; products of 16-bit numbers are exact in
        float32, so all choices are the same.

    Returns:
      (batch, n_out) or (n_out, batch), of the dtype of x.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    del precision
    shapes = tuple(tuple(map(int, factor.shape)) for factor in factors)
    batch = _check(x, factors, shapes, axis)
    _check_dtype(x.dtype)
    n_out = math.prod(shapes[0]) // shapes[0][2]
    if batch == 0:
        return jnp.zeros((0, n_out) if axis == -1 else (n_out, 0), x.dtype)
    stride = x.shape[1]
    if stride % 8 or (axis == -1 and n_out % 8):
        raise NotImplementedError(
            "chain: TMA needs rows of whole 16 bytes, so the last axis of x and of the "
            f"result must be a multiple of 8 for {x.dtype.name}; got x of shape "
            f"{x.shape} and {n_out} output features"
        )
    if config is None:
        config = default_config(shapes, x.dtype, batch, axis=axis)
    plan = _plan(shapes, config, axis)
    blocks = [
        _blocks(factor, embedded)
        for factor, embedded in zip(factors, plan.factors, strict=True)
    ]
    return _launch(compat.gpu_only(x), blocks, plan, config, axis, batch)


def _check(
    x: jax.Array,
    factors: Sequence[jax.Array],
    shapes: Sequence[tuple[int, ...]],
    axis: int,
) -> int:
    """The batch; raises ValueError where sizes do not fit."""
    if axis not in (0, -1):
        raise ValueError(f"chain: axis must be 0 or -1, got {axis}")
    if not factors or any(len(shape) != 4 for shape in shapes):
        raise ValueError(
            f"chain: factors must be arrays of shapes (a, b, c, d), got {list(shapes)}"
        )
    if x.ndim != 2:
        raise ValueError(f"chain: x must have two axes, got shape {x.shape}")
    features = x.shape[axis]
    for index in reversed(range(len(shapes))):
        a, b, c, d = shapes[index]
        if features != a * c * d:
            raise ValueError(
                f"chain: factors[{index}] of shape {shapes[index]} takes a·c·d = "
                f"{a * c * d} features, but is given {features}"
            )
        features = a * b * d
        if factors[index].dtype != x.dtype:
            raise NotImplementedError(
                f"chain: factors[{index}] has dtype {factors[index].dtype.name}, but x "
                f"has {x.dtype.name}: the kernel multiplies numbers of one type"
            )
    return int(x.shape[1 + axis])


def _check_dtype(dtype: jax.typing.DTypeLike) -> None:
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise NotImplementedError(
            f"chain: the dtype must be one of {', '.join(DTYPES)}; got {name}"
        )


def _smem_bytes(plan: tiles.Plan, config: Config) -> int:
    return plan.smem_bytes(
        config.rows,
        warpgroups=config.warpgroups,
        stages=config.stages,
        out_stages=config.out_stages,
    )


def _plan(
    shapes: Sequence[Sequence[int]], config: Config, axis: Literal[0, -1]
) -> tiles.Plan:
    plan = tiles.plan(shapes, rows=config.rows, mma=config.mma, batch_first=axis == -1)
    if (needed := _smem_bytes(plan, config)) > tiles.SMEM_BYTES:
        raise NotImplementedError(
            f"chain: the patterns {[tuple(shape) for shape in shapes]} need {needed:,} "
            f"bytes of shared memory with {config}, more than {tiles.SMEM_BYTES:,}"
        )
    return plan


def _blocks(factor: jax.Array, embedded: tiles.Factor) -> jax.Array:
    """The blocks of a factor as (a·d, b, c), embedded in larger ones."""
    a, b, c, d = factor.shape
    u, v = embedded.merged_a, embedded.merged_d
    w = factor.reshape(a // u, u, b, c, v, d // v)
    w = w.transpose(0, 5, 1, 2, 4, 3)  # (a/u, d/v, u, b, v, c)
    if u * v > 1:
        same_u = jnp.eye(u, dtype=bool)[:, None, None, :, None, None]
        same_v = jnp.eye(v, dtype=bool)[None, None, :, None, None, :]
        # (…, u, b, v, u', c, v'): a selection, so that no NaN spreads.
        w = jnp.where(same_u & same_v, w[:, :, :, :, :, None, :, None], 0)
    return w.reshape(embedded.num_blocks, embedded.b, embedded.c)


def _launch(
    x: jax.Array,
    blocks: Sequence[jax.Array],
    plan: tiles.Plan,
    config: Config,
    axis: Literal[0, -1],
    batch: int,
) -> jax.Array:
    """Calls the kernel on weights of shape (a·d, b, c)."""
    dtype, rows = x.dtype, config.rows
    last, first = plan.factors[0], plan.factors[-1]
    n_out = last.a * last.b * last.d
    y_shape: tuple[int, ...] = (batch, n_out)
    if axis == 0:
        x = x.reshape(first.a, first.c, first.d, batch)
        y_shape = (last.a, last.b, last.d, batch)
    num_tiles = pl.cdiv(batch, rows)
    ctas = min(config.ctas, num_tiles)
    lanes = config.warpgroups * config.stages

    def slab(count: int, features: int) -> Any:
        shape = (rows, features) if axis == -1 else (features, rows)
        return plgpu.SMEM((config.warpgroups * count, *shape), dtype)

    def scratch(step: tiles.Step) -> dict[str, Any]:
        refs = {}
        if step.slab_in:
            refs["slab_in"] = slab(config.stages, step.slab_in)
        if step.slab_out:
            refs["slab_out"] = slab(config.out_stages, step.slab_out)
        if step.factor is not None:
            block = plan.factors[step.factor]
            refs["weights"] = plgpu.SMEM((lanes, block.b, block.c), dtype)
        if refs.keys() & {"slab_in", "weights"}:
            copies = len(refs.keys() & {"slab_in", "weights"})
            refs["loaded"] = plgpu.Barrier(num_arrivals=copies, num_barriers=lanes)
        return refs

    def body(x_ref: Any, *refs: Any) -> None:
        *block_refs, y_ref, buffers, steps, phase = refs
        _Kernel(
            plan,
            config,
            axis,
            num_tiles,
            ctas,
            x_ref,
            block_refs,
            y_ref,
            buffers,
            steps,
            phase,
        ).run()

    y = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(y_shape, dtype),
        scratch_types=[
            [plgpu.SMEM(buffer.shape, dtype) for buffer in plan.buffers],
            [scratch(step) for step in plan.steps],
            plgpu.Barrier(num_arrivals=config.warpgroups),
        ],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(ctas,),
        grid_names=("cta",),
        num_threads=config.warpgroups,
        thread_name="wg",
    )(x, *blocks)
    return y if axis == -1 else y.reshape(n_out, batch)


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: tiles.Plan
    config: Config
    axis: int
    num_tiles: int
    ctas: int
    x: Any
    blocks: Sequence[Any]
    y: Any
    buffers: Sequence[Any]
    scratch: Sequence[dict[str, Any]]
    phase: Any

    def run(self) -> None:
        """Takes tiles until there are none left."""
        config, steps = self.config, self.plan.steps
        for index, step in enumerate(steps):
            for unit in range(config.stages):
                self.fetch(index, step, jnp.int32(unit))

        def take_tile(turn: jax.Array, carry: None) -> None:
            for index, step in enumerate(steps):
                self.apply(index, step, turn)
                if index < len(steps) - 1 or self.plan.ends_where_it_began:
                    self.meet()
            return carry

        mine = jax.lax.div(
            self.num_tiles - jax.lax.axis_index("cta") + self.ctas - 1, self.ctas
        )
        jax.lax.fori_loop(0, mine, take_tile, None)
        plgpu.wait_smem_to_gmem(0)

    def meet(self) -> None:
        """Waits for the CTA's other warpgroups."""
        plgpu.barrier_arrive(self.phase)
        plgpu.barrier_wait(self.phase)

    def turns(self, step: tiles.Step) -> int:
        """Units of a tile for each warpgroup, the last perhaps idle."""
        return pl.cdiv(step.units, self.config.warpgroups)

    def unit_of(self, step: tiles.Step, turn: jax.Array) -> jax.Array:
        return turn * self.config.warpgroups + jax.lax.axis_index("wg")

    def when_busy(
        self, step: tiles.Step, unit: jax.Array, action: Callable[[], None]
    ) -> None:
        """Runs `action` unless this warpgroup has no such unit."""
        if step.units % self.config.warpgroups:
            pl.when(unit < step.units)(action)
        else:
            action()

    def stage(self, turn: jax.Array, stages: int) -> jax.Array:
        """Where in a warpgroup's ring of `stages` slabs a unit's slab lies."""
        wg = jax.lax.axis_index("wg")
        return wg * stages + jax.lax.rem(turn, stages)

    def rows_of(self, tile: jax.Array) -> Any:
        rows = self.config.rows
        return pl.ds(pl.multiple_of(tile * rows, rows), rows)

    def tile_of(self, turn: jax.Array) -> jax.Array:
        return jax.lax.axis_index("cta") + turn * self.ctas

    def fetch(self, index: int, step: tiles.Step, serial: jax.Array) -> None:
        """Starts the copies that unit number `serial`, counted over tiles, needs."""
        refs = self.scratch[index]
        if "loaded" not in refs:
            return
        per_tile = self.turns(step)
        tile = self.tile_of(jax.lax.div(serial, per_tile))
        unit = self.unit_of(step, jax.lax.rem(serial, per_tile))
        at = self.stage(serial, self.config.stages)

        def copy() -> None:
            loaded = refs["loaded"].at[at]
            if step.slab_in:
                source = self.hbm(self.x, step, unit, self.rows_of(tile), step.slab_in)
                plgpu.copy_gmem_to_smem(source, refs["slab_in"].at[at], loaded)
            if step.factor is not None:
                source = self.blocks[step.factor].at[unit]
                plgpu.copy_gmem_to_smem(source, refs["weights"].at[at], loaded)

        pl.when(tile < self.num_tiles)(lambda: self.when_busy(step, unit, copy))

    def hbm(
        self, ref: Any, step: tiles.Step, unit: jax.Array, rows: Any, features: int
    ) -> Any:
        """What a unit reads of x or writes of y: (rows, features) or the transpose."""
        if self.axis == -1:
            start = pl.multiple_of(unit * features, features)
            return ref.at[rows, pl.ds(start, features)]
        assert step.factor is not None
        d = self.plan.factors[step.factor].d
        return ref.at[jax.lax.div(unit, d), :, jax.lax.rem(unit, d), rows]

    def apply(self, index: int, step: tiles.Step, turn: jax.Array) -> None:
        """Runs one step on the tile of a turn."""
        per_tile = self.turns(step)
        rows = self.rows_of(self.tile_of(turn))

        def take_unit(local: jax.Array, carry: None) -> None:
            serial = turn * per_tile + local
            unit = self.unit_of(step, local)
            self.when_busy(
                step, unit, lambda: self.apply_unit(index, step, unit, serial, rows)
            )
            self.fetch(index, step, serial + self.config.stages)
            return carry

        jax.lax.fori_loop(0, per_tile, take_unit, None)

    def apply_unit(
        self,
        index: int,
        step: tiles.Step,
        unit: jax.Array,
        serial: jax.Array,
        rows: Any,
    ) -> None:
        """Multiplies one block, or transposes one run."""
        refs = self.scratch[index]
        at = self.stage(serial, self.config.stages)
        if "loaded" in refs:
            plgpu.barrier_wait(refs["loaded"].at[at])
        out = None
        if step.slab_out:
            # The slab's last journey has to be over before it is written again.
            plgpu.wait_smem_to_gmem(self.config.out_stages - 1, wait_read_only=True)
            out = refs["slab_out"].at[self.stage(serial, self.config.out_stages)]
        if step.factor is None:
            self.transpose(
                step, unit, refs["slab_in"].at[at] if out is None else None, out
            )
        else:
            self.multiply(step, unit, refs, at, out)
        # TMA may read what was just written, and overwrite what was just read.
        plgpu.commit_smem()
        if out is not None:
            target = self.hbm(self.y, step, unit, rows, step.slab_out)
            plgpu.copy_smem_to_gmem(out, target)

    def transpose(
        self, step: tiles.Step, unit: jax.Array, source: Any, out: Any
    ) -> None:
        """Moves a run of features between a batch-first slab and a buffer."""
        acc = self.layout("ACC")
        if out is None:
            assert step.target is not None
            run = self.run_of(step.target, unit)
            run[...] = plgpu.load(source, layout=acc, optimized=False)
        else:
            assert step.source is not None
            run = self.run_of(step.source, unit)
            out[...] = plgpu.load(run, layout=acc, optimized=False)

    def multiply(
        self, step: tiles.Step, unit: jax.Array, refs: dict[str, Any], at: Any, out: Any
    ) -> None:
        """One block of a factor: (rows × c) by (c × b)."""
        assert step.factor is not None
        factor = self.plan.factors[step.factor]
        i, k = jax.lax.div(unit, factor.d), jax.lax.rem(unit, factor.d)
        if step.source is None:
            slab = refs["slab_in"].at[at]
            sources = [slab if self.axis == -1 else slab.T]
        else:
            sources = self.block(step.source, factor, factor.c, i, k)
        if out is not None:
            targets = [out if self.axis == -1 else out.T]
        else:
            assert step.target is not None
            targets = self.block(step.target, factor, factor.b, i, k)
        load = functools.partial(plgpu.load, optimized=False)
        parts = [load(source, layout=self.layout("LHS")) for source in sources]
        length, depth = factor.b // len(targets), factor.c // len(sources)
        for n, target in enumerate(targets):
            sums = plgpu.layout_cast(
                jnp.zeros((self.config.rows, length), jnp.float32), self.layout("ACC")
            )
            for m, part in enumerate(parts):
                weights = refs["weights"].at[
                    at, pl.ds(n * length, length), pl.ds(m * depth, depth)
                ]
                sums = plgpu.mma(sums, part, load(weights.T, layout=self.layout("RHS")))
            target[...] = sums.astype(self.x.dtype)

    def layout(self, operand: Literal["LHS", "RHS", "ACC"]) -> Any:
        """How an operand of an mma is spread over a warpgroup's registers."""
        layout = getattr(plgpu.Layout, f"MMA_{operand}")
        return layout(self.x.dtype, m_warps=self.config.m_warps)

    def block(
        self, buffer: int, factor: tiles.Factor, length: int, i: jax.Array, k: jax.Array
    ) -> list[Any]:
        """Block (i, k) of a factor in a buffer, as pieces of shape (rows, features)."""
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        rows = pl.ds(0, self.config.rows)
        if layout.has_columns(factor):
            q, r = jax.lax.div(k, layout.inner), jax.lax.rem(k, layout.inner)
            return [ref.at[pl.ds(i * length, length), q, r, rows].T]
        # The neighbour's blocks cut this one's features into pieces.
        pieces = length // layout.middle
        return [
            ref.at[i * pieces + piece, pl.ds(0, layout.middle), k, rows].T
            for piece in range(pieces)
        ]

    def run_of(self, buffer: int, unit: jax.Array) -> Any:
        """Run number `unit` of contiguous features of a buffer as (rows, run)."""
        layout = self.plan.buffers[buffer]
        rows = pl.ds(0, self.config.rows)
        ref = self.buffers[buffer]
        if layout.inner == 1:
            return ref.at[unit, pl.ds(0, layout.middle), 0, rows].T
        p, q = jax.lax.div(unit, layout.middle), jax.lax.rem(unit, layout.middle)
        return ref.at[p, q, pl.ds(0, layout.inner), rows].T
