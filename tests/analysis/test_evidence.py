"""Published comparisons from one CSV: the page's numbers, gains against an oracle, refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import compute_equivalent_gain, evidence_forest, evidence_table, paper
from analysis.plots.style import looks
from analysis.tables import markdown

PAGE = Path(__file__).parents[2] / "docs" / "results" / "025-outside-evidence"
CSV = PAGE / "evidence.csv"


def changed(tmp_path: Path, **values: str) -> Path:
    """The page's first row with other values."""
    row = pd.read_csv(CSV, dtype=str, keep_default_na=False).head(1)
    for name, value in values.items():
        row[name] = value
    row.to_csv(tmp_path / "own.csv", index=False)
    return tmp_path / "own.csv"


def test_page_prints_every_gain_of_the_csv() -> None:
    gains = evidence_table(CSV).query("measure != 'difference'")
    columns = ["source", "variant", "measure", "value", "low", "high", "basis"]
    assert markdown(gains[columns].round(2)) in (PAGE / "README.md").read_text()


def test_gain_of_the_paper_is_that_of_its_table() -> None:
    table, figure = evidence_forest(CSV)
    full = table[(table["source"] == "paper, Table 2") & (table["variant"] == "full")].iloc[0]
    assert full["value"] == pytest.approx(compute_equivalent_gain(paper.table_2(), "full").gain)
    assert len(figure.axes) == 3


def test_a_variant_looks_as_in_every_other_figure_however_a_source_spells_it(tmp_path) -> None:
    """One line of each name in the order of the rows, the last one below."""
    names = ("full", "Full", "full, Kimi Linear", "Block", "mHC")
    row = pd.read_csv(changed(tmp_path, gain="1.2", axis="FLOP", loss="", baseline=""), dtype=str)
    gains = pd.concat([row.assign(variant=name) for name in names])
    gains.to_csv(tmp_path / "all.csv", index=False)
    _, figure = evidence_forest(tmp_path / "all.csv")
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "")]
    drawn = [(line.get_color(), line.get_marker()) for line in reversed(points)]
    own = looks(["full", "block8", "mhc"])
    expected = [own[name] for name in ("full", "full", "full", "block8", "mhc")]
    assert drawn == [(look.color, look.marker) for look in expected]


def test_one_size_gives_the_difference_and_a_gain_only_under_an_exponent(tmp_path: Path) -> None:
    own = {"loss": "2.0", "baseline": "2.1", "alpha": "0.05"}
    difference, gain = evidence_table(changed(tmp_path, **own)).to_dict("records")
    assert difference["value"] == pytest.approx(-0.1)
    assert 2.1 * gain["value"] ** -0.05 == pytest.approx(2.0)
    assert np.isnan(gain["low"])
    assert len(evidence_table(changed(tmp_path, **own | {"alpha": ""}))) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss": "x"}, "line 2: loss must be a number"),
        ({"gain": "1.2"}, "exactly one"),
        ({"baseline": ""}, "line 2: baseline must be beside a loss"),
        ({"unit": "bits"}, "line 2: unit must be one of"),
        ({"limit": ""}, "line 2: limit must be filled in"),
    ],
)
def test_bad_csv_is_one_clear_line(tmp_path: Path, values: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        evidence_table(changed(tmp_path, **values))
    assert "\n" not in str(caught.value)
