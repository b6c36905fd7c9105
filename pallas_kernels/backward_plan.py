"""How the backward kernel shares a chain of two factors out: to CTAs and warpgroups.

Plain Python integers, all from shapes.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from pallas_kernels import cluster, slabs, tiles
from pallas_kernels.tiles import MMA_K, Factor, Mma

ITEMSIZE = 2  # Bytes of a number that is multiplied.
_PAD = 8  # Rows: then neighbouring features are an odd number of 16 bytes apart.
# Of what `Plan.registers` says, by the warpgroups of a CTA: with more, ptxas spilled.
_MAX_REGISTERS = {1: 228, 2: 228, 3: 160, 4: 143, 5: 96, 6: 80, 7: 72, 8: 64}
_AHEAD = 1.75  # The next operands are loaded while some are multiplied.
_WARPGROUP = 128  # Threads.
_REGISTER_BYTES = 4
_ACTIVATED = 1024  # Numbers that an activation is applied to at a time, about.
_OTHER_REGISTERS = 32  # For addresses and counters.
CTA_AXIS = "cta"
MAX_DEPTH = 16  # What is loaded at a time of the operands of a product.


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """How the kernel is laid out on the chip; it never changes what is computed.

    Only `cluster` and `ctas` decide in which order the batch is summed up.

    Attributes:
      cluster: CTAs that share a tile, a power of two up to 16.
      rows: vectors of the batch in a tile: 16, 32 or 64.
      warpgroups: warpgroups of 128 threads in a CTA.
      x_stages: tiles whose x is in flight or in use.
      dy_stages: tiles whose dy is.
      out_stages: blocks of dx that may be on their way to HBM, per warpgroup.
      ctas: CTAs to launch at most; each cluster takes tiles until there are none left.
    """

    cluster: int = 4
    rows: int = 32
    warpgroups: int = 4
    x_stages: int = 2
    dy_stages: int = 1
    out_stages: int = 1
    ctas: int = 132

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"Config: {field.name} must be positive, got {value}")
        if self.cluster not in (1, 2, 4, 8, 16):
            raise ValueError(
                f"Config: cluster must be 1, 2, 4, 8 or 16, got {self.cluster}"
            )
        if self.rows not in (16, 32, 64):
            raise ValueError(f"Config: rows must be 16, 32 or 64, got {self.rows}")
        if self.warpgroups > 8:
            raise ValueError(
                f"Config: warpgroups must be at most 8, got {self.warpgroups}"
            )
        if self.ctas < self.cluster:
            raise ValueError(
                f"Config: ctas must be at least those of a cluster, {self.cluster}; "
                f"got {self.ctas}"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """Products (m × k)(k × n) of a CTA, one for each of some blocks.

    Attributes:
      m, n, k: the sizes.
      number: how many there are for each tile.
      is_summed: whether they are summed over all tiles, in registers.
    """

    m: int
    n: int
    k: int
    number: int
    is_summed: bool = False

    @property
    def mma(self) -> Mma | None:
        """The tile, None if there is no such."""
        return tiles.widest_mma(self.m, self.n)

    @property
    def read_bytes(self) -> int:
        """Bytes that the warps read of one product's operands.

        A warp reads what its own sums need: with w warps along m the left operand is
        read 4 / w times and the right one w times.
        """
        assert self.mma is not None
        w = self.mma.m_warps
        return ITEMSIZE * self.k * (self.m * 4 // w + self.n * w)

    def loaded(self, depth: int) -> float:
        """Registers that hold `depth` of the k, in all threads of a warpgroup."""
        return self.read_bytes * depth / self.k / _REGISTER_BYTES


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What of the two factors, K = K₁K₂, each CTA and each warpgroup has.

    A vector between the factors, h = K₂x, is (outer, inner) features: K₂'s blocks make
    runs of it, one or more whole rows, and K₁'s blocks read its columns.

    Attributes:
      left: K₁ = (1, b, c, d), after embedding.
      right: K₂ = (a, b, c, 1), after embedding.
      config: the configuration.
      batch_first: whether x is (batch, features) rather than the other way.
    """

    left: Factor
    right: Factor
    config: Config
    batch_first: bool

    @property
    def outer(self) -> int:
        """Rows of h."""
        return self.left.c

    @property
    def inner(self) -> int:
        """Columns of h."""
        return self.left.d

    @property
    def runs(self) -> int:
        """Rows of h that one block of the right factor makes."""
        return self.outer // self.right.a

    @property
    def lefts(self) -> int:
        """Blocks of the left factor that a CTA has."""
        return self.left.d // self.config.cluster

    @property
    def rights(self) -> int:
        """Blocks of the right factor that a CTA has."""
        return self.right.a // self.config.cluster

    @property
    def shares(self) -> cluster.Shares:
        """How the CTAs of a cluster hold h."""
        return self._shares(self.outer)

    @property
    def dy_shares(self) -> cluster.Shares:
        """How they hold a batch-first dy, (b, d) features of the left factor."""
        return self._shares(self.left.b)

    def _shares(self, outer: int) -> cluster.Shares:
        config = self.config
        return cluster.Shares(outer, self.inner, config.rows, config.cluster, CTA_AXIS)

    @property
    def by_outer(self) -> tuple[int, int, int]:
        """The buffer of h, or its gradient, before and after what K₁'s blocks do."""
        return self._padded(self.outer // self.config.cluster, self.inner)

    @property
    def by_inner(self) -> tuple[int, int, int]:
        """The buffer that K₁'s blocks work in; one CTA alone has but the other one."""
        return self._padded(self.outer, self.lefts)

    @property
    def turned_x(self) -> tuple[int, int]:
        """The CTA's share of x, features first."""
        return self.rights * self.right.c, self.config.rows + _PAD

    @property
    def dy_by_outer(self) -> tuple[int, int, int]:
        """The CTA's share of dy as it is fetched, features first."""
        return self._padded(self.left.b // self.config.cluster, self.inner)

    @property
    def dy_by_inner(self) -> tuple[int, int, int]:
        """The share of dy that its blocks of K₁ need, if there are several CTAs."""
        return self._padded(self.left.b, self.lefts)

    @property
    def left_weights(self) -> tuple[int, int, int]:
        """The CTA's weights of K₁."""
        return self.lefts, self.left.b, self.left.c + _PAD

    @property
    def right_weights(self) -> tuple[int, int, int]:
        """The CTA's weights of K₂."""
        return self.rights, self.right.b, self.right.c + _PAD

    @property
    def x_slab(self) -> tuple[int, int, int, int]:
        """Stages of the CTA's x as TMA brings it: blocks, or batch-first panels."""
        config, features = self.config, self.rights * self.right.c
        if not self.batch_first:
            return config.x_stages, self.rights, self.right.c, config.rows
        width = slabs.panel(features // config.warpgroups, ITEMSIZE)
        return config.x_stages, features // width, config.rows, width

    @property
    def dy_slab(self) -> tuple[int, int, int, int]:
        """Stages of the CTA's dy: blocks, or batch-first panels of whole rows."""
        config = self.config
        if not self.batch_first:
            return config.dy_stages, self.lefts, self.left.b, config.rows
        width = slabs.panel(self.inner, ITEMSIZE)
        features = self.left.b // config.cluster * self.inner
        return config.dy_stages, features // width, config.rows, width

    @property
    def out_slab(self) -> tuple[int, int, int, int]:
        """Blocks of dx on their way out, each in panels."""
        config, c = self.config, self.right.c
        blocks = config.out_stages * config.warpgroups
        if not self.batch_first:
            return blocks, 1, c, config.rows
        width = slabs.panel(c, ITEMSIZE)
        return blocks, c // width, config.rows, width

    @property
    def smem_bytes(self) -> int:
        """Bytes of shared memory of a CTA, each allocation in whole kilobytes."""
        config = self.config
        sizes: list[tuple[int, ...]] = [
            *(self.by_outer, self.left_weights, self.right_weights)
        ]
        if config.cluster > 1:
            sizes.append(self.by_inner)
        if self.batch_first:
            sizes += [self.turned_x, self.dy_by_outer]
            if config.cluster > 1:
                sizes.append(self.dy_by_inner)
        sizes += [self.x_slab, self.dy_slab, self.out_slab]
        bias = 4 * self.lefts * self.left.b
        barriers = 8 * (2 + config.warpgroups * (config.x_stages + config.dy_stages))
        return tiles.allocated(
            [*(ITEMSIZE * math.prod(size) for size in sizes), bias, barriers]
        )

    @property
    def sums(self) -> int:
        """Registers of a thread that hold sums for the weights' gradients."""
        weights = self.left.num_weights + self.right.num_weights
        return weights // (self.config.cluster * self.config.warpgroups * _WARPGROUP)

    @property
    def products(self) -> tuple[Product, ...]:
        """What a CTA multiplies for a tile; without the value before an activation.

        In order: h, dK₁, dh, dK₂, dx.
        """
        left, right, rows, inner = self.left, self.right, self.config.rows, self.inner
        h_rows = self.rights * self.runs
        return (
            Product(rows, inner, right.c, h_rows),
            Product(left.b, left.c, rows, self.lefts, is_summed=True),
            Product(rows, left.c, left.b, self.lefts),
            Product(inner, right.c, rows, h_rows, is_summed=True),
            Product(rows, right.c, inner, h_rows),
        )

    @property
    def bias_sums(self) -> tuple[int, int, int]:
        """A warpgroup's sums for the gradient of the bias, (tiles, b, columns).

        A column is the sum of one of its blocks.
        """
        mma = tiles.widest_mma(self.left.b, self.left.c)
        assert mma is not None
        blocks = self.lefts // self.config.warpgroups
        return -(-blocks // mma.n), self.left.b, mma.n

    @property
    def activated(self) -> int:
        """Features of a block of z that the activation is applied to at a time.

        Its derivative wants some registers for each number.
        """
        return math.gcd(self.left.b, _ACTIVATED // self.config.rows)

    @property
    def registers(self) -> int:
        """Registers that a thread needs, roughly."""
        most = 0.0
        for product in self.products:
            m, n, depth = product.m, product.n, product.k
            if not product.is_summed:
                most = max(
                    most, m * n + _AHEAD * product.loaded(min(depth, 2 * MAX_DEPTH))
                )
            else:
                most = max(most, _AHEAD * product.loaded(depth))
        bias = math.prod(self.bias_sums) // _WARPGROUP
        other = _OTHER_REGISTERS + 2 * self.batch_first
        return self.sums + bias + int(most) // _WARPGROUP + other

    def _padded(self, outer: int, inner: int) -> tuple[int, int, int]:
        return outer, inner | 1, self.config.rows + _PAD


def plan(shapes: Sequence[Sequence[int]], config: Config, axis: Literal[0, -1]) -> Plan:
    """Embeds the factors and shares them out.

    Args:
      shapes: patterns of the two factors, in the order of the matrix product.
      config: the configuration.
      axis: the feature axis of x.

    Raises:
      NotImplementedError: if the chain or the configuration does not fit the kernel;
        the message says why.
    """
    check_patterns(shapes)
    reason: NotImplementedError | None = None
    options = itertools.product(*(tiles.embeddings(shape, Mma(4)) for shape in shapes))
    for left, right in sorted(
        options, key=lambda pair: pair[0].num_weights + pair[1].num_weights
    ):
        made = Plan(left, right, config, axis == -1)
        try:
            _check(made)
        except NotImplementedError as error:
            reason = reason or error
        else:
            return made
    raise reason or NotImplementedError(
        f"backward: a factor of {[tuple(shape) for shape in shapes]} has no embedding "
        f"in blocks of at most {tiles.MAX_COPY} × {tiles.MAX_COPY}"
    )


def check_patterns(shapes: Sequence[Sequence[int]]) -> None:
    """Raises NotImplementedError unless the patterns are those of the kernel."""
    found = [tuple(shape) for shape in shapes]
    if len(found) == 2:
        (a1, _, c1, d1), (a2, b2, _, d2) = found
        if (a1, d2) == (1, 1) and c1 % a2 == 0 and b2 % d1 == 0:
            return
    raise NotImplementedError(
        "backward: the kernel takes two chainable factors (1, b, c, d)(a, b', c', 1), "
        f"got {found}"
    )


def _check(made: Plan) -> None:
    """Raises NotImplementedError unless the parts of a plan are whole."""
    config, left, right = made.config, made.left, made.right
    rows, inner = config.rows, made.inner
    if left.c % right.a or left.c * left.d != right.a * right.b:
        raise NotImplementedError(f"backward: {left} and {right} do not fit together")
    for what, count in (("d of the left", left.d), ("a of the right", right.a)):
        if count % (config.cluster * config.warpgroups):
            raise NotImplementedError(
                f"backward: {what} factor, {count}, is not shared out to "
                f"{config.cluster} CTAs of {config.warpgroups} warpgroups"
            )
    for product in (Product(made.activated, rows, left.c, 1), *made.products):
        if product.k % MMA_K or product.mma is None:
            m, n, k = product.m, product.n, product.k
            raise NotImplementedError(
                f"backward: a product ({m} × {k})({k} × {n}) has no tiles of mma.sync"
            )
    if made.batch_first:
        if left.b % config.cluster or inner % 8:
            raise NotImplementedError(
                f"backward: ({left.b}, {inner}) features of dy are not shared out to "
                f"{config.cluster} CTAs in runs of whole 16 bytes"
            )
        if made.dy_slab[1] % config.warpgroups:
            raise NotImplementedError(
                f"backward: {made.dy_slab[1]} panels of dy are not shared out to "
                f"{config.warpgroups} warpgroups"
            )
        for slab in (made.x_slab, made.dy_slab, made.out_slab):
            if tiles.widest_mma(rows, slab[-1]) is None:
                raise NotImplementedError(
                    f"backward: {slab[-1]} features of {rows} rows cannot be moved at "
                    "once"
                )
    if made.smem_bytes > tiles.SMEM_BYTES:
        raise NotImplementedError(
            f"backward: {left} and {right} need {made.smem_bytes:,} bytes of shared "
            f"memory with {config}, more than {tiles.SMEM_BYTES:,}"
        )
    most = _MAX_REGISTERS[config.warpgroups]
    if made.registers > most:
        raise NotImplementedError(
            f"backward: {left} and {right} need {made.registers} registers of each "
            f"thread with {config}, {made.sums} of them for sums; there are {most}"
        )
