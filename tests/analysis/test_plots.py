"""Figures show the numbers they are given, with units, and the same numbers give the same file."""

import numpy as np
import pandas as pd
import pytest

from analysis import compute_equivalent_gain, paper, plots
from analysis.plots.style import log_ticks, number
from analysis.report.gains import draw_gains


@pytest.fixture
def ax():
    return plots.new_axes()[1][0]


def drawn(ax) -> None:
    """Render, so that a label or tick that cannot be drawn fails here; warnings are errors."""
    ax.figure.draw_without_rendering()


def texts(ax) -> set[str]:
    return {
        ax.get_xlabel(),
        ax.get_ylabel(),
        *(text.get_text() for text in ax.get_legend().get_texts()),
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.85, "1.85"),
        (0, "0"),
        (50_000, r"$5{\times}10^{4}$"),
        (1e15, "$10^{15}$"),
        (3e-4, r"$3{\times}10^{-4}$"),
        (2.5e20, r"$2.5{\times}10^{20}$"),
    ],
)
def test_numbers_on_axes_are_short(value, text) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high"),
    [(1.7, 1.95), (1e13, 1e15), (4e19, 5e20), (1e-4, 1e-2), (1, 1e6), (1.0, 1.3), (1e5, 4e5)],
)
def test_log_axes_have_two_to_eight_labels_within_the_view(ax, low, high) -> None:
    ax.set(xscale="log", xlim=(low, high))
    log_ticks(ax.xaxis)
    inside = [
        tick
        for tick in ax.xaxis.get_majorticklocs()
        if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)
    ]
    assert 2 <= len(inside) <= 8
    assert len({number(tick) for tick in inside}) == len(inside)


def test_loss_against_compute_shows_every_run_and_the_arrow_spans_the_gain(ax) -> None:
    runs = paper.table_2()
    runs = runs[runs["variant"].isin(["baseline", "full"])]
    curve = pd.DataFrame(
        {
            "x": [4.6e19, 3.7e20, 6e20],
            "y": [1.94, 1.71, 1.69],
            "low": [1.93, 1.70, 1.68],
            "high": [1.95, 1.72, 1.70],
        }
    )
    plots.loss_against_compute(
        ax, runs, {"baseline": curve, "full": curve}, {"full": (3.8e20, 1.31, 1.692)}
    )
    drawn(ax)
    assert texts(ax) == {
        "training compute C (FLOP)",
        "validation loss (nats per token)",
        "baseline",
        "full, 1.31×",
    }
    points = np.concatenate(
        [line.get_xydata() for line in ax.lines if line.get_linestyle() == "None"]
    )
    assert {tuple(p) for p in points} == set(zip(runs["flops"], runs["val/loss"], strict=True))
    (arrow,) = (text for text in ax.texts if text.arrow_patch)
    assert arrow.xy[0] / arrow.xyann[0] == pytest.approx(1.31)
    assert ax.get_xlim()[1] > 3.8e20 * 1.31
    dotted = next(line for line in ax.lines if line.get_linestyle() == ":")
    solid = next(
        line for line in ax.lines if line.get_linestyle() == "-" and line.get_label() == "baseline"
    )
    assert dotted.get_xdata().max() > solid.get_xdata().max()


def law_of(ax, label: str):
    """The whole law of one variant, dotted where it has no runs: log y at x."""
    named = next(line for line in ax.lines if str(line.get_label()).split(",")[0] == label)
    dotted = next(
        line
        for line in ax.lines
        if line.get_linestyle() == ":" and line.get_color() == named.get_color()
    )
    x, y = np.log(dotted.get_data())
    return lambda at: float(np.interp(np.log(at), x, y))


@pytest.mark.parametrize("how", ["report", "gain.plot"])
def test_an_arrow_goes_from_the_line_of_its_variant_to_that_of_the_baseline(ax, how) -> None:
    """As the report's caption says, and it is as long as the gain."""
    runs = paper.table_2()
    gains = {v: compute_equivalent_gain(runs, v) for v in ("block", "full")}
    if how == "report":
        draw_gains(ax, runs, gains)
    else:
        del gains["block"]
        gains["full"].plot(ax)
    drawn(ax)
    arrows = [text for text in ax.texts if text.arrow_patch]
    assert len(arrows) == len(gains)
    for (variant, gain), arrow in zip(gains.items(), arrows, strict=True):
        (start, height), (end, level) = arrow.xyann, arrow.xy
        assert end / start == pytest.approx(gain.gain)
        assert height == level
        assert np.log(height) == pytest.approx(law_of(ax, variant)(start), abs=1e-6)
        assert np.log(level) == pytest.approx(law_of(ax, "baseline")(end), abs=1e-6)


def test_a_gain_draws_itself_on_the_published_table(ax) -> None:
    gain = compute_equivalent_gain(paper.table_2(), "block")
    assert gain.plot(ax) is ax
    drawn(ax)
    assert {"baseline", "block, 1.24×"} <= texts(ax)


def test_a_baseline_of_another_name_is_black_too(ax) -> None:
    runs = paper.table_2().replace({"variant": {"baseline": "old"}})
    compute_equivalent_gain(runs, "block", "old").plot(ax)
    assert {line.get_color() for line in ax.lines if line.get_label() == "old"} == {"#000000"}


def test_gain_by_compute_marks_where_the_baseline_is_extrapolated(ax) -> None:
    x = np.geomspace(1e15, 1e17, 5)
    curve = pd.DataFrame({"x": x, "gain": 1.2, "low": 1.1, "high": 1.3, "extrapolates": x > 2e16})
    plots.gain_by_compute(ax, {"full": curve})
    drawn(ax)
    assert "extrapolated" in ax.get_legend().get_title().get_text()
    solid = next(line for line in ax.lines if line.get_label() == "full")
    assert solid.get_xdata().max() < 2e16
    assert "compute-equivalent gain (×)" in texts(ax)


