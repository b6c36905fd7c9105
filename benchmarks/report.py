"""Makes a report of result files: one HTML page with plots and tables, and PNGs.

Says which implementation to use for the layers that were measured, how often each is
the fastest and by how much, how that depends on the pattern, where it lies under the
roofline, what it rewrites in memory, and what whole networks gain. Statistics never
mix devices, dtypes, layouts, directions or batch sizes.

  python -m benchmarks.report results/compare/compare.jsonl
  python -m benchmarks.report new/*.jsonl --baseline=old.jsonl --threshold=0.05

Writes report.html and a PNG file per plot into --output_dir. With --baseline it names
what has become slower, wrong or unsupported since, and fails if anything has.
"""

import pathlib
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from rich.console import Console
from rich.table import Table

from benchmarks import files, tables
from benchmarks.reporting import (
    changes,
    groups,
    network_sections,
    page,
    sections,
    statistics,
    stratum_sections,
    words,
)
from benchmarks.reporting.groups import Group
from benchmarks.reporting.rows import Rows, load


def define_flags() -> None:
    """Defines the flags; only where this is the program, so that others may import."""
    flags.DEFINE_string(
        "output_dir", "results/report", "Folder for the page and the plots."
    )
    flags.DEFINE_multi_string(
        "baseline",
        [],
        "Result file to compare layers with; may be given several times.",
    )
    flags.DEFINE_float(
        "threshold",
        0.1,
        "Least relative change of a median that counts as one: 0.1 for 10 %.",
        lower_bound=0.0,
    )


def make_page(
    rows: Rows,
    comparison: changes.Comparison | None,
    *,
    baseline: str,
    threshold: float,
) -> page.Page:
    """The report.

    Args:
      rows: that it is on.
      comparison: with a baseline, None for none.
      baseline: names of the baseline's files.
      threshold: least change that counted.
    """
    found = groups.groups(rows.layers)
    strata = groups.strata(found)
    environments = [row.environment for row in rows.layers]
    environments += [row.environment for row in rows.networks]
    devices = sorted({one.device for one in environments})
    versions = sorted({one.versions.get("jax", "?") for one in environments})
    commits = sorted({(one.commit or "unknown")[:12] for one in environments})
    days = sorted({one.run[:10] for one in environments})
    parts = []
    if found:
        parts.append(sections.answers(found))
    if comparison is not None:
        parts.append(sections.changes(comparison, baseline, threshold))
    if rows.networks:
        parts.append(network_sections.networks(rows.networks))
    parts += [
        stratum_sections.section(
            key, members, key.name if len(devices) == 1 else f"{key.device}: {key.name}"
        )
        for key, members in strata.items()
    ]
    if found:
        parts.append(sections.troubles(found))
    return page.Page(
        title="Butterfly layers: benchmark report",
        paragraphs=(
            f"{words.count(len(environments), 'row')} on {words.listing(devices)}; "
            f"{words.count(len(found), 'workload')} of layers; "
            f"jax {words.listing(versions)}; measured on {words.listing(days)} at "
            f"{words.listing([f'commit {commit}' for commit in commits])}.",
            "Times are ratios to a dense layer of the same size that was timed beside "
            "them, on random input. Devices, dtypes, layouts, directions and batch "
            "sizes are never mixed in one statistic.",
        ),
        sections=tuple(parts),
    )


def wins(members: Sequence[Group]) -> Table:
    """For the terminal: who is the fastest how often, in one stratum."""
    table = tables.plain()
    table.add_column("", no_wrap=True)
    for heading in ("fastest", "ahead of dense", "median speed-up over dense"):
        table.add_column(heading, justify="right")
    for one in statistics.standings(members):
        table.add_row(
            one.implementation,
            f"{one.num_wins} of {one.num_workloads}",
            str(one.num_ahead),
            words.number(one.over_dense[1]) if one.over_dense else "–",
        )
    return table


def write(made: page.Page, output_dir: pathlib.Path) -> pathlib.Path:
    """Writes the page and its pictures; returns the former's file."""

    def writer(contents: bytes) -> Callable[[pathlib.Path], object]:
        return lambda path: path.write_bytes(contents)

    for picture in made.pictures:
        files.write_whole(output_dir / f"{picture.name}.png", writer(picture.png))
    path = output_dir / "report.html"
    files.write_whole(path, writer(page.html(made).encode()))
    return path


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2:
        raise app.UsageError("name at least one result file")
    console = Console()
    output_dir = pathlib.Path(flags.FLAGS.output_dir)
    baseline = flags.FLAGS.baseline
    try:
        rows = load(argv[1:])
        older = load(baseline)
        if not (rows.layers or rows.networks):
            raise ValueError(f"there are no rows in {words.listing(argv[1:])}")
        files.make_folder(output_dir)
    except (OSError, ValueError) as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1
    comparison = None
    if baseline:
        comparison = changes.compare(
            older.layers, rows.layers, threshold=flags.FLAGS.threshold
        )
    with console.status("drawing ..."):
        made = make_page(
            rows,
            comparison,
            baseline=words.listing(baseline),
            threshold=flags.FLAGS.threshold,
        )
        report = write(made, output_dir)
    for key, members in groups.strata(groups.groups(rows.layers)).items():
        console.print(f"{key.device}: {key.name}", style="bold", soft_wrap=True)
        console.print(wins(members))
    for change in comparison.regressions if comparison else ():
        factor = (
            f", {words.number(change.factor)} times as long" if change.factor else ""
        )
        console.print(
            f"REGRESSION: {change.implementation}, {change.workload.name}: "
            f"{change.kind}{factor}",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"report: {report}", markup=False, soft_wrap=True)
    return 1 if comparison and comparison.regressions else 0


if __name__ == "__main__":
    define_flags()
    logging.set_verbosity(logging.WARNING)  # Not JAX's search for devices.
    app.run(main)
