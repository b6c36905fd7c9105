"""What changed between two result files."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Literal

import numpy as np

from benchmarks.reporting.groups import Quartiles
from benchmarks.results import Row
from benchmarks.workloads import DENSE_LAYER, Workload

Kind = Literal["slower", "faster", "no longer measured", "wrong"]
REGRESSIONS: tuple[Kind, ...] = ("slower", "no longer measured", "wrong")


@dataclasses.dataclass(frozen=True)
class Change:
    """One measurement that came out differently.

    Attributes:
      device: that both are from.
      workload: the case.
      implementation: its name.
      configuration: of the implementation's kernel, as JSON.
      kind: what happened.
      factor: new time over old, in units of the dense layer where both have been timed
        beside one, else in seconds; None where no new time counts.
      reason: why there is none, or "".
    """

    device: str
    workload: Workload
    implementation: str
    configuration: str
    kind: Kind
    factor: float | None
    reason: str

    @property
    def is_regression(self) -> bool:
        """Whether it is for the worse."""
        return self.kind in REGRESSIONS


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that changed.

    Attributes:
      changes: regressions first, the largest factors first.
      num_compared: measurements that are in both.
      num_missing: measurements of the baseline that the new rows say nothing of.
      num_added: measurements that the baseline says nothing of.
      dense_factor: new seconds of the dense layer over the old ones, median over the
        workloads: how the machine itself changed. None where it is in no common one.
    """

    changes: tuple[Change, ...]
    num_compared: int
    num_missing: int
    num_added: int
    dense_factor: float | None

    @property
    def regressions(self) -> tuple[Change, ...]:
        """The changes for the worse."""
        return tuple(change for change in self.changes if change.is_regression)


_Key = tuple[str, Workload, str, str]


def compare(
    baseline: Iterable[Row], rows: Iterable[Row], *, threshold: float
) -> Comparison:
    """Compares rows with older ones.

    A measurement is slower if its median is by more than `threshold`, and three
    quarters of the new calls took longer than three quarters of the old ones. The dense
    layer, by which the others are measured, is never slower itself.

    Args:
      baseline: the older rows; of those for the same thing the latest run counts.
      rows: the newer rows, likewise.
      threshold: least relative change that counts: 0.1 for 10 %.
    """
    before, after = _latest(baseline), _latest(rows)
    common = [key for key in before if key in after and before[key].measured]
    changes = [
        change
        for key in common
        if (change := _change(key, before[key], after[key], threshold))
    ]
    dense = [
        after[key].median / before[key].median
        for key in common
        if before[key].implementation == DENSE_LAYER and after[key].measured
    ]
    changes.sort(key=lambda c: (not c.is_regression, -(c.factor or float("inf"))))
    return Comparison(
        changes=tuple(changes),
        num_compared=len(common),
        num_missing=sum(bool(before[key].measured) for key in before.keys() - after),
        num_added=sum(bool(after[key].measured) for key in after.keys() - before),
        dense_factor=float(np.median(dense)) if dense else None,
    )


def _latest(rows: Iterable[Row]) -> dict[_Key, Row]:
    return {
        (
            row.environment.device,
            row.workload,
            row.implementation,
            json.dumps(row.configuration, sort_keys=True),
        ): row
        for row in sorted(rows, key=lambda row: row.environment.run)
    }


def _change(key: _Key, before: Row, after: Row, threshold: float) -> Change | None:
    if after.measured is None:
        reason = after.unsupported or after.failed or ""
        return Change(*key, "no longer measured", None, reason)
    if after.is_wrong and not before.is_wrong:
        return Change(*key, "wrong", None, "")
    if (costs := _costs(before, after)) is None:
        return None
    old, new = costs
    factor = new[1] / old[1]
    if factor > 1 + threshold and new[0] > old[2]:
        return Change(*key, "slower", factor, "")
    if factor < 1 / (1 + threshold) and new[2] < old[0]:
        return Change(*key, "faster", factor, "")
    return None


def _costs(before: Row, after: Row) -> tuple[Quartiles, Quartiles] | None:
    """Quartiles of the old and the new time in one unit, None where there is none."""
    assert before.measured and after.measured
    old, new = before.measured, after.measured
    if old.ratio_to_dense_layer and new.ratio_to_dense_layer:
        return old.ratio_to_dense_layer, new.ratio_to_dense_layer
    return (old.seconds, new.seconds) if old.clock == new.clock else None