def test_gain_per_size_keeps_the_order_of_the_sizes_and_ends_with_all(ax) -> None:
    table = pd.DataFrame(
        {"variant": "full", "size": ["d96", "d128", "d1024"], "gain": [1.1, 1.2, 1.15]}
    )
    plots.gain_per_size(ax, table, {"full": (1.15, 1.05, 1.26)})
    drawn(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "d96",
        "d128",
        "d1024",
        "all sizes",
    ]


def test_isoflop_valleys_show_each_budget_and_the_lowest_points(ax) -> None:
    runs = pd.DataFrame(
        {
            "budget": [1e15] * 3 + [1e16] * 3,
            "params": [1e6, 2e6, 4e6] * 2,
            "val/loss": [2.1, 2.0, 2.1, 1.9, 1.8, 1.9],
        }
    )
    plots.isoflop_valleys(
        ax,
        runs,
        {1e15: pd.DataFrame({"x": [1e6, 4e6], "y": [2.1, 2.1]})},
        pd.DataFrame({"x": [2e6, 2e6], "y": [2.0, 1.8]}),
    )
    drawn(ax)
    assert texts(ax) == {
        "non-embedding parameters N",
        "validation loss (nats per token)",
        "1e+15 FLOP",
        "1e+16 FLOP",
        "lowest",
    }


def test_an_ablation_forest_has_the_best_on_top_and_zero_marked(ax) -> None:
    table = pd.DataFrame(
        {
            "variant": ["a", "b"],
            "difference": [0.01, -0.03],
            "low": [-0.01, -0.04],
            "high": [0.03, -0.02],
        }
    )
    plots.ablation_forest(ax, table)
    drawn(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylim()[1] > ax.get_ylim()[0]
    assert "nats per token" in ax.get_xlabel()


def test_training_curves_have_a_band_for_the_seeds(ax) -> None:
    bands = pd.DataFrame(
        {
            "variant": "full",
            "x": [1e5, 2e5, 1e6],
            "mean": [4.0, 3.0, 2.5],
            "low": [3.9, 2.9, 2.4],
            "high": [4.1, 3.1, 2.6],
        }
    )
    plots.training_curves(ax, bands)
    drawn(ax)
    assert texts(ax) == {"training compute C (FLOP)", "training loss (nats per token)", "full"}
    assert len(ax.collections) == 1


@pytest.mark.parametrize("values", [[1e-3, 3e-3, 1e-2], ["adamw", "muon", "sgd"]])
def test_bowls_ring_the_lowest_of_numbers_and_of_names(ax, values) -> None:
    points = pd.DataFrame(
        {
            "variant": "full",
            "x": values,
            "mean": [2.1, 2.0, 2.2],
            "low": [2.0, 1.9, 2.1],
            "high": [2.2, 2.1, 2.3],
            "best": [False, True, False],
        }
    )
    plots.learning_rate_bowls(ax, points)
    drawn(ax)
    assert "learning rate" in texts(ax)
    rings = [line for line in ax.lines if line.get_markersize() == 11]
    assert [list(ring.get_ydata()) for ring in rings] == [[2.0]]


def test_a_depth_map_leaves_missing_sources_blank_and_labels_its_weights(ax) -> None:
    index = pd.MultiIndex.from_tuples([(1, "mlp"), (2, "output")], names=["sublayer", "kind"])
    plots.depth_map(
        ax,
        pd.DataFrame(
            [[0.4, 0.6, np.nan], [0.2, 0.3, 0.5]], index=index, columns=["embedding", "f1", "f2"]
        ),
    )
    drawn(ax)
    assert np.ma.getmaskarray(ax.images[0].get_array()).tolist() == [
        [False, False, True],
        [False, False, False],
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["emb", "f1", "f2"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1 mlp", "2 out"]
    assert "depth-attention weight" in {other.get_ylabel() for other in ax.figure.axes}


def test_a_map_of_a_hundred_sources_thins_its_labels(ax) -> None:
    index = pd.MultiIndex.from_tuples(
        [(i, "mlp") for i in range(1, 101)], names=["sublayer", "kind"]
    )
    plots.depth_map(
        ax,
        pd.DataFrame(
            np.tril(np.ones((100, 100))), index=index, columns=[f"f{i}" for i in range(100)]
        ),
    )
    assert len(ax.get_xticks()) <= 26
    assert len(ax.get_yticks()) <= 26


def test_magnitude_by_depth_is_a_line_per_variant(ax) -> None:
    plots.by_depth(
        ax, {"baseline": pd.Series([1.0, 2.0, 4.0]), "full": pd.Series([1.0, 1.1, 1.0])}, "RMS"
    )
    drawn(ax)
    assert texts(ax) == {"sublayer", "RMS", "baseline", "full"}


def test_the_published_grid_frames_its_published_optimum(ax) -> None:
    """Paper, Fig. 7: with AttnRes the best is 1.802 at d / num_layers = 45 and heads / num_layers =
    0.3.
    """
    plots.grid_map(ax, paper.figure_7("attnres"))
    drawn(ax)
    (frame,) = (patch for patch in ax.patches if patch.get_linewidth() == 2)
    assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == (2, 4)
    assert {text.get_text() for text in ax.texts if text.get_weight() == "bold"} == {"1.802"}


def test_equal_figures_are_equal_files(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        figure, (ax,) = plots.new_axes()
        plots.by_depth(ax, {"full": pd.Series([1.0, 2.0])}, "RMS")
        plots.save(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
