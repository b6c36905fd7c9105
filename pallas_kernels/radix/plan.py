"""How the radix kernel cuts a chain of small factors into passes; plain integers.

*Passes.* Several neighbouring factors are applied between one read and one write of
the tile. A factor (a, b, c, d) is block diagonal, so factors whose a's have a common
divisor A and whose d's have a common divisor D act on A·D independent units: unit
(i, k) holds the features (i·C + m)·D + k, m < C, and within it they are the factors
(a/A, b, c, d/D). One thread applies them to the C features in registers.

*Digits.* A feature is written in a mixed radix, (…, i, m, k), in which every pass has
digits of its own for m; the other digits number its units. In shared memory each digit
is an axis, so what a thread reads and writes is always a plain slice.

*Threads.* Which axes the lanes of a warp run along decides how many accesses to one
bank collide, and how many vectors share a weight that a thread has loaded. All splits
of 32 lanes over the axes are tried, and the cheapest by count of wavefronts is taken;
so is the padding of the intermediate tile.
"""

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pallas_kernels.common.tiles import MAX_COPY, SMEM_ALIGNMENT, allocated

MAX_FEATURES = 16  # Of a unit, in the registers of a thread.
MAX_WEIGHTS = 64  # The same.
_MAX_CUTS = 2  # Ways to cut a chain that are looked at closely.
_TMA_BYTES = 16  # The innermost extent of a TMA copy is a multiple of this.
_VECTOR_BYTES = 16  # That one load of a thread takes at most.
_TMA_ALIGNMENT = 128  # Of where it writes to in shared memory.
# Elements that may be added to an innermost axis. Four lanes that move neighbouring
# numbers of 4 bytes do so by ldmatrix or stmatrix, whose rows begin at whole 16 bytes.
_INNER_PADDINGS = (0, 4)
_BANKS, _BANK_BYTES = 32, 4

Shape = tuple[int, int, int, int]
Lanes = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Pass:
    """Factors that are applied between one read and one write of the tile.

    Attributes:
      indices: of the factors in the chain, the one that is applied first in front.
      factors: their patterns within a unit.
      a, d: units before and after m in a feature's number; there are a·d of them.
      c, b: features that a unit takes and gives.
    """

    indices: tuple[int, ...]
    factors: tuple[Shape, ...]
    a: int
    b: int
    c: int
    d: int

    @property
    def num_weights(self) -> int:
        """Weights of a unit."""
        return sum(math.prod(shape) for shape in self.factors)

    @property
    def widest(self) -> int:
        """Most features that a unit has between two of its factors."""
        return max(self.c, *(a * b * d for a, b, _, d in self.factors))


