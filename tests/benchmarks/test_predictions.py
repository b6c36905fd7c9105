"""What the chip's model predicts, beside what an H200 took.

The constants of the model that nothing measures by itself were fitted on every other
one of these cases (`predictions.halves`), and are judged here on the others. They are
few: some thirty to fit seven constants, some thirty to judge, half of them XLA's; so
what is judged is that nothing is off by much, not the second digit, and the order in
pairs is that of all cases: of those to judge there are not a dozen.
"""

import dataclasses
import pathlib

import pytest

from benchmarks import predictions, results
from pallas_kernels.common import chip as chips

FOLDER = pathlib.Path(results.__file__).parent / "results"


# The first run of the kernels that there are.
SINCE = "2026-11-28T02:00"


@pytest.fixture(scope="module")
def cases():
    found = predictions.of_launches(FOLDER / "h200_2026-11-28_launches.jsonl")
    for path in sorted(FOLDER.glob("h200_????-??-??.jsonl")):
        rows = results.load(path)
        found += predictions.of_xla(rows)
        found += predictions.of_library(rows, since=SINCE)
    return found


def test_predictions_of_what_was_not_fitted(cases):
    chip = chips.load("NVIDIA H200")
    _, judged = predictions.halves(cases)
    assert len(judged) >= 28
    assert predictions.median_error(judged, chip) <= 0.20
    right, pairs = predictions.order(cases, chip)
    assert pairs >= 40
    assert right >= 0.85 * pairs


def test_predictions_of_the_kernels_alone(cases):
    chip = chips.load("NVIDIA H200")
    ours = [
        case
        for case in cases
        if case.name.startswith(("factor", "prototype", "library"))
    ]
    assert len(ours) >= 20
    assert predictions.median_error(ours, chip) <= 0.20
    assert max(case.error(chip) for case in ours) <= 0.45


def test_the_constants_are_those_that_the_fit_finds(cases):
    chip = chips.load("NVIDIA H200")
    fitted, _ = predictions.halves(cases)
    assert predictions.fit(fitted, chip) == chip


def test_a_fit_comes_near_a_made_up_chip(cases):
    start = chips.load("NVIDIA H200")
    chip = dataclasses.replace(start, trip_seconds=2e-6)
    made_up = [dataclasses.replace(case, seconds=case.predict(chip)) for case in cases]
    found = predictions.fit(made_up, start)
    assert found.trip_seconds > start.trip_seconds
    assert predictions.loss(made_up, found) < 0.3 * predictions.loss(made_up, start)


def test_what_the_library_chose_is_planned_anew():
    rows = results.load(FOLDER / "h200_2026-11-27.jsonl")
    found = predictions.of_library(rows, since="2026-11-27")
    assert len(found) == 22  # Eleven cases, by both implementations.
    assert predictions.of_library(rows, since=SINCE) == []
    chip = chips.load()
    for case in found:
        assert case.predict(chip) > 0.5 * case.problem.count("(") * 1e-6
