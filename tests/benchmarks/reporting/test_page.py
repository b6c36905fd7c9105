import xml.etree.ElementTree

from benchmarks.reporting.page import Page, Picture, Section, Table, html

PNG = b"\x89PNG made up"
PAGE = Page(
    title="A & B <c>",
    paragraphs=("first",),
    sections=(
        Section(
            "one",
            "One",
            ("text & <text>",),
            (Picture("name", PNG, "caption", 'alt "quoted"'),),
            (
                Table("numbers", ("name", "n"), (("x", "1"), ("y", "2"))),
                Table("words", ("name", "w"), (("x", "a"),), 2, is_folded=True),
            ),
            (Section("inner", "Inner", pictures=(Picture("two", PNG, "c", "a"),)),),
        ),
    ),
)


def parse(text):
    assert text.lstrip().startswith("<!DOCTYPE html>")
    return xml.etree.ElementTree.fromstring(text.strip())


def test_everything_is_shown_and_escaped():
    root = parse(html(PAGE))
    assert root.findtext("head/title") == "A & B <c>"
    assert [one.text for one in root.iter("h2")] == ["One"]
    assert [one.text for one in root.iter("h3")] == ["Inner"]
    assert "text & <text>" in [one.text for one in root.iter("p")]
    images = list(root.iter("img"))
    assert [one.get("alt") for one in images] == ['alt "quoted"', "a"]
    assert images[0].get("src") == "data:image/png;base64,iVBORyBtYWRlIHVw"
    assert [one.text for one in root.iter("figcaption")] == ["caption", "c"]
    assert [picture.name for picture in PAGE.pictures] == ["name", "two"]


def test_tables():
    first, second = parse(html(PAGE)).iter("table")
    assert [[cell.text for cell in line] for line in first.iter("tr")] == [
        ["name", "n"],
        ["x", "1"],
        ["y", "2"],
    ]
    assert [cell.get("class") for cell in second.iter("td")] == ["words"]
    (folded,) = parse(html(PAGE)).iter("details")
    assert folded.findtext("summary") == "words"
    assert len(list(folded.iter("table"))) == 1


def test_links_lead_to_sections():
    root = parse(html(PAGE))
    targets = [one.get("href") for one in root.iter("a")]
    ids = {one.get("id") for one in root.iter()}
    assert targets == ["#one"]
    assert {target.removeprefix("#") for target in targets} <= ids
