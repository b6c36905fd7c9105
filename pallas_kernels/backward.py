"""`backward`: the gradients of a chain of two factors in one launch.

For y = activation(K₁K₂x + bias) and h = K₂x, a cluster of S CTAs takes `rows` vectors
of the batch at a time:

    x in HBM ──TMA──▶ slab ─▶ h = K₂x ──▶ by outer ═══ pull ══▶ by inner: h
                       │                                          │
    dy in HBM ─TMA──▶ slab ─▶ dz = dy·activation'(K₁h + bias) ────┤
                       │                                          ├─▶ dK₁ += dz hᵀ
                       │                                          ▼
                       │                 by outer ◀══ pull ═══ dh = K₁ᵀdz, in its place
                       ├─────────────────────┤
                       ▼                     ▼
                 dK₂ += dh xᵀ        dx = K₂ᵀdh ─▶ slab ──TMA──▶ dx in HBM

Between the factors a vector is (outer, inner) features. A block of K₂ makes whole rows
of them and one of K₁ reads a column, so with CTA s holding some rows before and some
columns after an exchange (`pallas_kernels.cluster`) no block needs another CTA's: each
CTA has 1/S of the blocks of either factor, and each warpgroup blocks of its own.
Their weights are fetched once and stay in shared memory. The sums for their gradients,
float32, stay in registers while the batch goes by, and are written once, for each
cluster apart; XLA adds these up, in a fixed order. There are no atomics. h is computed
again from x, so nothing needs to be saved for this pass but x itself.

Features-first slabs are multiplied as TMA brought them. Features last, x and dy are
transposed in shared memory first, dy by rows of its (b, d) features, and exchanged
along with h. dx is made the way it leaves.

*Barriers.* All warpgroups of the cluster meet twice for each tile, and once more.

1. After h (and dy by outer) is written: no CTA pulls what is not there. It also ends
   the reading of the buffers by inner's last contents: who arrives here has pulled its
   part of the tile before, so that a pull may overwrite its own buffer by inner.
2. After dh is written by inner: the way back may begin. All pulls of h and dy are over
   then, so the buffers by outer may be overwritten, by dh now and by the next tile.
3. After the last tile: no CTA leaves while a peer may pull from its memory.

One thread of a warpgroup arrives for all: Mosaic has a warpgroup's threads meet before
and after each store, so what the others read and wrote before it is over by then.
Within a CTA, the warpgroups meet after each exchange, as they pull parts for one
another. All other buffers belong to one warpgroup. Slabs are refilled by the warpgroup
that has read them, after a fence. A single CTA works in place, without exchanges, and
needs 1 and 2 among its warpgroups only. Vectors beyond the batch arrive as zeros: dy,
and so dz and dh, are zero there and add nothing.

Bytes per vector in 16 bits, for n features before, between and after the factors:

    HBM     6n: x and dy read, dx written, which is the floor, 1.5 times the forward
            pass. Beside that 8 bytes per weight and cluster once, for its sums.
    L2      the same; weights but once
    peers   4n·(S − 1)/S, features last 6n·(S − 1)/S: 16 bytes at a time, less where a
            part is too small for that
    SMEM    TMA 6n; each product of a block reads its operands, one of them once for
            every two or four warps, and all but dK₁ and dK₂ write the result; an
            exchange writes and reads 2n; features last, transposing x and dy 8n

Unfused, with each product reading and writing HBM, 20n are moved: 4n each for h again,
dh, dx, dK₁ and dK₂. XLA, which saves h, moves 24n for both passes, fused ones 10n.

Registers: (weights) / (128 · S · warpgroups) of each thread for sums, which is what
limits n: at n = 4096 they are half the registers of 16 multiprocessors, at n = 8192
6 MB, more than all of them; so that, as well as float32, is refused.

*Bank conflicts*: none; slabs are as wide as a swizzle, in buffers neighbouring features
and blocks' rows are an odd number of 16 bytes apart.

*What binds*, predicted and not measured, for `default_config` at a batch of 25,088 in
bfloat16, Monarch chains; nanoseconds per vector with the rates that
`pallas_kernels.chips` assumes of an H200. "all" adds the latency of a tile's products,
pulls and barriers, one after another, which binds everywhere; "unfused" is 20n at the
rate of HBM.

    n, features    S  rows  sums   ns: HBM  SMEM   peers  all    unfused
    512, first     4  64    16         0.71 1.11   0.59   2.3    2.4
    1024, first    8  64    16         1.43 1.93   1.38   3.7    4.8
    2048, first    8  32    48         2.86 4.85   2.76   8.1    9.5
    4096, first    16 16    64         5.72 12.0   5.91   24     19
    512, last      4  64    16         0.71 1.32   0.89   2.7    2.4
    1024, last     8  64    16         1.43 2.35   2.07   4.5    4.8
    2048, last     16 64    48         2.86 4.99   4.43   13     9.5
    4096, last     16 16    64         5.72 13.7   8.86   28     19

So this form should win up to n = 2048 features first and at n = 1024 features last, and
lose at n = 4096, where a tile of 16 vectors is too little work for two exchanges.
768 -> 3072 and back are refused. Blocks of 48 × 48 have no tile of mma.sync; embedded
in 96 × 96 the sums double, what was compiled spilled, and it should have taken 7.9 ns a
vector, where HBM takes 5.7 unfused. Compiled for an H200, the configurations of this
table do not spill; with bias and relu the third one does, 8 bytes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import arguments, cluster, compat, slabs, tiles
from pallas_kernels.backward_config import (
    check_arguments,
    default_config,
    predicted_seconds,
)
from pallas_kernels.backward_plan import CTA_AXIS, MAX_DEPTH, Config, Plan, plan
from pallas_kernels.blocks import bias_blocks, weight_blocks
from pallas_kernels.epilogue import Activation, activate

__all__ = ["Config", "backward", "default_config", "predicted_seconds"]


def backward(
    x: jax.Array,
    factors: Sequence[jax.Array],
    dy: jax.Array,
    *,
    axis: Literal[0, -1] = -1,
    bias: jax.Array | None = None,
    activation: Activation | None = None,
    config: Config | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array], jax.Array | None]:
    """Gradients of y = activation(K₁K₂x + bias), in one launch.

    Products accumulate in float32. What passes between the factors, and the gradient
    dz of what the activation is applied to, are rounded to the dtype of x, h as the
    forward pass rounds it. Vectors are added up in an order that the configuration
    alone decides: the same arguments give the same bits.

    Args:
      x: (batch, n_in) for axis=-1, (n_in, batch) for axis=0; bfloat16 or float16.
      factors: K₁ of shape (1, b, c, d) and K₂ of shape (a, b', c', 1), of the dtype of
        x, where a | c and d | b'.
      dy: gradient of the result, (batch, n_out) or (n_out, batch), of the dtype of x.
      axis: the feature axis of x and dy.
      bias: (n_out,) or None; taken as float32.
      activation: see `pallas_kernels.epilogue.activate`.
      config: None for `default_config`.
      precision: as in `jax.lax.dot_general`; products of 16-bit numbers are exact.

    Returns:
      Gradients of x, of the factors and of the bias, of their shapes and dtypes; None
      for the last one if there is no bias.

    Raises:
      NotImplementedError: if the kernel does not support the dtype, the patterns or the
        sizes; and later, when it is lowered, if that is not for an NVIDIA GPU.
      ValueError: if the sizes do not fit one another, or axis is neither 0 nor -1.
    """
    shapes, batch, n_out = arguments.check("backward", x, factors, bias, axis)
    y_shape = (batch, n_out) if axis == -1 else (n_out, batch)
    if dy.shape != y_shape:
        raise ValueError(
            f"backward: dy must have the shape of the result, {y_shape}, got {dy.shape}"
        )
    check_arguments(shapes, x.dtype, batch, axis)
    if dy.dtype != x.dtype:
        raise NotImplementedError(
            f"backward: dy has dtype {dy.dtype.name}, but x has {x.dtype.name}: the "
            "kernel multiplies numbers of one type"
        )
    if batch == 0:
        return jax.tree.map(jnp.zeros_like, (x, tuple(factors), bias))
    if config is None:
        config = default_config(shapes, x.dtype, batch, axis=axis, precision=precision)
    made = plan(shapes, config, axis)
    embedded = (made.left, made.right)
    dx, sums = _launch(
        compat.gpu_only(x),
        dy,
        [_embed(w, e) for w, e in zip(factors, embedded, strict=True)],
        None if bias is None else bias_blocks(bias, made.left),
        activation,
        made,
        batch,
    )
    dleft, dright = (
        _pull_back(functools.partial(_embed, embedded=e), factor, sums[name])
        for e, factor, name in zip(embedded, factors, ("left", "right"), strict=True)
    )
    if bias is None:
        return dx, (dleft, dright), None
    blocks_of = functools.partial(bias_blocks, embedded=made.left)
    return dx, (dleft, dright), _pull_back(blocks_of, bias, sums["bias"])


def _embed(factor: jax.Array, embedded: tiles.Factor) -> jax.Array:
    """A factor's blocks, (a·d, b, c), embedded in larger ones."""
    return weight_blocks(factor, embedded, 1)[:, 0]


