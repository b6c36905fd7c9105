"""Rows put side by side: what may be compared, and in which statistic it counts."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.results import Row
from benchmarks.workloads import DENSE_LAYER, Direction, Layout, Workload

Quartiles = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, order=True)
class Stratum:
    """What no statistic mixes: the fields are those of the rows."""

    device: str
    dtype: str
    layout: Layout
    direction: Direction
    batch: int

    @property
    def name(self) -> str:
        """In words, without the device."""
        layout = self.layout.replace("_", " ")
        return f"{self.direction}, {self.dtype}, {layout}, batch {self.batch:,}"

    @property
    def slug(self) -> str:
        """All fields in one word that can name a file."""
        words = f"{self.device} {self.name}".replace(",", "").lower()
        return re.sub(r"[^a-z0-9]+", "_", words).strip("_")


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of one workload on one device, one for each implementation.

    Attributes:
      device: that the rows are from.
      workload: that they share.
      rows: by implementation, the dense layer among them where it was measured.
    """

    device: str
    workload: Workload
    rows: Mapping[str, Row]

    @property
    def stratum(self) -> Stratum:
        """The one that it counts in."""
        work = self.workload
        return Stratum(self.device, work.dtype, work.layout, work.direction, work.batch)

    @property
    def dense(self) -> Row | None:
        """The row of the dense layer, if there is one and it was measured."""
        row = self.rows.get(DENSE_LAYER)
        return row if row and row.measured else None

    @functools.cached_property
    def costs(self) -> dict[str, Quartiles]:
        """Quartiles to compare implementations by, of those with right results.

        They are ratios to the dense layer that was timed beside each, so that rows of
        two runs can be compared; or seconds, where a row has no such ratio.
        """
        right = {
            name: row.measured
            for name, row in self.rows.items()
            if name != DENSE_LAYER and row.measured and not row.is_wrong
        }
        ratios = {
            name: measured.ratio_to_dense_layer
            for name, measured in right.items()
            if measured.ratio_to_dense_layer
        }
        if len(ratios) == len(right):
            return ratios
        return {name: measured.seconds for name, measured in right.items()}

    @property
    def fastest(self) -> str | None:
        """The implementation with the lowest median; None if none has right results."""
        return min(self.costs, key=lambda name: self.costs[name][1], default=None)

    def is_clear(self, name: str) -> bool:
        """Whether three quarters of its calls beat three quarters of any other's."""
        others = (cost for other, cost in self.costs.items() if other != name)
        return all(self.costs[name][2] < cost[0] for cost in others)

    def over_dense(self, name: str) -> float | None:
        """Speed-up over the dense layer, by the median ratio; None if not known."""
        row = self.rows.get(name)
        if row is None or row.measured is None or row.is_wrong:
            return None
        ratio = row.measured.ratio_to_dense_layer
        return 1 / ratio[1] if ratio else None

    def over_others(self, name: str) -> float | None:
        """Speed-up over the best other implementation; None if there is none."""
        if name not in self.costs or len(self.costs) < 2:
            return None
        best = min(cost[1] for other, cost in self.costs.items() if other != name)
        return best / self.costs[name][1]


def groups(rows: Iterable[Row]) -> list[Group]:
    """Puts rows side by side.

    Of rows with the same device, workload, implementation and configuration, the one
    of the latest run counts; of several configurations the one with right results and
    the lowest median.
    """
    latest: dict[tuple[str, Workload, str], dict[str, Row]] = {}
    for row in sorted(rows, key=lambda row: row.environment.run):
        key = (row.environment.device, row.workload, row.implementation)
        setting = json.dumps(row.configuration, sort_keys=True)
        latest.setdefault(key, {})[setting] = row
    found: dict[tuple[str, Workload], dict[str, Row]] = {}
    for (device, workload, name), settings in latest.items():
        best = min(settings.values(), key=lambda row: (row.is_wrong, row.median))
        found.setdefault((device, workload), {})[name] = best
    return [Group(device, work, members) for (device, work), members in found.items()]


def strata(found: Sequence[Group]) -> dict[Stratum, list[Group]]:
    """The groups of each stratum, in a fixed order."""
    split: dict[Stratum, list[Group]] = {}
    for group in found:
        split.setdefault(group.stratum, []).append(group)
    return dict(sorted(split.items()))


def implementations(found: Sequence[Group]) -> list[str]:
    """Their names, in the order in which they first come, without the dense layer."""
    names = dict.fromkeys(name for group in found for name in group.rows)
    return [name for name in names if name != DENSE_LAYER]
