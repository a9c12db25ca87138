"""A variant has one look, a colour, a marker and a line, in any company and in every figure."""

import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from helpers import names_of_one_colour
from hypothesis import given
from hypothesis import strategies as st

from analysis import paper, plots
from analysis.plots.style import looks
from attnres_lab.runs.looks import FIRST, PAPER
from attnres_lab.runs.looks import looks as by_name

ROOT = Path(__file__).parents[2]


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.2."""
    rgb = np.array(mpl.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_first_variants_differ_by_colour_and_marker_and_the_baseline_is_black() -> None:
    style = looks(["baseline", "full", "block8", "mhc", "denseformer", "hyper", "full-hkv"])
    assert style["baseline"].color == "#000000"
    for a, b in itertools.combinations(style.values(), 2):
        assert a.color != b.color
        assert a.marker != b.marker


def test_more_variants_than_colours_still_differ() -> None:
    style = looks([f"v{i:02d}" for i in range(100)])
    assert len({(look.color, look.marker, str(look.line)) for look in style.values()}) == 101


def test_any_number_of_variants_is_told_apart_and_the_listed_keep_theirs() -> None:
    """However their hashes fall: 300 names over 126 places collide."""
    style = looks(["full", *(f"v{i:03d}" for i in range(300))])
    assert len({(look.color, look.marker, str(look.line)) for look in style.values()}) == 302
    assert style["full"] == looks(["full"])["full"]
    figure, (ax,) = plots.new_axes(8, 80)  # so long is their legend
    plots.by_depth(ax, {name: pd.Series([1.0, 2.0]) for name in style}, "RMS")
    figure.draw_without_rendering()


def test_two_names_of_one_hash_are_told_apart_even_by_colour_alone() -> None:
    """MLflow draws a line in a colour and no more, so no two of 126 variants share one."""
    name, twin = names_of_one_colour()
    pair = looks([name, twin])
    assert pair[name].color != pair[twin].color
    assert pair[min(name, twin)] == looks([min(name, twin)])[min(name, twin)]
    many = looks([f"v{i:03d}" for i in range(126)])
    assert len({look.color for look in many.values()}) == len(many)


def test_the_papers_names_look_like_ours() -> None:
    """In Table 2, in Table 4, and in a sweep of this project; side by side they are told apart."""
    ours = looks(["full", "block8", "mhc", "denseformer", "block-s4"])
    named = {"Full": "full", "block": "block8", "mHC": "mhc", "DenseFormer": "denseformer"}
    for theirs, own in (named | {"Block, S = 4": "block-s4"}).items():
        assert looks([theirs])[theirs] == ours[own]
    both = looks([*paper.table_2()["variant"], *paper.table_4()["variant"]])
    assert both["block"] == ours["block8"]
    assert len({(look.color, look.marker, str(look.line)) for look in both.values()}) == len(both)


def test_every_name_of_the_papers_is_a_label_of_ours() -> None:
    """As configs make them, so that an alias cannot go stale."""
    from attnres_lab.config import load

    full: list[dict[str, object]] = [{"query": "input"}, {"mixing": "static"}, {"window": 8}]
    full += [{}, {"mixing": "sigmoid"}, {"key_norm": False}]
    block = [{}, {"block_size": 4}, {"block_size": 4, "heads": 16}]
    block += [{"block_size": 4, "key_norm": False}]
    given = [{"name": "full", **options} for options in full]
    given += [{"name": "block", **options} for options in block]
    given += [{"name": "denseformer"}, {"name": "mhc"}]
    labels = {load(ROOT / "experiments/tiny.yaml", {"model.residual": r}).variant for r in given}
    assert set(PAPER.values()) == labels
    published = {*paper.table_2()["variant"], *paper.table_4()["variant"]}
    assert set(PAPER) == published - {"baseline", "full", "mhc-lite"}


def test_every_colour_is_told_from_white_paper() -> None:
    """WCAG asks for a contrast of 3 for graphical objects; Okabe-Ito's light blue and orange are
    its known exceptions, at 2.2 and more.
    """
    for look in looks([f"v{i}" for i in range(6)]).values():
        assert 1.05 / (luminance(look.color) + 0.05) > 2.2


@given(st.sets(st.sampled_from([*FIRST, "full-sum", "block3", "mine"])))
def test_a_variant_keeps_its_look_in_any_company(others: set[str]) -> None:
    """Whatever stands beside it, in figures and in the page to explore alike."""
    for name in ("full", "block8", "full-sum", "block3", "mine"):
        assert looks({name, *others})[name] == looks([name])[name]
        assert by_name({name, *others})[name].color == looks([name])[name].color
