import dataclasses
import json
import pathlib

import pytest

from pallas_kernels.common import tuned

MONARCH = [[1, 32, 32, 32], [32, 32, 32, 1]]
ENTRY = {
    "kernel": "chain",
    "shapes": MONARCH,
    "dtype": "bfloat16",
    "axis": -1,
    "pieces": 1,
    "batch": 4096,
    "config": {"rows": 64},
}


@dataclasses.dataclass(frozen=True)
class Config:
    rows: int = 32
    stages: int = 2

    def __post_init__(self):
        if self.rows % 16:
            raise ValueError(f"rows must be a multiple of 16, got {self.rows}")


def text(*changes, device="NVIDIA H200"):
    return json.dumps({"device": device, "entries": [ENTRY | c for c in changes]})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    return tmp_path


def lookup(batch=4096, *, kernel="chain", dtype="bfloat16", axis=-1, **kwargs):
    return tuned.lookup(Config, kernel, MONARCH, dtype, batch, axis=axis, **kwargs)


def test_without_a_table_nothing_is_found(folder):
    assert lookup() is None


def test_what_tells_problems_apart(folder):
    (folder / "nvidia_h200.json").write_text(
        text(
            {},
            {"axis": 0, "config": {"rows": 16}},
            {"dtype": "float32", "pieces": 2, "config": {"rows": 128}},
            {"dtype": "float32", "pieces": 3, "config": {"rows": 32, "stages": 1}},
        )
    )
    assert lookup() == Config(rows=64)
    assert lookup(axis=0) == Config(rows=16)
    assert lookup(dtype="float32") == Config(rows=128)
    assert lookup(dtype="float32", precision="highest") == Config(rows=32, stages=1)
    assert lookup(dtype="float16") is None
    assert lookup(kernel="factor") is None
    other = [[1, 16, 16, 16], [16, 16, 16, 1]]
    assert tuned.lookup(Config, "chain", other, "bfloat16", 4096, axis=-1) is None


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        *((1, None), (15, None), (16, 16), (64, 16)),
        *((1023, 16), (1024, 64), (4096, 64), (1_000_000, 64)),
    ],
)
def test_the_nearest_batch_serves(folder, batch, rows):
    (folder / "nvidia_h200.json").write_text(
        text({}, {"batch": 64, "config": {"rows": 16}})
    )
    assert lookup(batch) == (Config(rows=rows) if rows else None)


def test_a_device_has_its_own_table(folder):
    name = "NVIDIA H100 80GB HBM3"
    assert tuned.path(name) == folder / "nvidia_h100_80gb_hbm3.json"
    tuned.path(name).write_text(text({"config": {"rows": 16}}, device=name))
    assert lookup(device=name) == Config(rows=16)
    assert lookup() is None  # There is none for the default device.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting"),
        ("[]", "the table must have the fields .'device', 'entries'., got list"),
        ('{"device": "x"}', r"the table must have .* got \['device'\]"),
        ('{"device": 1, "entries": []}', "the table.device must be of type str"),
        (text({"rows": 3}), r"entries\[0\] must have the fields"),
        (text({}, {"batch": 0}), r"entries\[1\].batch cannot be 0"),
        (text({"batch": True}), r"entries\[0\].batch must be of type int, got true"),
        (text({"axis": 1}), r"entries\[0\].axis cannot be 1"),
        (text({"dtype": "int8"}), r"entries\[0\].dtype cannot be \"int8\""),
        (text({"pieces": 4}), r"entries\[0\].pieces cannot be 4"),
        (text({"shapes": []}), r"entries\[0\].shapes cannot be \[\]"),
        (text({"shapes": [[1, 2, 2]]}), r"entries\[0\].shapes cannot be"),
        (text({"config": {"rows": [1]}}), r"entries\[0\].config cannot be"),
        (text({}, {"config": {"rows": 16}}), r"entries\[1\] is for the same problem"),
    ],
)
def test_a_table_that_is_none_is_named(folder, content, message):
    (folder / "nvidia_h200.json").write_text(content)
    with pytest.raises(ValueError, match=rf"nvidia_h200.json: .*{message}"):
        lookup()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rowz": 1}, "unexpected keyword argument 'rowz'"),
        ({"rows": 8}, "rows must be a multiple of 16, got 8"),
    ],
)
def test_a_configuration_that_cannot_be_is_named(folder, config, message):
    (folder / "nvidia_h200.json").write_text(text({"batch": 1}, {"config": config}))
    with pytest.raises(
        ValueError, match=rf"h200.json: entries\[1\].config: .*{message}"
    ):
        lookup()


def test_entries_are_added_and_replaced():
    table = tuned.loads(text({}, {"batch": 64}))
    entry = dataclasses.replace(table.entries[1], config={"rows": 16})
    changed = table.with_entry(entry)
    assert [one.batch for one in changed.entries] == [64, 4096]
    assert changed.entries == (entry, table.entries[0])
    other = dataclasses.replace(entry, batch=8)
    assert changed.with_entry(other).entries == (other, *changed.entries)
    assert tuned.loads(changed.dumps()) == changed
    assert tuned.loads(tuned.Table("x").dumps()) == tuned.Table("x")


def test_the_tables_that_are_shipped_are_read():
    # The folder has to be in the wheel, which the tests run against too.
    assert (tuned.FOLDER / "README.md").is_file()
    for file in tuned.FOLDER.glob("*.json"):
        table = tuned.load(file)
        assert table is not None
        assert tuned.path(table.device) == file


def test_the_readme_shows_a_table():
    lines = (tuned.FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    example = "\n".join(line for line in lines if line.startswith("    "))
    (entry,) = tuned.loads(example).entries
    assert entry.kernel == "chain"
    assert pathlib.Path(tuned.path("NVIDIA H200").name).stem == "nvidia_h200"