def _pull_back(
    blocks_of: Callable[[jax.Array], jax.Array], array: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient of an array from that of its blocks, which are linear in it."""
    # An array, not its shape: its type tells over which axes of a mesh it varies.
    (found,) = jax.linear_transpose(blocks_of, array.astype(jnp.float32))(gradient)
    return found.astype(array.dtype)


def _launch(
    x: jax.Array,
    dy: jax.Array,
    blocks: Sequence[jax.Array],
    bias: jax.Array | None,
    activation: Activation | None,
    plan: Plan,
    batch: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Calls the kernel and adds up what its clusters sent.

    Returns:
      dx, and the gradients of the "left" and "right" blocks, and of the "bias" (d, b).
    """
    config, left, right = plan.config, plan.left, plan.right
    warpgroups = config.warpgroups
    num_tiles = pl.cdiv(batch, config.rows)
    clusters = min(config.ctas // config.cluster, num_tiles)
    x_shape, dy_shape = x.shape, dy.shape
    if not plan.batch_first:
        x_shape, dy_shape = (right.a, right.c, batch), (left.b, left.d, batch)

    def loaded(slab: tuple[int, ...]) -> Any:
        return plgpu.Barrier(
            num_arrivals=slab[1] // warpgroups, num_barriers=warpgroups * slab[0]
        )

    smem = {
        "x": slabs.slab(plan.x_slab, x.dtype),
        "dy": slabs.slab(plan.dy_slab, x.dtype),
        "out": slabs.slab(plan.out_slab, x.dtype),
        "x_loaded": loaded(plan.x_slab),
        "dy_loaded": loaded(plan.dy_slab),
        "left": plgpu.SMEM(plan.left_weights, x.dtype),
        "right": plgpu.SMEM(plan.right_weights, x.dtype),
        "by_outer": plgpu.SMEM(plan.by_outer, x.dtype),
        "cta_barrier": plgpu.Barrier(num_arrivals=warpgroups),
    }
    if plan.batch_first:
        smem["turned_x"] = plgpu.SMEM(plan.turned_x, x.dtype)
        smem["dy_by_outer"] = plgpu.SMEM(plan.dy_by_outer, x.dtype)
    options: dict[str, Any] = {}
    if config.cluster > 1:
        options = {"cluster": (config.cluster,), "cluster_names": (CTA_AXIS,)}
        smem["by_inner"] = plgpu.SMEM(plan.by_inner, x.dtype)
        if plan.batch_first:
            smem["dy_by_inner"] = plgpu.SMEM(plan.dy_by_inner, x.dtype)
        smem["cluster_barrier"] = plgpu.ClusterBarrier(
            collective_axes=(CTA_AXIS,), num_arrivals=warpgroups
        )
    sums = {
        "left": (left.d, left.b, left.c),
        "right": (right.a, plan.runs, plan.inner, right.c),
    }
    if bias is not None:
        smem["bias"] = plgpu.SMEM((plan.lefts, left.b), jnp.float32)
        sums["bias"] = (config.cluster * warpgroups, *plan.bias_sums)
    partial_sums = {
        name: jax.ShapeDtypeStruct((clusters, *shape), jnp.float32)
        for name, shape in sums.items()
    }

    def body(*refs: Any) -> None:
        *inputs, dx_ref, sum_refs, smem_refs = refs
        x_ref, dy_ref, left_ref, right_ref, *bias_ref = inputs
        _Kernel(
            plan,
            activation,
            x.dtype,
            num_tiles,
            clusters,
            x_ref,
            dy_ref,
            {"left": left_ref, "right": right_ref},
            bias_ref[0] if bias_ref else None,
            dx_ref,
            sum_refs,
            smem_refs,
        ).run()

    inputs = [x.reshape(x_shape), dy.reshape(dy_shape), *blocks]
    if bias is not None:
        inputs.append(bias)
    dx, found = plgpu.kernel(
        body,
        out_type=[jax.ShapeDtypeStruct(x_shape, x.dtype), partial_sums],
        scratch_types=[smem],
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        grid=(clusters,),
        grid_names=("cluster",),
        num_threads=warpgroups,
        thread_name="wg",
        **options,
    )(*inputs)
    dx = compat.varying_as(dx, *inputs).reshape(x.shape)
    totals = {k: compat.varying_as(v, *inputs).sum(0) for k, v in found.items()}
    totals["right"] = totals["right"].reshape(right.num_blocks, right.b, right.c)
    if bias is not None:
        # A warpgroup's blocks are columns of its sums, the last of which may be idle.
        columns = totals["bias"].swapaxes(2, 3).reshape(len(totals["bias"]), -1, left.b)
        totals["bias"] = columns[:, : plan.lefts // warpgroups].reshape(left.d, left.b)
    return dx, totals


def _mma(m: int, n: int) -> tiles.Mma:
    """The tile for an (m × n) product, which the plan has checked to exist."""
    mma = tiles.widest_mma(m, n)
    assert mma is not None
    return mma


@dataclasses.dataclass(frozen=True, slots=True)
class _Kernel:
    """What the kernel's functions share while they are traced; refs are Pallas refs."""

    plan: Plan
    activation: Activation | None
    dtype: jnp.dtype
    num_tiles: int
    clusters: int
    x: Any
    dy: Any
    weights: dict[str, Any]
    bias: Any
    dx: Any
    sums: dict[str, Any]
    smem: dict[str, Any]

    def run(self) -> None:
        """Takes tiles until there are none left."""
        config = self.plan.config
        self.load_weights()
        for ahead in range(config.x_stages):
            self.fetch("x", jnp.int32(ahead))
        for ahead in range(config.dy_stages):
            self.fetch("dy", jnp.int32(ahead))
        first = jax.lax.axis_index("cluster")
        mine = jax.lax.div(self.num_tiles - first + self.clusters - 1, self.clusters)
        sums = jax.lax.fori_loop(0, mine, self.take_tile, self.no_sums())
        self.write(sums)
        plgpu.wait_smem_to_gmem(0)
        if config.cluster > 1:
            self.meet_cluster()  # A peer may be reading this CTA's memory.

    def take_tile(self, turn: jax.Array, sums: dict[str, Any]) -> dict[str, Any]:
        """Computes a tile's dx, and adds what it has for the sums."""
        plan, config = self.plan, self.plan.config
        self.receive("x", turn)
        for i, run in itertools.product(self.own(plan.rights), range(plan.runs)):
            x, weights = self.x_block(turn, i), self.right_weights(i, run)
            self.apply([(x, weights.T)], self.h_row(i, run).T)
        self.receive("dy", turn)
        self.meet_cluster()  # h, and dy features last, are there.
        if config.cluster > 1:
            by_outer, by_inner = self.buffers("")
            cluster.pull_by_inner(by_outer, by_inner, plan.shares, **self.pulling)
            if plan.batch_first:
                by_outer, by_inner = self.buffers("dy_")
                cluster.pull_by_inner(
                    by_outer, by_inner, plan.dy_shares, **self.pulling
                )
            self.meet()
        sums = self.apply_left(turn, sums)
        plgpu.commit_smem()  # TMA may overwrite what was just read.
        if not plan.batch_first:
            self.fetch("dy", turn + config.dy_stages)
        self.meet_cluster()  # The gradient of h is there, and h no longer read.
        if config.cluster > 1:
            by_outer, by_inner = self.buffers("")
            cluster.pull_by_outer(by_inner, by_outer, plan.shares, **self.pulling)
            self.meet()
        sums = self.apply_right(turn, sums)
        if not plan.batch_first:
            self.fetch("x", turn + config.x_stages)
        return sums

    # Who has what.

    @property
    def cta(self) -> Any:
        """Index of this CTA in its cluster."""
        return jax.lax.axis_index(CTA_AXIS) if self.plan.config.cluster > 1 else 0

    def own(self, count: int) -> list[jax.Array]:
        """This warpgroup's, of `count` things that a CTA has."""
        each = count // self.plan.config.warpgroups
        return [jax.lax.axis_index("wg") * each + at for at in range(each)]

    @property
    def pulling(self) -> dict[str, Any]:
        """Who pulls what from the peers."""
        return {
            "warpgroup": jax.lax.axis_index("wg"),
            "warpgroups": self.plan.config.warpgroups,
        }

    def meet(self) -> None:
        """Waits for the CTA's other warpgroups."""
        if self.plan.config.warpgroups > 1:
            plgpu.barrier_arrive(self.smem["cta_barrier"])
            plgpu.barrier_wait(self.smem["cta_barrier"])

    def meet_cluster(self) -> None:
        """Waits for all warpgroups of the cluster."""
        if self.plan.config.cluster == 1:
            self.meet()
            return
        plgpu.barrier_arrive(self.smem["cluster_barrier"])
        plgpu.barrier_wait(self.smem["cluster_barrier"])

    def tile_of(self, turn: jax.Array) -> jax.Array:
        return jax.lax.axis_index("cluster") + turn * self.clusters

    def rows_of(self, turn: jax.Array) -> Any:
        rows = self.plan.config.rows
        return pl.ds(pl.multiple_of(self.tile_of(turn) * rows, rows), rows)

    # x and dy come in.

    def slab(self, name: str, turn: jax.Array) -> tuple[Any, Any]:
        """Where a tile's x or dy arrives, and what tells this warpgroup that it has."""
        slab = self.smem[name]
        stage = jax.lax.rem(turn, slab.shape[0])
        at = stage * self.plan.config.warpgroups + jax.lax.axis_index("wg")
        return slab.at[stage], self.smem[f"{name}_loaded"].at[at]

    def fetch(self, name: str, turn: jax.Array) -> None:
        """Starts the copies of this warpgroup's part of a tile's x or dy."""
        slab, loaded = self.slab(name, turn)

        def copy() -> None:
            for unit in self.own(slab.shape[0]):
                source = self.part(name, self.cta * slab.shape[0] + unit, turn)
                plgpu.copy_gmem_to_smem(source, slab.at[unit], loaded)

        pl.when(self.tile_of(turn) < self.num_tiles)(copy)

    def part(self, name: str, unit: jax.Array, turn: jax.Array) -> Any:
        """A block of x or dy, (features, rows), or a panel of it, (rows, features)."""
        rows = self.rows_of(turn)
        if self.plan.batch_first:
            width = self.smem[name].shape[-1]
            run = pl.ds(pl.multiple_of(unit * width, width), width)
            return {"x": self.x, "dy": self.dy}[name].at[rows, run]
        return self.x.at[unit, :, rows] if name == "x" else self.dy.at[:, unit, rows]

    def receive(self, name: str, turn: jax.Array) -> None:
        """Waits for this warpgroup's part of a tile, and brings features to the front.

        Features first they are there; features last the slab is free again afterwards.
        """
        slab, loaded = self.slab(name, turn)
        plgpu.barrier_wait(loaded)
        if not self.plan.batch_first:
            return
        units, rows, width = slab.shape
        layout = self.layout("ACC", _mma(rows, width))
        for unit in self.own(units):
            tile = plgpu.load(slab.at[unit], layout=layout, optimized=False)
            self.turned(name, unit, width).T[...] = tile
        plgpu.commit_smem()
        self.fetch(name, turn + self.smem[name].shape[0])

    def turned(self, name: str, unit: jax.Array, width: int) -> Any:
        """Where a panel's features go, (features, rows)."""
        if name == "x":
            return self.smem["turned_x"].at[pl.ds(unit * width, width), self.rows]
        per_row = self.plan.inner // width
        u, start = jax.lax.div(unit, per_row), jax.lax.rem(unit, per_row) * width
        return self.smem["dy_by_outer"].at[u, pl.ds(start, width), self.rows]

    def load_weights(self) -> None:
        """Brings the weights and the bias of this warpgroup's blocks, to stay."""
        plan = self.plan
        for name, factor, count in (
            ("left", plan.left, plan.lefts),
            ("right", plan.right, plan.rights),
        ):
            layout = self.layout("ACC", _mma(factor.b, factor.c))
            for at in self.own(count):
                source = self.weights[name].at[self.cta * count + at]
                tile = plgpu.load(source, layout=layout, optimized=False)
                self.smem[name].at[at, :, pl.ds(0, factor.c)][...] = tile
        if self.bias is not None:
            layout = self.layout("ACC", _mma(plan.left.b, plan.config.rows)).reduce(1)
            for k in self.own(plan.lefts):
                source = self.bias.at[self.cta * plan.lefts + k]
                tile = plgpu.load(source, layout=layout, optimized=False)
                self.smem["bias"].at[k][...] = tile

    # What lies in shared memory, without padding.

    @property
    def rows(self) -> Any:
        return pl.ds(0, self.plan.config.rows)

    def buffers(self, name: str) -> tuple[Any, Any]:
        """h or dy, as the CTA shares it with its peers and as its blocks of K₁ do."""
        by_outer, by_inner = self.smem[f"{name}by_outer"], self.smem[f"{name}by_inner"]
        return (
            by_outer.at[:, pl.ds(0, self.plan.inner), self.rows],
            by_inner.at[:, pl.ds(0, self.plan.lefts), self.rows],
        )

    def x_block(self, turn: jax.Array, i: jax.Array) -> Any:
        """What block i of K₂ reads of x, (c, rows)."""
        if not self.plan.batch_first:
            return self.slab("x", turn)[0].at[i]
        c = self.plan.right.c
        return self.smem["turned_x"].at[pl.ds(i * c, c), self.rows]

    def h_row(self, i: jax.Array, run: int) -> Any:
        """A row of what block i of K₂ makes of h, (inner, rows), or its gradient."""
        plan = self.plan
        return self.smem["by_outer"].at[
            i * plan.runs + run, pl.ds(0, plan.inner), self.rows
        ]

    def right_weights(self, i: jax.Array, run: int) -> Any:
        """The weights of block i of K₂ that make that row, (inner, c)."""
        plan = self.plan
        return self.smem["right"].at[
            i, pl.ds(run * plan.inner, plan.inner), pl.ds(0, plan.right.c)
        ]

    def column(self, name: str, k: jax.Array) -> Any:
        """What block k of K₁ has of h, (c, rows), or of a batch-first dy, (b, rows)."""
        held = "by_inner" if self.plan.config.cluster > 1 else "by_outer"
        return self.smem[f"{name}{held}"].at[:, k, self.rows]

    # Products.

    def layout(self, operand: Literal["LHS", "RHS", "ACC"], mma: tiles.Mma) -> Any:
        """How an operand of an mma is spread over a warpgroup's registers."""
        layout = getattr(plgpu.Layout, f"MMA_{operand}")
        return layout(self.dtype, m_warps=mma.m_warps)

    def zeros(self, m: int, n: int) -> jax.Array:
        """Sums of an (m × n) product that are yet to be added up."""
        layout = self.layout("ACC", _mma(m, n))
        return plgpu.layout_cast(jnp.zeros((m, n), jnp.float32), layout)

    def multiply(
        self,
        sums: jax.Array,
        lhs: Any,
        rhs: Any,
    ) -> jax.Array:
        """The sums plus the product of two refs, (m × k) and (k × n).

        Operands are loaded in parts along k, which takes fewer registers at a time.
        """
        mma, depth = _mma(*sums.shape), rhs.shape[0]
        for start in range(0, depth, MAX_DEPTH):
            part = pl.ds(start, min(MAX_DEPTH, depth - start))
            a, b = lhs.at[:, part], rhs.at[part]
            a = plgpu.load(a, layout=self.layout("LHS", mma), optimized=False)
            b = plgpu.load(b, layout=self.layout("RHS", mma), optimized=False)
            sums = plgpu.mma(sums, a, b)
        return sums

    def apply(self, terms: Sequence[tuple[Any, Any]], target: Any) -> None:
        """Applies blocks to the vectors of a tile.

        Args:
          terms: refs of features (k, rows) and weights (k, n), whose products are
            added up.
          target: ref (rows, n) of the sums, rounded.
        """
        sums = self.zeros(*target.shape)
        for features, weights in terms:
            sums = self.multiply(sums, features.T, weights)
        target[...] = sums.astype(self.dtype)

    def no_sums(self) -> dict[str, Any]:
        """What this warpgroup's sums start from."""
        plan, left = self.plan, self.plan.left
        lefts, rights = self.own(plan.lefts), self.own(plan.rights)
        sums: dict[str, Any] = {
            "left": [self.zeros(left.b, left.c) for _ in lefts],
            "right": [
                [self.zeros(plan.inner, plan.right.c) for _ in range(plan.runs)]
                for _ in rights
            ],
        }
        if self.bias is not None:
            count, *shape = plan.bias_sums
            zeros = jnp.zeros(shape, jnp.float32)
            layout = self.layout("ACC", _mma(left.b, left.c))
            sums["bias"] = [plgpu.layout_cast(zeros, layout) for _ in range(count)]
        return sums

    def apply_left(self, turn: jax.Array, sums: dict[str, Any]) -> dict[str, Any]:
        """The blocks of K₁: their gradients, and h's in the place of h."""
        plan, left = self.plan, self.plan.left
        dleft, dbias = [], list(sums.get("bias", []))
        for at, k in enumerate(self.own(plan.lefts)):
            h = self.column("", k)
            dz = (
                self.column("dy_", k)
                if plan.batch_first
                else self.slab("dy", turn)[0].at[k]
            )
            weights = self.smem["left"].at[k, :, pl.ds(0, left.c)]
            if self.activation is not None:
                self.before_activation(k, weights, h, dz)
            mma = _mma(left.b, left.c)
            lhs = plgpu.load(dz, layout=self.layout("LHS", mma), optimized=False)
            if self.bias is not None:
                column = plgpu.broadcasted_iota(
                    jnp.int32,
                    (plan.config.rows, mma.n),
                    1,
                    layout=self.layout("RHS", mma),
                )
                ones = (column == at % mma.n).astype(self.dtype)
                dbias[at // mma.n] = plgpu.mma(dbias[at // mma.n], lhs, ones)
            rhs = plgpu.load(h.T, layout=self.layout("RHS", mma), optimized=False)
            dleft.append(plgpu.mma(sums["left"][at], lhs, rhs))
            self.apply([(dz, weights)], h.T)
        return {**sums, "left": dleft} | ({"bias": dbias} if dbias else {})

    def before_activation(self, k: jax.Array, weights: Any, h: Any, dy: Any) -> None:
        """dz = dy · activation'(z) for z = K₁h + bias, block k, in the place of dy."""
        rows, size = self.plan.config.rows, self.plan.activated
        layout = self.layout("ACC", _mma(size, rows))
        for start in range(0, self.plan.left.b, size):
            features = pl.ds(start, size)
            z = self.zeros(size, rows)
            if self.bias is not None:
                bias = plgpu.load(
                    self.smem["bias"].at[k, features],
                    layout=layout.reduce(1),
                    optimized=False,
                )
                z = jax.lax.broadcast_in_dim(bias, (size, rows), (0,))
                z = plgpu.layout_cast(z, layout)
            z = self.multiply(
                z,
                weights.at[features],
                h,
            )
            _, pull = jax.vjp(lambda z: activate(z, self.activation), z)
            part = dy.at[features]
            given = plgpu.load(part, layout=layout, optimized=False)
            (dz,) = pull(given.astype(jnp.float32))
            part[...] = dz.astype(self.dtype)

    def apply_right(self, turn: jax.Array, sums: dict[str, Any]) -> dict[str, Any]:
        """The blocks of K₂: their gradients, and dx."""
        plan, config = self.plan, self.plan.config
        wg, own = jax.lax.axis_index("wg"), self.own(plan.rights)
        dright = []
        for at, i in enumerate(own):
            x = self.x_block(turn, i)
            mma = _mma(plan.inner, plan.right.c)
            rhs = plgpu.load(x.T, layout=self.layout("RHS", mma), optimized=False)
            totals = []
            for run, total in enumerate(sums["right"][at]):
                lhs = plgpu.load(
                    self.h_row(i, run), layout=self.layout("LHS", mma), optimized=False
                )
                totals.append(plgpu.mma(total, lhs, rhs))
            dright.append(totals)
            # The slab's last journey has to be over before it is written again.
            plgpu.wait_smem_to_gmem(config.out_stages - 1, wait_read_only=True)
            stage = jax.lax.rem(turn * len(own) + at, config.out_stages)
            out = self.smem["out"].at[wg * config.out_stages + stage]
            panels, _, last = out.shape
            width = last if plan.batch_first else plan.right.c
            for panel in range(panels):
                columns = pl.ds(panel * width, width)
                terms = [
                    (self.h_row(i, run), self.right_weights(i, run).at[:, columns])
                    for run in range(plan.runs)
                ]
                self.apply(
                    terms, out.at[panel] if plan.batch_first else out.at[panel].T
                )
            plgpu.commit_smem()
            block = self.cta * plan.rights + i
            for panel in range(panels):
                vectors = self.rows_of(turn)
                if plan.batch_first:
                    start = pl.multiple_of((block * panels + panel) * width, width)
                    target = self.dx.at[vectors, pl.ds(start, width)]
                else:
                    target = self.dx.at[block, :, vectors]
                plgpu.copy_smem_to_gmem(
                    out.at[panel], target, commit_group=panel == panels - 1
                )
        return {**sums, "right": dright}

    def write(self, sums: dict[str, Any]) -> None:
        """Writes this cluster's sums, each warpgroup those of its blocks."""
        plan, at = self.plan, jax.lax.axis_index("cluster")
        for k, total in zip(self.own(plan.lefts), sums["left"], strict=True):
            self.sums["left"].at[at, self.cta * plan.lefts + k][...] = total
        warpgroup = self.cta * plan.config.warpgroups + jax.lax.axis_index("wg")
        for index, total in enumerate(sums.get("bias", [])):
            self.sums["bias"].at[at, warpgroup, index][...] = total
        for i, totals in zip(self.own(plan.rights), sums["right"], strict=True):
            for run, total in enumerate(totals):
                block = self.cta * plan.rights + i
                self.sums["right"].at[at, block, run][...] = total
