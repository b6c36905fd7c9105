"""Features shared out to the CTAs of a cluster, and exchanged between them.

A cluster of S CTAs holds a tile of `rows` vectors of n = outer · inner features in one
of two ways; feature u·inner + v is (u, v).

    by outer    CTA s has (u, v) with u in s-th of S equal ranges: the blocks of factors
                (a, b, c, d) with S | a, of which it applies (a/S, b, c, d)
    by inner    CTA s has (u, v) with v in s-th of S equal ranges: the blocks of factors
                with inner | d and S | inner, of which it applies (a, b, c, d/S)

No factor of such a run needs features of another CTA. From one way to the other, each
CTA pulls from each an (outer/S, inner/S, rows) part: it loads 16 bytes at a time from
that CTA's shared memory and stores them to its own.

In a cluster, `pull_*` is ordered by barriers of its caller's: all CTAs meet between the
last store to `source` and the first pull, and again between the last pull and whatever
next overwrites `source`, or the end of the kernel, after which a CTA's memory is gone.
`load_*` loads only, and leaves it to the caller to store: then `target` can be the
memory of `source`, if all meet in between.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import compat

_WARPGROUP, _WARP = 128, 32  # Threads.
_VECTOR = 8  # 16-bit numbers in the widest access.


@dataclasses.dataclass(frozen=True, slots=True)
class Shares:
    """A tile of features, and how many CTAs share it.

    Attributes:
      outer, inner: of the features; both are multiples of `shares`.
      rows: vectors of the batch, a power of two of at least 16.
      shares: CTAs of the cluster.
      axis: name of the cluster's axis.
      minor: features (u, v, w) that stay together. If it is more than one, refs of
        features by outer have an axis more for them, and of those by inner the axis of
        v holds v·minor + w.
    """

    outer: int
    inner: int
    rows: int
    shares: int
    axis: str
    minor: int = 1

    def __post_init__(self) -> None:
        if self.outer % self.shares or self.inner % self.shares:
            raise NotImplementedError(
                f"cluster: ({self.outer}, {self.inner}) features cannot be shared out "
                f"to {self.shares} CTAs: both must be multiples of that"
            )
        if self.rows < 2 * _VECTOR or self.rows & (self.rows - 1):
            raise NotImplementedError(
                f"cluster: rows must be a power of two of at least {2 * _VECTOR}, got "
                f"{self.rows}"
            )

    @property
    def part(self) -> tuple[int, int]:
        """Features (outer, inner) that one CTA has of another's."""
        return self.outer // self.shares, self.inner // self.shares

    @property
    def tile(self) -> tuple[int, int]:
        """Features (u, v) or, with `minor`, (u, w) that a warpgroup copies at once."""
        outer, inner = self.part
        return _tile(outer, inner if self.minor == 1 else self.minor, self.rows)

    @property
    def tiles(self) -> int:
        """Such tiles that a CTA pulls in all, one or more for each peer.

        Raises:
          NotImplementedError: if they are too small for a warpgroup.
        """
        _layout(*self.tile, self.rows)
        return (
            self.outer * self.inner // self.shares * self.minor // math.prod(self.tile)
        )


def pull_by_inner(
    source: Any, target: Any, shares: Shares, *, warpgroup: Any, warpgroups: int
) -> None:
    """Brings features that CTAs hold by outer to where they are held by inner.

    Args:
      source: ref (outer/S, inner, rows) of every CTA, of a 16-bit type; padding within
        the allocation is cut off by the caller.
      target: ref (outer, inner/S, rows) of this CTA.
      shares: of the tile.
      warpgroup: index of this warpgroup; each pulls parts of its own.
      warpgroups: of the CTA.
    """
    _pull(_ByInner(source, target, shares), warpgroup, warpgroups)


def pull_by_outer(
    source: Any, target: Any, shares: Shares, *, warpgroup: Any, warpgroups: int
) -> None:
    """The way back of `pull_by_inner`.

    Args:
      source: ref (outer, inner/S, rows) of every CTA.
      target: ref (outer/S, inner, rows) of this CTA.
      shares, warpgroup, warpgroups: as there.
    """
    _pull(_ByOuter(source, target, shares), warpgroup, warpgroups)


def load_by_inner(
    source: Any, target: Any, shares: Shares, *, warpgroup: Any, warpgroups: int
) -> list[tuple[Any, jax.Array]]:
    """What `pull_by_inner` copies: parts of `target`, and what to store in each.

    The arguments are those of `pull_by_inner`; `warpgroups` divides `shares.tiles`.
    """
    return _load(_ByInner(source, target, shares), warpgroup, warpgroups)


def load_by_outer(
    source: Any, target: Any, shares: Shares, *, warpgroup: Any, warpgroups: int
) -> list[tuple[Any, jax.Array]]:
    """What `pull_by_outer` copies, as `load_by_inner` returns it."""
    return _load(_ByOuter(source, target, shares), warpgroup, warpgroups)


@dataclasses.dataclass(frozen=True, slots=True)
class _Pull:
    """Where a CTA finds features and brings them."""

    source: Any
    target: Any
    shares: Shares


