"""A report's page and figures: nothing from outside, in the light, in the dark and on a phone."""

import re
from html.parser import HTMLParser

import pytest
from analysis_helpers import published

from analysis.report import write_report

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.references, self.images, self.tags, self.text, self.ids = [], [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.references += [values[key] for key in ("src", "href") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        self.images += [values] if tag == "img" else []

    def handle_data(self, data) -> None:
        self.text += data


def test_every_figure_is_written_shown_and_described(demo, text) -> None:
    shown = {name: alt for alt, name in re.findall(r"!\[(.*?)\]\((.*?)\)", text)}
    assert list(shown) == [figure.name for figure in demo.figures]
    names = [
        *("loss", "loss_paper", "gain_per_size", "gain_by_compute", "curves"),
        *("ablation", "ablation_paper", "depth_attention_block8", "depth_attention_full"),
        *("by_depth_output_rms", "by_depth_gradient_norm"),
    ]
    assert list(shown) == [f"{name}.png" for name in names]
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in demo.figures)
    assert all(f.with_suffix(".pdf").read_bytes().startswith(b"%PDF") for f in demo.figures)
    assert all(len(alt) > 20 for alt in shown.values())
    assert len(set(shown.values())) > 6  # panels of one figure are told apart to the ear too


def test_the_page_needs_nothing_but_itself(demo) -> None:
    page = Page(demo.html.read_text())
    assert len(page.images) == 11
    outside = [reference for reference in page.references if reference[1:] not in page.ids]
    assert all(reference.startswith("data:image/png;base64,") for reference in outside)
    assert all(image["alt"] for image in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "full is better" in page.text


def test_the_page_opens_with_its_verdict_and_a_table_of_contents(demo, text) -> None:
    html = demo.html.read_text()
    contents = html.split("<nav")[1].split("</nav>")[0]
    assert html.index("<blockquote>") < html.index("<nav") < html.index("<h2")
    links = re.findall(r'<a href="#([\w-]+)">(.*?)</a>', contents)
    assert [title for _, title in links] == re.findall(r"^## (.*)$", text, re.M)
    assert links == re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', html)


def test_the_page_has_a_dark_dress_and_one_for_phones(demo) -> None:
    """Colours are named once and set anew in the dark; nothing wide widens a small page."""
    style = demo.html.read_text().split("<style>")[1].split("</style>")[0]
    light, dark = re.split(r"@media \(prefers-color-scheme: dark\)", style)
    dark = dark.split("} }")[0]
    named = set(re.findall(r"(--\w+):", light))
    assert named == set(re.findall(r"var\((--\w+)\)", style)) == set(re.findall(r"(--\w+):", dark))
    assert "@media (max-width: 40rem)" in style
    assert (
        "overflow-x" not in style
    )  # what scrolls is cut; tests/tracking/test_report_pages.py measures


def test_text_from_outside_cannot_become_markup(tmp_path, quick) -> None:
    table = published(tmp_path)
    table["variant"] = table["variant"].replace("full", "<script>alert(1)</script>|x")
    table.to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "s.yaml").write_text(
        'question: <img src="http://example.com/x.png"> & more\nname: s\n'
    )
    page = Page(
        write_report(
            tmp_path / "runs.csv", tmp_path / "out", spec=tmp_path / "s.yaml"
        ).html.read_text()
    )
    assert not {"script", "iframe"} & set(page.tags)
    assert all(reference.startswith(("data:", "#part-")) for reference in page.references)
    assert "<script>alert(1)</script>|x" in page.text


def test_a_second_report_leaves_no_figure_of_the_first(tmp_path, quick) -> None:
    table = published(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "own.png").touch()
    assert "loss.png" in {
        figure.name for figure in write_report(tmp_path / "runs.csv", tmp_path / "out").figures
    }
    table[table["size"] == "194M"].to_csv(tmp_path / "runs.csv", index=False)
    write_report(tmp_path / "runs.csv", tmp_path / "out")
    left = {file.name for file in (tmp_path / "out").glob("*.p*")}
    ours = {f"ablation{part}.{kind}" for part in ("", "_paper") for kind in ("png", "pdf")}
    assert left == {"own.png"} | ours
