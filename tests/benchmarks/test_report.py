import dataclasses
import functools
import re
import xml.etree.ElementTree

import pytest

import butterjax as bj
from benchmarks import jsonl, models, network_rows, report
from benchmarks.reporting import groups, sections
from benchmarks.workloads import DENSE_LAYER
from tests import programs
from tests.benchmarks.reporting.test_groups import ratio, run
from tests.benchmarks.test_results import measurement, row

EXAMPLE = ("compare_cpu.jsonl", "ks_grid_cpu.jsonl")
NEW = {"environment": run("2026-02-02T00:00:00+00:00", "Some CPU, 2 threads")}
OLD = {"environment": run("2026-01-01T00:00:00+00:00", "Some CPU, 2 threads")}
# Ratios to the dense layer of bmm and einsum; einsum refuses the last.
RATIOS = {
    bj.Chain.monarch(64, 64): (0.5, 0.4),
    bj.Chain.square_dyadic(64): (0.8, 0.9),
    bj.Chain([(2, 16, 16, 2)]): (1.5, None),
}


def rows(bmm_factor=1.0, batch=8, **changes):
    made = []
    for index, (chain, (bmm, einsum)) in enumerate(RATIOS.items()):
        place = {
            "work": {"case": f"case {index}", "chain": chain, "batch": batch},
            **changes,
        }
        made.append(row(DENSE_LAYER, measured=ratio(1.0, 1.0, 1.0), **place))
        middle = bmm * bmm_factor
        made.append(
            row("bmm", measured=ratio(0.99 * middle, middle, 1.01 * middle), **place)
        )
        if einsum is None:
            made.append(row("einsum", measured=None, unsupported="too odd", **place))
        else:
            times = ratio(einsum, einsum, einsum, seconds=einsum, is_noisy=True)
            made.append(row("einsum", measured=times, **place))
    return made


def write(folder, name, made):
    path = folder / name
    jsonl.append(path, made)
    return str(path)


make_report = functools.partial(programs.call, report.__name__)


def parse(path):
    text = path.read_text(encoding="utf-8")
    return xml.etree.ElementTree.fromstring(text.strip())


