"""How threads share the work of bringing weights into order; plain Python integers.

A factor w (a, b, c, d) has neighbouring blocks interleaved: the weights of one output
and one input lie next to one another for all d blocks. The product wants each block by
itself, in rows of inputs. A warpgroup takes a *unit* at a time: some outputs, a panel
of inputs, and all blocks that are wanted. A thread loads neighbours along d, up to 16
bytes, and stores each where its block is.
"""

import dataclasses
import math
from collections.abc import Iterator

from pallas_kernels import tiles

HELD = 64  # Weights that a thread holds at a time, where sizes allow it.
_MOST_HELD = 128


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """So many parts of one length, from part number `first` on."""

    first: int
    count: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class Units:
    """Units of one size.

    Attributes:
      parts: of the outputs, one part for each warpgroup's share of a tile.
      panels: of the inputs; a unit has all of a panel.
      rows: outputs of a unit; several units make a part.
      vector: neighbours in memory that one load takes.
      warps: along rows and columns of a unit; others repeat the work.
      lanes: of a warp, the same.
    """

    parts: Segment
    panels: Segment
    rows: int
    vector: int
    warps: tuple[int, int]
    lanes: tuple[int, int]

    @property
    def held(self) -> int:
        """Weights of a unit that a thread holds at a time."""
        (down, across), lanes = self.warps, self.lanes
        repeats = 128 // (down * across * lanes[0] * lanes[1])
        return self.rows * self.panels.length * self.vector * repeats // 128

    @property
    def count(self) -> int:
        """How many units there are."""
        per_part = self.parts.length // self.rows
        return self.parts.count * per_part * self.panels.count


def units(
    rows: int, part: int, columns: int, panel: int, run: int, itemsize: int
) -> tuple[Units, ...] | None:
    """Cuts blocks into units.

    Args:
      rows, part: outputs, and into how many at a time they are cut.
      columns, panel: the same of the inputs.
      run: weights next to one another that are wanted, which begin at multiples of it.
      itemsize: bytes of a weight.

    Returns:
      Units of all sizes that occur; None if sizes are so odd that few threads could
      work and each would hold too much.
    """
    vector = math.gcd(run, 16 // itemsize)
    found = tuple(
        _units(some_rows, some_columns, vector)
        for some_rows in _segments(rows, part)
        for some_columns in _segments(columns, panel)
    )
    return found if all(one.held <= _MOST_HELD for one in found) else None


def _units(parts: Segment, panels: Segment, vector: int) -> Units:
    # Along the inputs first, which are nearest to one another in memory.
    lanes_across = math.gcd(panels.length, 32)
    lanes_down = math.gcd(parts.length, 32 // lanes_across)
    warps_down = math.gcd(parts.length // lanes_down, 4)
    warps_across = math.gcd(panels.length // lanes_across, 4 // warps_down)
    warps, lanes = (warps_down, warps_across), (lanes_down, lanes_across)

    def of(rows: int) -> Units:
        return Units(parts, panels, rows, vector, warps, lanes)

    # Rows are swizzled by eights, which is where units may begin.
    down = warps_down * lanes_down
    sizes = [down * n for n in tiles.divisors(parts.length // down)]
    choices = [of(n) for n in sizes if n == parts.length or n % 8 == 0]
    return max(
        (one for one in choices if one.held <= HELD),
        key=lambda one: one.rows,
        default=choices[0],
    )


def _segments(extent: int, part: int) -> Iterator[Segment]:
    """An extent in whole parts, and what is left."""
    count, rest = divmod(extent, part)
    if count:
        yield Segment(0, count, part)
    if rest:
        yield Segment(count, 1, rest)
