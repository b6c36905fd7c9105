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
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import chain_plan, compat, pieces, tiles
from pallas_kernels.chain_plan import Plan, Step, Types
from pallas_kernels.epilogue import Activation, activate

DTYPES = ("bfloat16", "float16", "float32")
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
      shares: shares of the last factor's rows, applied and stored one after another
        where y is stored from a buffer.
      ctas: CTAs to launch at most; each takes tiles until there are none left.
    """

    rows: int = 32
    warpgroups: int = 4
    m_warps: Literal[1, 2, 4] = 2
    stages: int = 2
    out_stages: int = 2
    shares: int = 1
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
_SHARES = (1, 2, 4)
_MAX_SUMS = 64  # Registers per thread for a block's sums.


def default_config(
    shapes: Sequence[Sequence[int]],
    dtype: jax.typing.DTypeLike,
    batch: int,
    *,
    axis: Literal[0, -1] = -1,
    out_dtype: jax.typing.DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
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
      out_dtype: of the result; None for that of x.
      precision: as in `chain`.

    Raises:
      NotImplementedError: if no configuration fits the chain; the message says why
        the smallest one does not.
    """
    types = _types(dtype, out_dtype, precision)
    _check_strides(shapes, types, batch, axis)
    fitting: list[Config] = []
    reason = None
    # A tile much larger than the batch only if no other fits.
    by_rows = sorted(_TILES, key=lambda tile: tile[0] > 16 and tile[0] >= 2 * batch)
    for (rows, m_warps), shares in itertools.product(by_rows, _SHARES):
        tile = Config(rows=rows, m_warps=m_warps, shares=shares)
        try:
            plan = _plan(shapes, types, tile, axis)
        except NotImplementedError as error:
            reason = reason if shares > 1 else error
            continue
        widest = max(step.num_rows for step in plan.steps)
        if rows * widest > _MAX_SUMS * 128 and rows > 16:
            continue
        for warpgroups, stages in _CREWS:
            config = dataclasses.replace(tile, warpgroups=warpgroups, stages=stages)
            try:
                needed = _check_smem(plan, config)
            except NotImplementedError as error:
                reason = reason if shares > 1 else error
                continue
            if stages > 1 and rows > 16 and 2 * (needed + 1024) <= _SMEM_OF_TWO:
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
    bias: jax.Array | None = None,
    activation: Activation | None = None,
    out_dtype: jax.typing.DTypeLike | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Applies a chain of factors, y = activation(K₁K₂…K_L x + bias), in one launch.

    Products accumulate in float32 and are rounded to the dtype of x after each factor;
    after the last one the bias is added and the activation applied before that.
    float32 is multiplied as sums of bfloat16 pieces (`pallas_kernels.pieces`), so an
    infinity becomes NaN. A block may be embedded in a larger one with zeros for
    weights, so a NaN or an infinity in x may reach more outputs of its own vector than
    it would otherwise; it never reaches another vector.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16, float16 or
        float32.
      factors: arrays (a, b, c, d) of the dtype of x, in the order of the matrix
        product: the last one touches x first.
      axis: the feature axis of x and of the result.
      bias: (n_out,) or None; taken as float32.
      activation: see `pallas_kernels.epilogue.activate`.
      out_dtype: of the result, one of those of x; None for that of x.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`. Products of 16-bit numbers are exact in
        float32. For float32 the default is three products of pieces, which keep 2⁻¹⁶,
        more than TF32; "highest" is six, as exact as float32.

    Returns:
      (batch, n_out) or (n_out, batch), of `out_dtype`.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, or the sizes; and
        later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    shapes = tuple(tuple(map(int, factor.shape)) for factor in factors)
    batch = _check(x, factors, shapes, axis)
    types = _types(x.dtype, out_dtype, precision)
    n_out = math.prod(shapes[0]) // shapes[0][2]
    if bias is not None and bias.shape != (n_out,):
        raise ValueError(
            f"chain: bias must have the shape ({n_out},), got {bias.shape}"
        )
    if batch == 0:
        return jnp.zeros((0, n_out) if axis == -1 else (n_out, 0), types.y)
    _check_strides(shapes, types, batch, axis)
    if config is None:
        config = default_config(
            shapes, x.dtype, batch, axis=axis, out_dtype=out_dtype, precision=precision
        )
    plan = _plan(shapes, types, config, axis)
    _check_smem(plan, config)
    blocks = [
        _blocks(factor, embedded, types.pieces)
        for factor, embedded in zip(factors, plan.factors, strict=True)
    ]
    return _launch(
        compat.gpu_only(x),
        blocks,
        None if bias is None else _bias_blocks(bias, plan.factors[0]),
        activation,
        plan,
        config,
        axis,
        batch,
    )


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


def _types(
    dtype: jax.typing.DTypeLike,
    out_dtype: jax.typing.DTypeLike | None,
    precision: jax.lax.PrecisionLike,
) -> Types:
    x = jnp.dtype(dtype).name
    y = x if out_dtype is None else jnp.dtype(out_dtype).name
    for what, name in (("the dtype", x), ("out_dtype", y)):
        if name not in DTYPES:
            raise NotImplementedError(
                f"chain: {what} must be one of {', '.join(DTYPES)}; got {name}"
            )
    return Types(x, y, pieces.count(x, precision))


def _check_strides(
    shapes: Sequence[Sequence[int]], types: Types, batch: int, axis: Literal[0, -1]
) -> None:
    """TMA takes rows of whole 16 bytes."""
    (a, b, _, d), (a_in, _, c_in, d_in) = shapes[0], shapes[-1]
    for what, features, num_bytes in (
        ("x", a_in * c_in * d_in, types.x_bytes),
        ("the result", a * b * d, types.y_bytes),
    ):
        length = features if axis == -1 else batch
        if length * num_bytes % 16:
            raise NotImplementedError(
                f"chain: TMA takes rows of whole 16 bytes, but the last axis of {what} "
                f"is {length} numbers of {num_bytes} bytes long"
            )


def _plan(
    shapes: Sequence[Sequence[int]],
    types: Types,
    config: Config,
    axis: Literal[0, -1],
) -> Plan:
    return chain_plan.plan(
        shapes,
        types,
        rows=config.rows,
        mma=config.mma,
        batch_first=axis == -1,
        shares=config.shares,
    )


def _check_smem(plan: Plan, config: Config) -> int:
    """Bytes of shared memory of one CTA."""
    needed = plan.smem_bytes(
        config.rows,
        warpgroups=config.warpgroups,
        stages=config.stages,
        out_stages=config.out_stages,
    )
    if needed > tiles.SMEM_BYTES:
        factors = [(f.a, f.b, f.c, f.d) for f in plan.factors]
        raise NotImplementedError(
            f"chain: {factors} need {needed:,} bytes of shared memory with {config}, "
            f"more than {tiles.SMEM_BYTES:,}"
        )
    return needed


def _blocks(factor: jax.Array, embedded: tiles.Factor, num_pieces: int) -> jax.Array:
    """Pieces of a factor's blocks, (a·d, pieces, b, c), embedded in larger ones."""
    a, b, c, d = factor.shape
    u, v = embedded.merged_a, embedded.merged_d
    w = factor.reshape(a // u, u, b, c, v, d // v)
    w = w.transpose(0, 5, 1, 2, 4, 3)  # (a/u, d/v, u, b, v, c)
    if u * v > 1:
        same_u = jnp.eye(u, dtype=bool)[:, None, None, :, None, None]
        same_v = jnp.eye(v, dtype=bool)[None, None, :, None, None, :]
        # (…, u, b, v, u', c, v'): a selection, so that no NaN spreads.
        w = jnp.where(same_u & same_v, w[:, :, :, :, :, None, :, None], 0)
    w = w.reshape(embedded.num_blocks, 1, embedded.b, embedded.c)
    if num_pieces == 1:
        return w
    return jnp.concatenate(pieces.split(w, num_pieces), axis=1)


def _bias_blocks(bias: jax.Array, last: tiles.Factor) -> jax.Array:
    """The bias of each block's rows, (a·d, b)."""
    blocks = bias.astype(jnp.float32).reshape(last.a, last.b, last.d)
    return blocks.swapaxes(1, 2).reshape(last.num_blocks, last.b)


def _launch(
    x: jax.Array,
    blocks: Sequence[jax.Array],
    bias: jax.Array | None,
    activation: Activation | None,
    plan: Plan,
    config: Config,
    axis: Literal[0, -1],
    batch: int,
) -> jax.Array:
    """Calls the kernel on weights (a·d, pieces, b, c) and a bias (a·d, b)."""
    types, rows = plan.types, config.rows
    last, first = plan.factors[0], plan.factors[-1]
    n_out = last.a * last.b * last.d
    y_shape: tuple[int, ...] = (batch, n_out)
    if axis == 0:
        x = x.reshape(first.a, first.c, first.d, batch)
        y_shape = (last.a, last.b, last.d, batch)
    num_tiles = pl.cdiv(batch, rows)
    ctas = min(config.ctas, num_tiles)
    lanes = config.warpgroups * config.stages

    def slab(count: int, features: int, dtype: str) -> Any:
        shape = (rows, features) if axis == -1 else (features, rows)
        return plgpu.SMEM((config.warpgroups * count, *shape), dtype)

    def scratch(step: Step) -> dict[str, Any]:
        refs = {}
        if step.slab_in:
            refs["slab_in"] = slab(config.stages, step.slab_in, types.x)
        if step.slab_out:
            refs["slab_out"] = slab(config.out_stages, step.slab_out, types.y)
        if step.kind == "multiply":
            shape = (types.pieces, step.num_rows, plan.factors[step.factor].c)
            refs["weights"] = plgpu.SMEM((lanes, *shape), types.operand)
        if refs.keys() & {"slab_in", "weights"}:
            copies = len(refs.keys() & {"slab_in", "weights"})
            refs["loaded"] = plgpu.Barrier(num_arrivals=copies, num_barriers=lanes)
        return refs

    def body(x_ref: Any, *refs: Any) -> None:
        *inputs, y_ref, buffers, steps, phase = refs
        _Kernel(
            plan,
            config,
            activation,
            axis,
            num_tiles,
            ctas,
            x_ref,
            inputs[: len(blocks)],
            inputs[len(blocks)] if bias is not None else None,
            y_ref,
            buffers,
            steps,
            phase,
        ).run()

    y = plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct(y_shape, types.y),
        scratch_types=[
            [plgpu.SMEM(buffer.shape, buffer.dtype) for buffer in plan.buffers],
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
    )(x, *blocks, *([] if bias is None else [bias]))
    return y if axis == -1 else y.reshape(n_out, batch)


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: Plan
    config: Config
    activation: Activation | None
    axis: int
    num_tiles: int
    ctas: int
    x: Any
    blocks: Sequence[Any]
    bias: Any
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

    def turns(self, step: Step) -> int:
        """Units of a tile for each warpgroup, the last perhaps idle."""
        return pl.cdiv(step.units, self.config.warpgroups)

    def unit_of(self, step: Step, turn: jax.Array) -> jax.Array:
        return turn * self.config.warpgroups + jax.lax.axis_index("wg")

    def when_busy(
        self, step: Step, unit: jax.Array, action: Callable[[], None]
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

    def fetch(self, index: int, step: Step, serial: jax.Array) -> None:
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
                source = self.part_of_x(step, unit, self.rows_of(tile))
                plgpu.copy_gmem_to_smem(source, refs["slab_in"].at[at], loaded)
            if step.kind == "multiply":
                rows = pl.ds(step.first_row, step.num_rows)
                source = self.blocks[step.factor].at[unit, :, rows]
                plgpu.copy_gmem_to_smem(source, refs["weights"].at[at], loaded)

        pl.when(tile < self.num_tiles)(lambda: self.when_busy(step, unit, copy))

    def part_of_x(self, step: Step, unit: jax.Array, rows: Any) -> Any:
        """What a unit reads of x: (rows, features) or the transpose."""
        if self.axis == -1:
            start = pl.multiple_of(unit * step.slab_in, step.slab_in)
            return self.x.at[rows, pl.ds(start, step.slab_in)]
        i, k = self.block_of(step, unit)
        return self.x.at[i, :, k, rows]

    def part_of_y(self, step: Step, unit: jax.Array, rows: Any) -> Any:
        """What a unit writes of y: (rows, features) or the transpose."""
        size = step.slab_out
        if self.axis == 0:
            i, k = self.block_of(step, unit)
            return self.y.at[i, pl.ds(step.first_row, size), k, rows]
        b = self.plan.factors[step.factor].b
        if step.num_rows < b:  # A run of d features is one row of the blocks.
            unit += jax.lax.div(unit, step.num_rows) * (b - step.num_rows)
            unit += step.first_row
        return self.y.at[rows, pl.ds(pl.multiple_of(unit * size, size), size)]

    def block_of(self, step: Step, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Which block (i, k) of the step's factor a unit is."""
        d = self.plan.factors[step.factor].d
        return jax.lax.div(unit, d), jax.lax.rem(unit, d)

    def apply(self, index: int, step: Step, turn: jax.Array) -> None:
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
        step: Step,
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
        match step.kind:
            case "load":
                self.load(step, unit, refs["slab_in"].at[at])
            case "multiply":
                self.multiply(step, unit, refs, at, out)
            case "store":
                self.store(step, unit, out)
        # TMA may read what was just written, and overwrite what was just read.
        plgpu.commit_smem()
        if out is not None:
            plgpu.copy_smem_to_gmem(out, self.part_of_y(step, unit, rows))

    def load(self, step: Step, unit: jax.Array, slab: Any) -> None:
        """Brings a run of features of x, or a block's, from a slab into a buffer."""
        assert step.target is not None
        tile = plgpu.load(slab, layout=self.moved(slab), optimized=False)
        parts = self.run_of(step, step.target, unit, step.slab_in)
        self.write(step.target, parts, tile)

    def store(self, step: Step, unit: jax.Array, slab: Any) -> None:
        """Brings a run of features of y, or a block's, from a buffer into a slab."""
        assert step.source is not None
        layout = self.moved(slab)
        parts = [
            plgpu.load(part, layout=layout, optimized=False)
            for part in self.run_of(step, step.source, unit, step.slab_out)
        ]
        if len(parts) > 1:  # The smallest first.
            wide = [part.astype(jnp.float32) for part in reversed(parts)]
            parts = [functools.reduce(operator.add, wide)]
        slab[...] = parts[0].astype(self.plan.types.y)

    def multiply(
        self, step: Step, unit: jax.Array, refs: dict[str, Any], at: Any, out: Any
    ) -> None:
        """One block of a factor: (rows × c) by (c × b)."""
        factor, types = self.plan.factors[step.factor], self.plan.types
        i, k = self.block_of(step, unit)
        sources: list[list[Any]]  # Of each piece, the parts along c.
        if step.source is None:
            slab = refs["slab_in"].at[at]
            sources = [[slab.T if self.axis == -1 else slab]]
        else:
            sources = self.block(step.source, factor, factor.c, i, k)
        targets: list[list[Any]]
        if out is not None:
            targets = [[out.T if self.axis == -1 else out]]
        else:
            assert step.target is not None
            targets = self.block(step.target, factor, step.num_rows, i, k)
        load = functools.partial(plgpu.load, optimized=False)
        tiles_of_x = [
            [load(part.T, layout=self.layout("LHS")) for part in piece]
            for piece in sources
        ]
        length = step.num_rows // len(targets[0])
        depth = factor.c // len(sources[0])
        for n in range(len(targets[0])):
            first_row = n * length
            sums = self.initial(step, unit, step.first_row + first_row, length)
            for x_piece, w_piece in pieces.products(types.pieces):
                for m, tile in enumerate(tiles_of_x[x_piece]):
                    weights = refs["weights"].at[
                        at, w_piece, pl.ds(first_row, length), pl.ds(m * depth, depth)
                    ]
                    weights = load(weights.T, layout=self.layout("RHS"))
                    sums = plgpu.mma(sums, tile, weights)
            if step.factor == 0:
                sums = activate(sums, self.activation)
            if out is not None:
                targets[0][0].T[...] = sums.astype(types.y)
            else:
                self.write(step.target, [piece[n].T for piece in targets], sums)

    def initial(
        self, step: Step, unit: jax.Array, first_row: int, length: int
    ) -> jax.Array:
        """What the sums of (rows × length) products start from."""
        shape, layout = (self.config.rows, length), self.layout("ACC")
        if step.factor > 0 or self.bias is None:
            return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), layout)
        bias = plgpu.load(
            self.bias.at[unit, pl.ds(first_row, length)],
            layout=layout.reduce(0),
            optimized=False,
        )
        return plgpu.layout_cast(jax.lax.broadcast_in_dim(bias, shape, (1,)), layout)

    def write(self, buffer: int | None, parts: Sequence[Any], tile: jax.Array) -> None:
        """Writes numbers into a buffer, or each piece of them into its part."""
        assert buffer is not None
        if len(parts) == 1:
            parts[0][...] = tile.astype(self.plan.buffers[buffer].dtype)
            return
        for part, piece in zip(parts, pieces.split(tile, len(parts)), strict=True):
            part[...] = piece

    def layout(self, operand: Literal["LHS", "RHS", "ACC"]) -> Any:
        """How an operand of an mma is spread over a warpgroup's registers."""
        layout = getattr(plgpu.Layout, f"MMA_{operand}")
        return layout(jnp.dtype(self.plan.types.operand), m_warps=self.config.m_warps)

    def moved(self, slab: Any) -> Any:
        """How a slab that is only moved is spread over a warpgroup's registers."""
        tile = chain_plan.move_tile(*slab.shape)
        assert tile is not None
        return plgpu.Layout.MMA_ACC(jnp.bfloat16, m_warps=tile.m_warps)

    def block(
        self, buffer: int, factor: tiles.Factor, length: int, i: jax.Array, k: jax.Array
    ) -> list[list[Any]]:
        """Block (i, k) of a factor in a buffer.

        Returns:
          For each piece of the numbers, the parts of shape (features, rows) that the
          block is cut into.
        """
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        rows = pl.ds(0, self.config.rows)
        if layout.has_columns(factor):
            q, r = jax.lax.div(k, layout.inner), jax.lax.rem(k, layout.inner)
            return [
                [ref.at[piece, pl.ds(i * length, length), q, r, rows]]
                for piece in range(layout.pieces)
            ]
        # The neighbour's blocks cut this one's features into parts.
        parts = layout.num_parts(factor, length)
        return [
            [
                ref.at[piece, i * parts + part, pl.ds(0, layout.middle), k, rows]
                for part in range(parts)
            ]
            for piece in range(layout.pieces)
        ]

    def run_of(self, step: Step, buffer: int, unit: jax.Array, run: int) -> list[Any]:
        """What a unit moves, in a buffer: for each piece of the numbers a part.

        Of shape (rows, run) where the batch comes first, or (features, rows).
        """
        if self.axis == 0:
            i, k = self.block_of(step, unit)
            factor = self.plan.factors[step.factor]
            return [part for (part,) in self.block(buffer, factor, run, i, k)]
        layout, ref = self.plan.buffers[buffer], self.buffers[buffer]
        at: tuple[Any, ...] = (unit, pl.ds(0, run), 0)
        if layout.inner > 1:
            p, q = jax.lax.div(unit, layout.middle), jax.lax.rem(unit, layout.middle)
            at = (p, q, pl.ds(0, run))
        rows = pl.ds(0, self.config.rows)
        return [ref.at[piece, *at, rows].T for piece in range(layout.pieces)]
