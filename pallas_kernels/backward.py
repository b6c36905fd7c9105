"""`backward`: gradients of a chain of two factors in one launch."""

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
from pallas_kernels.backward_config import check_arguments, default_config
from pallas_kernels.backward_plan import CTA_AXIS, Config, Plan, plan
from pallas_kernels.blocks import bias_blocks, weight_blocks
from pallas_kernels.epilogue import Activation, activate

__all__ = ["Config", "backward", "default_config"]


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
    wide = jax.ShapeDtypeStruct(array.shape, jnp.float32)
    (found,) = jax.linear_transpose(blocks_of, wide)(gradient)
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
        sums["bias"] = (left.d, left.b, _mma(left.b, left.c).n)
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
        totals["bias"] = totals["bias"][:, :, 0]  # All columns are the same.
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
            product = self.multiply(
                self.zeros(config.rows, plan.inner),
                self.x_block(turn, i).T,
                self.right_weights(i, run).T,
            )
            self.h_row(i, run).T[...] = product.astype(self.dtype)
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

    def multiply(self, sums: jax.Array, lhs: Any, rhs: Any) -> jax.Array:
        """The sums plus the product of two refs, (m × k) and (k × n)."""
        mma = _mma(*sums.shape)
        a = plgpu.load(lhs, layout=self.layout("LHS", mma), optimized=False)
        b = plgpu.load(rhs, layout=self.layout("RHS", mma), optimized=False)
        return plgpu.mma(sums, a, b)

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
            mma = _mma(left.b, left.c)
            zeros = jnp.zeros((left.b, mma.n), jnp.float32)
            layout = self.layout("ACC", mma)
            sums["bias"] = [plgpu.layout_cast(zeros, layout) for _ in lefts]
        return sums

    def apply_left(self, turn: jax.Array, sums: dict[str, Any]) -> dict[str, Any]:
        """The blocks of K₁: their gradients, and h's in the place of h."""
        plan, left = self.plan, self.plan.left
        dleft, dbias = [], []
        for at, k in enumerate(self.own(plan.lefts)):
            h = self.column("", k)
            dz = (
                self.column("dy_", k)
                if plan.batch_first
                else self.slab("dy", turn)[0].at[k]
            )
            weights = self.smem["left"].at[k, :, pl.ds(0, left.c)]
            if self.activation is not None:
                dz[...] = self.before_activation(k, weights, h, dz)
            mma = _mma(left.b, left.c)
            lhs = plgpu.load(dz, layout=self.layout("LHS", mma), optimized=False)
            rhs = plgpu.load(h.T, layout=self.layout("RHS", mma), optimized=False)
            dleft.append(plgpu.mma(sums["left"][at], lhs, rhs))
            if self.bias is not None:
                ones = jnp.ones((plan.config.rows, mma.n), self.dtype)
                ones = plgpu.layout_cast(ones, self.layout("RHS", mma))
                dbias.append(plgpu.mma(sums["bias"][at], lhs, ones))
            dh = self.multiply(self.zeros(plan.config.rows, left.c), dz.T, weights)
            h.T[...] = dh.astype(self.dtype)
        return {**sums, "left": dleft} | ({"bias": dbias} if dbias else {})

    def before_activation(
        self, k: jax.Array, weights: Any, h: Any, dy: Any
    ) -> jax.Array:
        """dz = dy · activation'(z) for z = K₁h + bias, block k, (b, rows)."""
        rows, b = self.plan.config.rows, self.plan.left.b
        layout = self.layout("ACC", _mma(b, rows))
        z = self.zeros(b, rows)
        if self.bias is not None:
            bias = plgpu.load(
                self.smem["bias"].at[k], layout=layout.reduce(1), optimized=False
            )
            z = jax.lax.broadcast_in_dim(bias, (b, rows), (0,))
            z = plgpu.layout_cast(z, layout)
        z = self.multiply(z, weights, h)
        _, pull = jax.vjp(lambda z: activate(z, self.activation), z)
        given = plgpu.load(dy, layout=layout, optimized=False)
        (dz,) = pull(given.astype(jnp.float32))
        return dz.astype(self.dtype)

    def apply_right(self, turn: jax.Array, sums: dict[str, Any]) -> dict[str, Any]:
        """The blocks of K₂: their gradients, and dx."""
        plan, config = self.plan, self.plan.config
        wg, own = jax.lax.axis_index("wg"), self.own(plan.rights)
        dright = []
        for at, i in enumerate(own):
            x = self.x_block(turn, i)
            dright.append(
                [
                    self.multiply(total, self.h_row(i, run), x.T)
                    for run, total in enumerate(sums["right"][at])
                ]
            )
            # The slab's last journey has to be over before it is written again.
            plgpu.wait_smem_to_gmem(config.out_stages - 1, wait_read_only=True)
            stage = jax.lax.rem(turn * len(own) + at, config.out_stages)
            out = self.smem["out"].at[wg * config.out_stages + stage]
            panels, _, last = out.shape
            width = last if plan.batch_first else plan.right.c
            for panel in range(panels):
                columns = pl.ds(panel * width, width)
                dx = self.zeros(config.rows, width)
                for run in range(plan.runs):
                    weights = self.right_weights(i, run).at[:, columns]
                    dx = self.multiply(dx, self.h_row(i, run).T, weights)
                target = out.at[panel] if plan.batch_first else out.at[panel].T
                target[...] = dx.astype(self.dtype)
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
        for name in sums.keys() - {"right"}:
            for k, total in zip(self.own(plan.lefts), sums[name], strict=True):
                self.sums[name].at[at, self.cta * plan.lefts + k][...] = total
        for i, totals in zip(self.own(plan.rights), sums["right"], strict=True):
            for run, total in enumerate(totals):
                block = self.cta * plan.rights + i
                self.sums["right"].at[at, block, run][...] = total