def tables(root):
    return [
        [["".join(cell.itertext()) for cell in line] for line in table.iter("tr")]
        for table in root.iter("table")
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on two batch sizes, without a baseline: the folder and the process."""
    folder = tmp_path_factory.mktemp("report")
    paths = [
        write(folder, "one.jsonl", rows(**NEW)),
        write(folder, "two.jsonl", rows(2.0, batch=9, **NEW)),
    ]
    output = folder / "out"
    return output, make_report(*paths, f"--output_dir={output}")


def check_that_nothing_is_fetched(root):
    sources = [one.get("src") for one in root.iter() if one.get("src")]
    assert sources
    assert all(one.startswith("data:image/png;base64,") for one in sources)
    for element in root.iter():
        if target := element.get("href"):
            assert target.startswith(("#", "data:"))
    style = "".join(one.text for one in root.iter("style"))
    assert not re.search(r"url\(|@import", style)
    assert not list(root.iter("script"))


def test_the_page_needs_nothing_else(made):
    folder, done = made
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    check_that_nothing_is_fetched(parse(folder / "report.html"))


def test_the_committed_example():
    path = programs.ROOT / "benchmarks" / "results" / "report_cpu.html"
    assert path.stat().st_size < 1e6
    root = parse(path)
    check_that_nothing_is_fetched(root)
    rows = report.load(str(path.parent / name) for name in EXAMPLE)
    answer = sections.answers(groups.groups(rows.layers))
    shown = tables(root)[: len(answer.tables)]
    assert [table[1:] for table in shown] == [
        list(map(list, table.rows)) for table in answer.tables
    ]


def test_pictures_are_files_too_and_say_what_they_show(made):
    folder, _ = made
    images = list(parse(folder / "report.html").iter("img"))
    files = list(folder.glob("*.png"))
    assert len(images) == len(files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert all(len(one.get("alt")) > 20 for one in images)
    wins = [one.get("alt") for one in images if "Win rates" in one.get("alt")]
    assert wins == [
        "Win rates: bmm 2 of 3, einsum 1 of 3",
        "Win rates: einsum 2 of 3, bmm 1 of 3",
    ]


def test_the_answer(made):
    first, second = tables(parse(made[0] / "report.html"))[:2]
    assert first[0][:2] == ["layer", "use"]
    assert first[1] == [
        *("64 → 64", "einsum on (1,8,8,8) (8,8,8,1)", "400", "1,000", "2.5"),
        *("25.0%", "100%"),
    ]
    assert len(first) == 2
    # Twice as slow, bmm never wins.
    assert second[1][1] == "einsum on (1,8,8,8) (8,8,8,1)"


def test_every_row_is_accounted_for(made):
    root = parse(made[0] / "report.html")
    shown = [table for table in tables(root) if table[0][0] == "workload"]
    assert shown[0] == [
        ["workload", "dense, ms", "bmm", "einsum"],
        ["case 0", "1,000", "0.5", "0.4 ~ *"],
        ["case 1", "1,000", "0.8 *", "0.9 ~"],
        ["case 2", "1,000", "1.5 *", "refused"],
    ]
    reasons = tables(root)[-1]
    assert ["einsum", "refused", "too odd", "2"] in reasons
    assert ["einsum", "noisy", "quartiles far apart at the time limit", "4"] in reasons


def test_sections_without_data_say_so(made):
    texts = [one.text for one in parse(made[0] / "report.html").iter("p")]
    assert any(text.startswith("No energy was metered") for text in texts)
    assert any("too few or too similar ones to fit" in text for text in texts)


def test_terminal(made):
    output = made[1].stdout
    assert "Some CPU, 2 threads: forward, float32, feature last, batch 8" in output
    assert re.search(r"bmm +2 of 3 +2 +1\.25", output)
    assert "report: " in output


def test_regressions_are_named(tmp_path):
    old = write(tmp_path, "old.jsonl", rows(**OLD))
    new = write(tmp_path, "new.jsonl", rows(1.5, **NEW))
    output = f"--output_dir={tmp_path / 'out'}"
    done = make_report(new, f"--baseline={old}", output)
    assert done.returncode == 1
    assert done.stdout.count("REGRESSION: bmm, case") == 3
    assert "REGRESSION: bmm, case0/8/float32/feature_last/forward" in done.stdout
    assert "slower, 1.5 times as long" in done.stdout
    (table,) = (
        t
        for t in tables(parse(tmp_path / "out" / "report.html"))
        if t[0][-1] == "new ÷ old"
    )
    assert len(table) == 4
    assert table[1][1:] == ["bmm", "slower", "1.5"]
    assert make_report(old, f"--baseline={new}", output).returncode == 0


@pytest.mark.parametrize(
    ("contents", "message"),
    [('{"a": 1}\n', "error: {}, line 1: row."), ("", "error: there are no rows in {}")],
)
def test_files_are_checked_first(tmp_path, contents, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(contents)
    output = tmp_path / "out"
    done = make_report(str(path), f"--output_dir={output}")
    assert done.returncode == 1
    assert message.format(path) in done.stdout
    assert not output.exists()


NETWORK = network_rows.Row(
    environment=NEW["environment"],
    workload=network_rows.Workload(
        "llama_mlp", models.Sizes(2, 64, 0, 96, 16, 0), 4, "float32", "inference"
    ),
    implementation=network_rows.DENSE_LAYERS,
    num_weights=123456,
    tolerance=1e-5,
    measured=measurement(1.0),
    unsupported=None,
    failed=None,
)


def test_networks(tmp_path):
    times = ratio(0.4, 0.5, 0.6, seconds=0.5, is_noisy=True)
    made = [
        NETWORK,
        dataclasses.replace(
            NETWORK, implementation="bmm", num_weights=1000, measured=times
        ),
        dataclasses.replace(
            NETWORK, implementation="bcsr", measured=None, unsupported="too odd"
        ),
        dataclasses.replace(
            NETWORK, implementation="bmm", measured=None, **OLD, failed="boom"
        ),
    ]
    path = write(tmp_path, "networks.jsonl", made)
    found = report.load([path, write(tmp_path, "rows.jsonl", rows(**NEW))])
    assert found.networks == tuple(made)
    assert len(found.layers) == len(rows())
    alone = report.load([path])
    (section,) = report.make_page(alone, None, baseline="", threshold=0.1).sections
    (table,) = section.tables
    assert "llama_mlp, inference, batch 4, float32, 2 blocks" in table.caption
    assert table.rows == (
        ("dense layers", "1,000", "1 (1–1)", "4", "123,456", "4.1 kB"),
        ("bmm", "500 ~", "0.5 (0.4–0.6)", "8", "1,000", "4.1 kB"),
        ("bcsr (refused: too odd)", "–", "–", "–", "–", "–"),
    )


def test_usage():
    done = make_report()
    assert done.returncode == 1
    assert "name at least one result file" in done.stdout + done.stderr
    shown = make_report("--help").stdout
    for words in ("results/compare/compare.jsonl", "--baseline", "--threshold"):
        assert words in shown


def test_a_killed_report_leaves_the_old_one(tmp_path, monkeypatch):
    first = report.make_page(
        report.Rows(tuple(rows(**NEW))), None, baseline="", threshold=0.1
    )
    report.write(first, tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def fail(page):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.page, "html", fail)
    with pytest.raises(KeyboardInterrupt):
        report.write(dataclasses.replace(first, title="new"), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_no_answer_without_a_dense_layer():
    alone = [row(measured=measurement(ratio_to_dense_layer=None))]
    section = sections.answers(groups.groups(alone))
    assert section.tables == ()
    assert section.paragraphs[0].startswith("No chain in these rows")
    page = report.make_page(report.Rows(tuple(alone)), None, baseline="", threshold=0.1)
    assert len(page.sections) == 3
