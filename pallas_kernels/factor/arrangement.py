"""How weights come to lie in shared memory as a product reads them.

Plain Python integers. They arrive in one of three ways:

*fetched*   w is multiplied as it is, and TMA copies it: d = 1, or several blocks at a
            time.
*arranged*  Threads read w as given and write each weight where it belongs, once for as
            long as it stays in shared memory.
*ordered*   XLA writes them in order before the launch, and TMA copies them.

A factor w (a, b, c, d) has neighbouring blocks interleaved: the weights of one output
and one input lie next to one another for all d blocks. The product wants each block by
itself, in rows of inputs. To arrange one, a warpgroup takes a *unit* at a time: some
outputs and a panel of inputs.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from pallas_kernels.common import tiles
from pallas_kernels.common.chip import SECTOR

Arrival = Literal["fetched", "arranged", "ordered"]

HELD = 64  # Weights that a thread holds at a time, where sizes allow it.
_MOST_HELD = 128


def arrival(factor: tiles.Factor, *, as_given: bool, by_cta: bool) -> Arrival:
    """How the weights of a factor arrive.

    Blocks that are embedded in larger ones lie on their diagonals, which is left to
    XLA.

    Args:
      factor: the factor, with the blocks of all CTAs.
      as_given: whether TMA can copy w as the kernel takes it: rows of d = 1, or several
        blocks at a time.
      by_cta: whether CTAs can arrange them otherwise.
    """
    if factor.merged_a * factor.merged_d > 1:
        return "ordered"
    if as_given:
        return "fetched"
    return "arranged" if by_cta else "ordered"


def run_bytes(d: int, itemsize: int) -> int:
    """Bytes of L2 that are read for one of d neighbours: a sector, if there are."""
    return min(itemsize * d, SECTOR)


def rounds(weights: int, warpgroups: int) -> int:
    """How often warpgroups that arrange so many weights wait for what they load."""
    return -(-weights // (128 * warpgroups * HELD))


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
      warps: along rows and columns of a unit; others repeat the work.
      lanes: of a warp, the same.
    """

    parts: Segment
    panels: Segment
    rows: int
    warps: tuple[int, int]
    lanes: tuple[int, int]

    @property
    def held(self) -> int:
        """Weights of a unit that a thread holds at a time."""
        (down, across), lanes = self.warps, self.lanes
        repeats = 128 // (down * across * lanes[0] * lanes[1])
        return self.rows * self.panels.length * repeats // 128

    @property
    def count(self) -> int:
        """How many units there are."""
        per_part = self.parts.length // self.rows
        return self.parts.count * per_part * self.panels.count


def units(rows: int, part: int, columns: int, panel: int) -> tuple[Units, ...] | None:
    """Cuts a block into units.

    Args:
      rows, part: outputs, and into how many at a time they are cut.
      columns, panel: the same of the inputs.

    Returns:
      Units of all sizes that occur; None if sizes are so odd that few threads could
      work and each would hold too much.
    """
    found = tuple(
        units_of(some_rows, some_columns)
        for some_rows in _segments(rows, part)
        for some_columns in _segments(columns, panel)
    )
    return found if all(one.held <= _MOST_HELD for one in found) else None


def units_of(parts: Segment, panels: Segment) -> Units:
    """Cuts segments into units, as large as leaves each thread `HELD` weights."""
    # Along the inputs first, which are nearest to one another in memory.
    lanes_across = math.gcd(panels.length, 32)
    lanes_down = math.gcd(parts.length, 32 // lanes_across)
    warps_down = math.gcd(parts.length // lanes_down, 4)
    warps_across = math.gcd(panels.length // lanes_across, 4 // warps_down)
    warps, lanes = (warps_down, warps_across), (lanes_down, lanes_across)

    def of(rows: int) -> Units:
        return Units(parts, panels, rows, warps, lanes)

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
