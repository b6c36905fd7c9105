import dataclasses

from rich.console import Console

from benchmarks import ceilings, kernel_checks, suite_cases, suite_report, targets
from benchmarks.workloads import DTYPES, LAYOUTS
from tests.benchmarks.test_results import ENVIRONMENT, row

CEILINGS = [
    ceilings.Row(ENVIRONMENT, "copy", "float32", 4, 0, (4.0, 4.0, 4.0), "wall"),
    ceilings.Row(ENVIRONMENT, "matmul", "bfloat16", 0, 8, (8.0, 8.0, 8.0), "wall"),
]


def made(check, kernels=("factor",), **changes):
    fields = {"error": None, "unsupported": None, "failed": None, "is_lost": False}
    return kernel_checks.Row(
        ENVIRONMENT, "s", check, kernels, 1.0, **{**fields, **changes}
    )


def text(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return [" ".join(line.split()) for line in capture.get().splitlines()]


CHECKS = kernel_checks.checks(DTYPES, list(LAYOUTS))
LAST, FIRST = CHECKS[:2]  # In bfloat16.


def test_checks_are_counted_by_form():
    rows = [
        made(LAST, error=0.5),
        made(LAST, error=0.25),
        made(LAST, error=3.0, failed="far off"),
        made(FIRST, failed="it died", is_lost=True),
        made(FIRST, None, unsupported="too wide"),
    ]
    lines = text(suite_report.checks(rows))
    assert "factor 2 1! 1x 3.00" in lines
    assert any("5 checks, 1 of them refused" in line for line in lines)


def test_what_never_ran():
    ran = [made(LAST, ("factor", "radix"), error=0.5)]
    rows = [*ran, made(FIRST, failed="it died", is_lost=True)]
    lines = text(suite_report.never_run(rows))
    assert "factor float32, float16 float32, bfloat16, float16" in lines
    assert "radix float32, float16 float32, bfloat16, float16" in lines
    every = [
        made(one, ("factor",), error=0.5)
        for one in CHECKS
        if one.workload.direction == "forward"
    ]
    lines = text(suite_report.never_run(every))
    assert not any(line.startswith("factor") for line in lines)


def test_committed_checks_are_read(tmp_path, monkeypatch):
    assert all(row.form for row in suite_report.committed() if row.error is not None)
    monkeypatch.setattr(suite_report, "COMMITTED", tmp_path)
    assert suite_report.committed() == []


def test_cases_against_their_targets():
    work = next(suite_cases.workloads_of("chains", list(LAYOUTS), num_patterns=1))
    times = {"dense layer": 9.0, "bmm": 6.0, "pallas": 2.5, "pallas_chain": 2.0}
    rows = [
        row(name, seconds=seconds, workload=work, floor_bytes=1, flops=1)
        for name, seconds in times.items()
    ]
    rows[0] = dataclasses.replace(
        rows[0], measured=dataclasses.replace(rows[0].measured, is_noisy=True)
    )
    wanted = targets.targets(1)
    lines = text(suite_report.cases(rows, CEILINGS, wanted))
    (line,) = [line for line in lines if line.startswith("monarch:1024x1024")]
    assert line == (
        "monarch:1024x1024 last 2000000.0 6000000.0 9000000.0~ 3.00 0.50 "
        "below 0.8 of the floor, ≥ 2.2 × XLA"
    )
    judged = text(suite_report.judgements(targets.judge(wanted, rows, CEILINGS)))
    missed = "monarch:1024x1024 0.8 of the floor MISS"
    assert any(line.startswith(missed) for line in judged)
    assert "1.00 TB/s" not in suite_report.rates([])
    assert "copies 0.00 TB/s" in suite_report.rates(CEILINGS)


def test_the_papers_patterns_have_no_line_each():
    work = next(suite_cases.workloads_of("paper", list(LAYOUTS), num_patterns=1))
    rows = [row("bmm", workload=work), row("pallas", workload=work)]
    lines = text(suite_report.cases(rows, CEILINGS, targets.targets(1)))
    assert not any(line.startswith(work.case) for line in lines)
