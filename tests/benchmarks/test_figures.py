import pytest

from benchmarks import figures
from benchmarks.workloads import DENSE_LAYER
from tests.benchmarks.test_results import row


@pytest.mark.parametrize(
    "rows",
    [
        [row(DENSE_LAYER), row("bmm"), row("bcsr", measured=None, unsupported="no")],
        [row(DENSE_LAYER), row("pallas", measured=None, unsupported="no")],
        [row(DENSE_LAYER), row("bmm"), row("bmm", work={"batch": 9})],
    ],
)
def test_compare(tmp_path, rows):
    path = tmp_path / "plot.png"
    figures.compare(rows, path)
    assert path.read_bytes().startswith(b"\x89PNG")
