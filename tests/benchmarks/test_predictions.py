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


@pytest.fixture(scope="module")
def cases():
    launches = predictions.of_launches(FOLDER / "h200_2026-11-28_launches.jsonl")
    rows = results.load(FOLDER / "h200_2026-11-27.jsonl")
    return [*launches, *predictions.of_xla(rows)]


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
    ours = [case for case in cases if case.name.startswith(("factor", "prototype"))]
    assert len(ours) >= 20
    assert predictions.median_error(ours, chip) <= 0.20
    assert max(case.error(chip) for case in ours) <= 0.45


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("rate", ["trip_seconds", "hbm", "overlap"])
def test_another_constant_predicts_the_fitted_half_less_well(cases, rate, factor):
    chip = chips.load("NVIDIA H200")
    fitted, _ = predictions.halves(cases)
    other = dataclasses.replace(chip, **{rate: factor * getattr(chip, rate)})

    def loss(chip):
        return sum(case.error(chip) for case in fitted)

    assert loss(chip) < loss(other)