@dataclasses.dataclass(frozen=True, slots=True)
class Tile:
    """A tile of vectors in shared memory, an axis for each digit of a feature.

    Attributes:
      digits: their sizes, the most significant first.
      rows: vectors.
      itemsize: bytes of an element.
      rows_last: whether the vectors are the innermost axis and not the outermost.
      padding: elements added to each digit's axis, and to the axis of the rows.
    """

    digits: tuple[int, ...]
    rows: int
    itemsize: int
    rows_last: bool = False
    padding: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the allocation, padding included."""
        sizes = (*self.digits, self.rows)
        padding = self.padding or (0,) * len(sizes)
        *digits, rows = (n + more for n, more in zip(sizes, padding, strict=True))
        return (*digits, rows) if self.rows_last else (rows, *digits)

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one to the next, of rows and then of each digit."""
        shape = self.shape
        steps = [self.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return (steps[-1], *steps[:-1]) if self.rows_last else tuple(steps)

    @property
    def num_bytes(self) -> int:
        """Bytes of shared memory."""
        return self.itemsize * math.prod(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class Access:
    """How a unit's features lie in a tile.

    Attributes:
      outer, middle, inner: digits before m, of m, and after m.
      vector: features that one instruction moves; the last digit of m, or 1.
    """

    outer: tuple[int, ...]
    middle: tuple[int, ...]
    inner: tuple[int, ...]
    vector: int

    @property
    def units(self) -> tuple[int, ...]:
        """Sizes of the digits that number the units."""
        return self.outer + self.inner


@dataclasses.dataclass(frozen=True, slots=True)
class Threads:
    """How the units and rows of a pass are dealt out; axes are rows, then unit digits.

    Attributes:
      lanes: of a warp, along each axis; 32 in all.
      warps: of a warpgroup; 4 in all.
      groups: warpgroups.
      rows: vectors that a thread holds at a time.
    """

    lanes: tuple[int, ...]
    warps: tuple[int, ...]
    groups: tuple[int, ...]
    rows: int

    @property
    def block(self) -> tuple[int, ...]:
        """What a warpgroup has in its registers at a time, along each axis."""
        rows, *units = map(math.prod, zip(self.lanes, self.warps, strict=True))
        return (rows * self.rows, *units)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A pass with everything the kernel needs to know of it.

    Attributes:
      work: the pass.
      source, target: index of the tile it reads and of the one it writes.
      reads, writes: how a unit's features lie there.
      threads: who does it.
      turns: how often a warpgroup takes a block, along each axis.
      wavefronts: of shared memory, and of weights if they are loaded for each tile, for
        a whole tile: an estimate.
    """

    work: Pass
    source: int
    target: int
    reads: Access
    writes: Access
    threads: Threads
    turns: tuple[int, ...]
    wavefronts: int


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a chain that the kernel needs to know beforehand.

    Attributes:
      tiles: in shared memory; the first holds x and the last y.
      steps: the passes, in order.
    """

    tiles: tuple[Tile, ...]
    steps: tuple[Step, ...]

    def smem_bytes(self, stages: int) -> int:
        """Bytes of shared memory of one CTA, each allocation in whole kilobytes."""
        parts = [tile.num_bytes for tile in self.tiles]
        parts[0] *= stages
        parts += [8 * stages, 8]  # Barriers.
        return allocated(parts)

    @property
    def keeps_weights(self) -> bool:
        """Whether weights that were loaded once serve all tiles of a CTA."""
        return len(self.steps) == 1 and math.prod(self.steps[0].turns[1:]) == 1

    @property
    def wavefronts(self) -> int:
        """Clocks for which a tile keeps the memory pipeline of an SM, without TMA."""
        return sum(step.wavefronts for step in self.steps)


@functools.lru_cache(maxsize=256)
def plan(
    shapes: tuple[Shape, ...],
    *,
    rows: int,
    warpgroups: int,
    stages: int,
    itemsizes: tuple[int, int],
    rows_last: bool,
    smem_bytes: int,
) -> Plan:
    """Cuts a chain into passes.

    Args:
      shapes: patterns (a, b, c, d), in the order of the matrix product.
      rows: vectors in a tile.
      warpgroups: in a CTA, a power of two.
      stages: tiles of x at a time.
      itemsizes: bytes of an element of x and of y.
      rows_last: whether x and y are (features, batch) and not the other way.
      smem_bytes: of shared memory that a CTA may take.

    Raises:
      NotImplementedError: if the chain does not fit the kernel; the message says why.
    """
    plans = []
    reason = None
    grain = 1 if rows_last else _TMA_BYTES // min(itemsizes)
    for works in _cuts(shapes, grain):
        try:
            tiles = _tiles(works, rows, itemsizes, rows_last, grain)
            plans.append(_plan(works, tiles, warpgroups, stages, smem_bytes))
        except NotImplementedError as error:
            reason = reason or error
    if not plans:
        assert reason is not None
        raise reason
    return min(plans, key=lambda plan: plan.wavefronts)


def _tiles(
    works: Sequence[Pass],
    rows: int,
    itemsizes: tuple[int, int],
    rows_last: bool,
    grain: int,
) -> list[Tile]:
    """The tiles before, between and after the passes, not padded yet.

    The intermediates are laid out like x and y.
    """
    if rows_last and any(rows * itemsize % _TMA_BYTES for itemsize in itemsizes):
        raise NotImplementedError(
            f"radix: TMA moves runs of whole {_TMA_BYTES} bytes, but feature-first "
            f"tiles of {rows} rows have runs of {rows * min(itemsizes)}"
        )
    digits = _digits(works, grain)
    return [
        Tile(digits[0], rows, itemsizes[0], rows_last),
        *(Tile(made, rows, 4, rows_last) for made in digits[1:-1]),
        Tile(digits[-1], rows, itemsizes[1], rows_last),
    ]


def _plan(
    works: Sequence[Pass],
    made: Sequence[Tile],
    warpgroups: int,
    stages: int,
    smem_bytes: int,
) -> Plan:
    """The plan with these passes and the tiles around them."""
    tiles = [made[0]]
    ends = []
    for work, tile in zip(works[:-1], made[1:-1], strict=True):
        source = len(tiles) - 1
        in_place = source > 0 and work.b == work.c and tiles[source] == tile
        if not in_place:
            tiles.append(tile)
        ends.append((work, source, len(tiles) - 1))
    ends.append((works[-1], len(tiles) - 1, len(tiles)))
    tiles.append(made[-1])
    needed = Plan(tuple(tiles), ()).smem_bytes(stages)
    if needed > smem_bytes:
        widest = max(math.prod(tile.digits) for tile in tiles)
        raise NotImplementedError(
            f"radix: {len(tiles)} tiles of {tiles[0].rows} rows of up to {widest} "
            f"features need {needed:,} bytes of shared memory, more than {smem_bytes:,}"
        )
    if stages > 1 and tiles[0].num_bytes % _TMA_ALIGNMENT:
        raise NotImplementedError(
            f"radix: TMA writes to multiples of {_TMA_ALIGNMENT} bytes, but of "
            f"{stages} stages each takes {tiles[0].num_bytes}"
        )
    for index in range(1, len(tiles) - 1):
        left = smem_bytes - Plan(tuple(tiles), ()).smem_bytes(stages)
        most = tiles[index].num_bytes + left // SMEM_ALIGNMENT * SMEM_ALIGNMENT
        tiles[index] = _padded(tiles, index, ends, warpgroups, most)
    steps = (_step(*end, tiles, warpgroups) for end in ends)
    return Plan(tuple(tiles), tuple(steps))


@functools.lru_cache(maxsize=256)
def _cuts(shapes: tuple[Shape, ...], grain: int) -> tuple[tuple[Pass, ...], ...]:
    """Ways to cut a chain in passes, those that move the fewest features in front.

    Shortest paths over the cuts between factors, from the one applied first.
    """
    count = len(shapes)
    paths: list[list[tuple[float, tuple[Pass, ...]]]] = [[(0.0, ())]]
    for stop in range(1, count + 1):
        reached = []
        for start in range(stop):
            indices = tuple(count - 1 - i for i in range(start, stop))
            work = _unit(shapes, indices, grain) if paths[start] else None
            if work is not None:
                moved = work.a * work.d * (work.c + work.b)
                # Of cuts that move as much, even ones, which need fewer registers.
                cost = moved * (1 + 1e-6 * work.num_weights**2)
                reached += [
                    (spent + cost, (*done, work)) for spent, done in paths[start]
                ]
        paths.append(sorted(reached, key=lambda path: path[0])[:_MAX_CUTS])
    if not paths[-1]:
        stuck = count - 1 - max(i for i, found in enumerate(paths) if found)
        raise NotImplementedError(
            f"radix: factors[{stuck}] of shape {tuple(shapes[stuck])} does not fit a "
            f"thread's registers, which hold {MAX_FEATURES} features and "
            f"{MAX_WEIGHTS} weights; it would hold blocks that make up runs of a "
            f"multiple of {grain} features"
        )
    return tuple(works for _, works in paths[-1])


def _unit(shapes: Sequence[Shape], indices: Sequence[int], grain: int) -> Pass | None:
    """The smallest units of some factors, or None if a thread cannot hold one.

    TMA wants a last digit of a multiple of `grain`, so m neither starts nor ends below.
    """
    chosen = [shapes[index] for index in indices]
    common_a = math.gcd(*(shape[0] for shape in chosen))
    common_d = math.gcd(*(shape[3] for shape in chosen))
    for d, a in itertools.product((common_d, 1), _divisors_down(common_a)):
        factors = tuple((fa // a, fb, fc, fd // d) for fa, fb, fc, fd in chosen)
        c = math.prod(factors[0]) // factors[0][1]
        b = math.prod(factors[-1]) // factors[-1][2]
        if (d % grain and d > 1) or d * b % grain or d * c % grain:
            continue
        work = Pass(tuple(indices), factors, a, b, c, d)
        if work.widest <= MAX_FEATURES and work.num_weights <= MAX_WEIGHTS:
            return work
    return None


def _divisors_down(n: int) -> Iterator[int]:
    return (i for i in range(n, 0, -1) if n % i == 0)


def _digits(works: Sequence[Pass], grain: int) -> list[tuple[int, ...]]:
    """Digits of the features before, between and after the passes.

    None is more than TMA moves along one axis, and the last is a multiple of `grain`.

    Each is a list of places, each dividing the next. A pass needs the places where m
    starts and ends; and a place outside m is one on both sides of the pass, since the
    units are numbered alike there.
    """
    sizes = [work.a * work.c * work.d for work in works]
    sizes.append(works[-1].a * works[-1].b * works[-1].d)
    places: list[set[int]] = [{1, size} for size in sizes]
    for index, work in enumerate(works):
        places[index] |= {work.d, work.d * work.c}
        places[index + 1] |= {work.d, work.d * work.b}
    before: list[set[int]] = []
    while before != places:
        before = [set(found) for found in places]
        for index, work in enumerate(works):
            into, out = work.d * work.c, work.d * work.b
            for here, there, this, that in (
                (places[index], places[index + 1], into, out),
                (places[index + 1], places[index], out, into),
            ):
                there |= {place for place in here if place <= work.d}
                there |= {place // this * that for place in here if place % this == 0}
                if any(place > this and place % this for place in here):
                    raise _no_digits(works)
        for found in places:
            for place, following in itertools.pairwise(sorted(found)):
                if following % place:
                    raise _no_digits(works)
                extent = following // place
                if extent > MAX_COPY:
                    found.add(place * _split(extent, grain if place == 1 else 1))
    return [
        tuple(high // low for low, high in itertools.pairwise(sorted(found)))[::-1]
        for found in places
    ]


def _no_digits(works: Sequence[Pass]) -> NotImplementedError:
    return NotImplementedError(
        "radix: the blocks of the factors overlap in part, so that no mixed radix "
        f"tells the features of all of them: {[work.factors for work in works]}"
    )


def _split(extent: int, unit: int) -> int:
    """The largest divisor that TMA moves along one axis, a multiple of `unit`."""
    fits = (n for n in range(MAX_COPY, 1, -1) if extent % n == 0 and n % unit == 0)
    found = next(fits, None)
    if found is None:
        raise NotImplementedError(
            f"radix: {extent} features have no divisor up to {MAX_COPY}, which is what "
            f"TMA moves along one axis, that is a multiple of {unit}"
        )
    return found


def access(tile: Tile, features: int, inner: int) -> Access:
    """How units of `features` features, `inner` apart, lie in a tile."""
    place = 1
    outer: list[int] = []
    middle: list[int] = []
    last: list[int] = []
    for digit in reversed(tile.digits):
        if place < inner:
            last.insert(0, digit)
        elif place < inner * features:
            middle.insert(0, digit)
        else:
            outer.insert(0, digit)
        place *= digit
    vector = 1
    if middle and not last and not tile.rows_last:
        padded = bool(tile.padding) and tile.padding[len(tile.digits) - 1] > 0
        if not padded and middle[-1] in (2, 4, 8, 16):
            vector = middle[-1]
    return Access(tuple(outer), tuple(middle), tuple(last), vector)


def _padded(
    tiles: Sequence[Tile],
    index: int,
    ends: Sequence[tuple[Pass, int, int]],
    warpgroups: int,
    most: int,
) -> Tile:
    """The tile with the padding that costs its passes the fewest wavefronts."""
    tile = tiles[index]
    touching = [end for end in ends if index in end[1:]]
    axes: list[tuple[int, ...]] = [(0, 1)] * len(tile.digits)
    if tile.rows_last:
        axes = [*axes, _INNER_PADDINGS]
    else:
        axes = [*axes[:-1], _INNER_PADDINGS, (0,)]
    options = []
    for padding in itertools.product(*axes):
        other = dataclasses.replace(tile, padding=padding)
        if other.num_bytes > most:
            continue
        changed = (*tiles[:index], other, *tiles[index + 1 :])
        steps = (_step(*end, changed, warpgroups) for end in touching)
        options.append((sum(step.wavefronts for step in steps), other.num_bytes, other))
    return min(options, key=lambda option: option[:2])[2]


def _step(
    work: Pass, source: int, target: int, tiles: Sequence[Tile], warpgroups: int
) -> Step:
    reads = access(tiles[source], work.c, work.d)
    writes = access(tiles[target], work.b, work.d)
    weights = _weights(work, reads, tiles[0].itemsize)
    threads, wavefronts = _deal(
        *(work, reads, writes, tiles[source], tiles[target], weights, warpgroups),
        is_alone=len(tiles) == 2,
    )
    sizes = (tiles[source].rows, *reads.units)
    taken = zip(sizes, threads.block, threads.groups, strict=True)
    turns = tuple(size // (block * groups) for size, block, groups in taken)
    return Step(work, source, target, reads, writes, threads, turns, wavefronts)


def _deal(
    work: Pass,
    reads: Access,
    writes: Access,
    source: Tile,
    target: Tile,
    weights: Callable[[np.ndarray], np.ndarray],
    warpgroups: int,
    *,
    is_alone: bool,
) -> tuple[Threads, int]:
    """The cheapest way to spread a pass over the threads, and its wavefronts.

    Weights are loaded for each tile, unless there is no other pass, and a thread has
    but one unit.
    """
    sizes = (source.rows, *reads.units)
    ways, places = _lanes(sizes)
    moves = _moves(work.c, reads, source, places) + _moves(
        work.b, writes, target, places
    )
    loads = weights(places)
    total = math.prod(sizes) // 32
    best: tuple[float, int, Threads] | None = None
    for way in np.argsort(moves, kind="stable").tolist():
        if best is not None and total * moves[way] > best[0]:
            break  # Weights come on top.
        lanes = ways[way]
        left = [size // n for size, n in zip(sizes, lanes, strict=True)]
        # A weight serves all rows of a thread, so rows are split last.
        warps = _spread(4, left)
        groups = _spread(warpgroups, left)
        if warps is None or groups is None:
            continue
        rows_of_thread = left[0]
        cost = int(moves[way]) * total
        if not is_alone or any(n > 1 for n in left[1:]):
            cost += int(loads[way]) * total // rows_of_thread
        if best is None or (cost, way) < best[:2]:
            held = math.gcd(rows_of_thread, max(1, 16 // work.widest))
            best = cost, way, Threads(lanes, warps, groups, held)
    if best is None:
        raise NotImplementedError(
            f"radix: {128 * warpgroups} threads cannot share {source.rows} rows of "
            f"{'·'.join(map(str, reads.units)) or '1'} blocks evenly; try more rows or "
            "fewer warpgroups"
        )
    return best[2], int(best[0])


@functools.lru_cache(maxsize=256)
def _lanes(sizes: tuple[int, ...]) -> tuple[tuple[Lanes, ...], np.ndarray]:
    """Ways to deal 32 lanes out over axes, and where each of them is: (ways, 32, axes).

    Lanes are numbered with the last axis fastest.
    """
    ways = _splits(32, sizes)
    counts = np.array(ways, np.int64).reshape(-1, 1, len(sizes))
    later = np.cumprod(counts[..., ::-1], axis=-1)[..., ::-1] // counts
    return ways, np.arange(32)[:, None] // later % counts


@functools.lru_cache(maxsize=4096)
def _splits(count: int, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """All ways to write `count`, a power of two, as a product of divisors of sizes."""
    if not sizes:
        return ((),) if count == 1 else ()
    return tuple(
        (*rest, last)
        for last in (2**i for i in range(count.bit_length()))
        if sizes[-1] % last == 0
        for rest in _splits(count // last, sizes[:-1])
    )


def _spread(count: int, left: list[int]) -> tuple[int, ...] | None:
    """Splits `count` over what is left of the axes, rows last; takes it from `left`."""
    taken = [1] * len(left)
    for axis in (*range(1, len(left)), 0):
        while count > 1 and left[axis] % 2 == 0:
            taken[axis] *= 2
            left[axis] //= 2
            count //= 2
    return tuple(taken) if count == 1 else None


def _moves(features: int, access: Access, tile: Tile, places: np.ndarray) -> np.ndarray:
    """Wavefronts of one warp that moves a row of each of its units, by its lanes."""
    rows, *digits = tile.strides
    outer, middle = len(access.outer), len(access.middle)
    strides = (rows, *digits[:outer], *digits[outer + middle :])
    width = access.vector * tile.itemsize
    times = features // access.vector * max(1, width // 16)
    return times * wavefronts(places @ np.array(strides), min(width, 16))


def load_vector(count: int, itemsize: int) -> int:
    """How many of a unit's weights, if they follow one another, one load takes."""
    return math.gcd(count, _VECTOR_BYTES // itemsize)


def _weights(
    work: Pass, access: Access, itemsize: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Clocks for which a warp loads the weights of its units, by its lanes.

    They come through the cache that shared memory is a part of; it is taken to have the
    same banks.
    """

    def clocks(places: np.ndarray) -> np.ndarray:
        total = np.zeros(len(places), np.int64)
        for shape, times in collections.Counter(work.factors).items():
            count = math.prod(shape)
            digits = (*access.outer, count, *access.inner)
            strides = [itemsize * math.prod(digits[i:]) for i in range(1, len(digits))]
            strides.append(itemsize)
            del strides[len(access.outer)]
            vector = 1 if access.inner else load_vector(count, itemsize)
            addresses = places @ np.array([0, *strides])
            total += (
                times * (count // vector) * wavefronts(addresses, vector * itemsize)
            )
        return total

    return clocks


def wavefronts(addresses: np.ndarray, width: int) -> np.ndarray:
    """Clocks that shared memory takes for accesses of a warp.

    Args:
      addresses: bytes, (accesses, 32): of each lane.
      width: bytes that each lane accesses: up to 16.

    Returns:
      (accesses,): 1 if no two lanes want different words of a bank and all together no
      more than 128 bytes; lanes that access more are served in as many parts.
    """
    if not len(addresses):
        return np.zeros(0, np.int64)
    together = 32 // max(1, width // _BANK_BYTES)
    # Aligned vectors are the same or apart, so their first words tell them.
    words = np.sort(addresses.reshape(-1, together) // _BANK_BYTES, axis=1)
    fresh = np.ones(words.shape)
    fresh[:, 1:] = words[:, 1:] != words[:, :-1]
    banks = np.arange(len(words))[:, None] * _BANKS + words % _BANKS
    counts = np.bincount(banks.ravel(), fresh.ravel(), len(words) * _BANKS)
    most = counts.reshape(len(addresses), -1, _BANKS).max(axis=2)
    clocks: np.ndarray = most.sum(axis=1).astype(np.int64)
    return clocks