class _ByInner(_Pull):
    """As `pull_by_inner` takes them."""

    __slots__ = ()

    def refs(self, peer: Any, u: Any, v: Any) -> tuple[Any, Any]:
        """The tile at (u, v) of what a peer has for this CTA, and where it goes."""
        outer, inner = self.shares.part
        theirs = self.source.at[:, pl.ds(_mine(self.shares) * inner, inner)]
        ours = self.target.at[pl.ds(peer * outer, outer)]
        return (
            theirs.at[_in_outer(self.shares, u, v)],
            ours.at[_in_inner(self.shares, u, v)],
        )


class _ByOuter(_Pull):
    """As `pull_by_outer` takes them."""

    __slots__ = ()

    def refs(self, peer: Any, u: Any, v: Any) -> tuple[Any, Any]:
        """The tile at (u, v) of what a peer has for this CTA, and where it goes."""
        outer, inner = self.shares.part
        theirs = self.source.at[pl.ds(_mine(self.shares) * outer, outer)]
        ours = self.target.at[:, pl.ds(peer * inner, inner)]
        return (
            theirs.at[_in_inner(self.shares, u, v)],
            ours.at[_in_outer(self.shares, u, v)],
        )


def _in_inner(shares: Shares, u: Any, v: Any) -> tuple[Any, ...]:
    """Where the tile at (u, v·minor + w) is in a ref of features by inner."""
    tile_outer, tile_inner = shares.tile
    return pl.ds(u, tile_outer), pl.ds(v, tile_inner)


def _in_outer(shares: Shares, u: Any, v: Any) -> tuple[Any, ...]:
    """The same in a ref of features by outer."""
    if shares.minor == 1:
        return _in_inner(shares, u, v)
    tile_outer, tile_inner = shares.tile
    w = jax.lax.rem(v, shares.minor)
    return pl.ds(u, tile_outer), jax.lax.div(v, shares.minor), pl.ds(w, tile_inner)


def _mine(shares: Shares) -> Any:
    return jax.lax.axis_index(shares.axis) if shares.shares > 1 else 0


def _pull(pull: _ByInner | _ByOuter, warpgroup: Any, warpgroups: int) -> None:
    """Copies a part of each CTA's source, in tiles dealt out to the warpgroups."""
    tiles = pull.shares.tiles

    def take(turn: jax.Array, carry: None) -> None:
        index = turn * warpgroups + warpgroup

        def copy() -> None:
            target, value = _load_tile(pull, index)
            target[...] = value

        if tiles % warpgroups:
            pl.when(index < tiles)(copy)
        else:
            copy()
        return carry

    jax.lax.fori_loop(0, pl.cdiv(tiles, warpgroups), take, None)


def _load(
    pull: _ByInner | _ByOuter, warpgroup: Any, warpgroups: int
) -> list[tuple[Any, jax.Array]]:
    """Loads all tiles of a warpgroup."""
    turns, rest = divmod(pull.shares.tiles, warpgroups)
    if rest:
        raise NotImplementedError(
            f"cluster: {pull.shares.tiles} tiles cannot be dealt out to {warpgroups} "
            "warpgroups evenly"
        )
    indices = [turn * warpgroups + warpgroup for turn in range(turns)]
    return [_load_tile(pull, index) for index in indices]


def _load_tile(pull: _ByInner | _ByOuter, index: Any) -> tuple[Any, jax.Array]:
    """Loads one tile; returns where it goes, too."""
    shares = pull.shares
    outer, inner = shares.part
    tile_outer, tile_inner = shares.tile
    per_row = inner * shares.minor // tile_inner
    per_part = outer // tile_outer * per_row
    # Every CTA begins with another one, so that none is asked by all at once.
    peer = jax.lax.rem(
        jax.lax.div(index, per_part) + _mine(shares), jnp.int32(shares.shares)
    )
    within = jax.lax.rem(index, per_part)
    u = jax.lax.div(within, per_row) * tile_outer
    v = jax.lax.rem(within, per_row) * tile_inner
    theirs, ours = pull.refs(peer, u, v)
    if shares.shares > 1:
        theirs = plgpu.cluster_ref(theirs, {shares.axis: peer})
    layout = _layout(tile_outer, tile_inner, shares.rows)
    return ours, plgpu.load(theirs, layout=layout, optimized=False)


def _tile(outer: int, inner: int, rows: int) -> tuple[int, int]:
    """Features (outer, inner) that a warpgroup copies at once: 16 bytes a thread.

    If a part is too small for that, the whole of it, with fewer bytes a thread.
    """
    most = max(1, _WARPGROUP * _VECTOR // rows)
    tile_inner = math.gcd(inner, most)
    return math.gcd(outer, most // tile_inner), tile_inner


@functools.cache
def _layout(outer: int, inner: int, rows: int) -> Any:
    """How an (outer, inner, rows) tile lies in the registers of a warpgroup."""
    vector = min(_VECTOR, outer * inner * rows // _WARPGROUP)
    if vector * _WARP < rows:
        raise NotImplementedError(
            f"cluster: parts of {outer} · {inner} features of {rows} rows are too "
            f"small to be copied by {_WARPGROUP} threads"
        )
    # A warp takes whole vectors of the batch, so that 8 lanes meet all banks once.
    features = _WARP * vector // rows
    warp_inner = math.gcd(inner, features)
    warp_outer = features // warp_inner
    return compat.tiled_layout(
        ((outer, inner, rows), (warp_outer, warp_inner, rows), (1, 1, vector)),
        warp_dims=(-9, -8),
        lane_dims=(-6, -5, -4),
        vector_dim=-1,
    )
