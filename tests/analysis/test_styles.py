"""Figures as a paper and a page need them: ticks that do not collide, bands behind the data, one
scale for what is compared, a file for LaTeX.
"""

import itertools
import re
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from analysis_helpers import published

import analysis
from analysis import compute_equivalent_gain, paper, plots
from analysis.plots.style import log_axes
from analysis.report import write_report
from analysis.report.evidence import gather
from analysis.report.page import Page
from analysis.report.studies import STUDIES, _architecture, _depth

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def labels_apart(figure) -> None:
    """No two tick labels of an axis overlap, as they are drawn. A figure without pyplot has a
    canvas that draws nothing.
    """
    figure.draw_without_rendering()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            boxes = [
                label.get_window_extent()
                for tick in axis.get_major_ticks()
                for label in (tick.label1, tick.label2)  # of a colour bar the second
                if label.get_visible() and label.get_text() and low <= tick.get_loc() <= high
            ]
            for a, b in itertools.pairwise(boxes):
                assert not a.overlaps(b), (ax.get_title(), axis.axis_name, a, b)


@pytest.fixture
def figures(monkeypatch) -> list:
    """Those that a report draws, kept."""
    kept = []

    def keep(figure, path) -> None:
        kept.append(figure)
        path.write_bytes(b"\x89PNG")

    monkeypatch.setattr("analysis.plots.save", keep)
    return kept


def ladder(variants=("baseline", "full", "block8")) -> pd.DataFrame:
    """14 sizes over three decades, as the quickstart has them."""
    rng = np.random.default_rng(0)
    rows = []
    for width, variant in itertools.product(range(12, 68, 4), variants):
        flops = 1e11 * (width / 12) ** 4 * (1.05 if variant != "baseline" else 1)
        loss = 8 * flops**-0.045 * np.exp(rng.normal(0, 0.004))
        rows.append((variant, f"d{width}-L8", 0, flops, flops / 1e9, 1e6, loss))
    columns = ["variant", "size", "seed", "flops", "seconds", "tokens", "val/loss"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("name", ["screen", "paper"])
def test_no_tick_labels_collide_in_any_figure_of_a_report(tmp_path, figures, name) -> None:
    for table in ("ladder", "published"):
        rows = ladder() if table == "ladder" else published(tmp_path)
        rows.to_csv(tmp_path / "runs.csv", index=False)
        with analysis.style(name):
            write_report(tmp_path / "runs.csv", tmp_path / table)
    assert len(figures) == 12
    with analysis.style(name):
        for figure in figures:
            labels_apart(figure)


@pytest.mark.parametrize("width", [2.2, 3.25, 4.8, 9])
@pytest.mark.parametrize(
    ("low", "high"), [(1.68, 1.95), (3e19, 6e20), (1e11, 3e13), (1e-4, 1e-2), (1e5, 4e9)]
)
def test_ticks_of_a_logarithmic_axis_have_room_whatever_its_width(width, low, high) -> None:
    with analysis.style("paper", width=width):
        figure, (ax,) = plots.new_axes()
        ax.plot([low, high], [low, high])
        log_axes(ax)
        labels_apart(figure)
        assert len([t for t in ax.get_xticks() if low <= t <= high]) >= 2


def test_a_paper_gets_its_column_its_letters_and_no_title() -> None:
    """In the width of a column, 7 points and more at final size; the screen's style comes back."""
    gain = compute_equivalent_gain(paper.table_2(), "block")
    before = dict(mpl.rcParams)
    with analysis.style("paper"):
        figure, (ax,) = plots.new_axes()
        gain.plot(ax)
        plots.heading(ax, "not here")
        figure.draw_without_rendering()
        sizes = {text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()}
        assert min(sizes) >= 7
    assert tuple(figure.get_size_inches()) == (3.25, 2.4)
    assert ax.get_title() == ""
    assert dict(mpl.rcParams) == before
    with analysis.style("paper", width=6.5):
        assert plots.new_axes()[0].get_size_inches()[0] == 6.5
    figure, (ax,) = plots.new_axes()
    plots.heading(ax, "here")
    assert ax.get_title() == "here"


def test_a_style_that_is_none_is_named() -> None:
    with (
        pytest.raises(ValueError, match=r"no style 'poster'; one of screen, paper"),
        analysis.style("poster"),
    ):
        pass
    with pytest.raises(ValueError, match="width is -1"), analysis.style(width=-1):
        pass


def test_a_figure_is_saved_for_latex_too_the_same_each_time(tmp_path) -> None:
    """PDF with letters as text: journals refuse Type 3 fonts."""
    for name in ("a", "b"):
        figure, (ax,) = plots.new_axes()
        plots.by_depth(ax, {"full": pd.Series([1.0, 2.0])}, "RMS")
        plots.save(figure, tmp_path / f"{name}.png")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf.replace(b" ", b"")
    assert pdf == (tmp_path / "b.pdf").read_bytes()


def test_bands_lie_behind_the_data_and_leave_it_its_room() -> None:
    """Ten over each other still let a grid line through; one that explodes is cut."""
    x = np.geomspace(1e12, 1e14, 9)
    far = np.abs(np.linspace(-1, 1, 9)) ** 3
    curve = pd.DataFrame({"x": x, "gain": 1.1, "low": 1.05 - far, "high": 1.15 + 50 * far})
    curves = {f"v{i}": curve.assign(extrapolates=False) for i in range(10)}
    figure, (ax,) = plots.new_axes()
    plots.gain_by_compute(ax, curves)
    figure.draw_without_rendering()
    opaque = 1 - np.prod([1 - fill.get_alpha() for fill in ax.collections])
    assert opaque < 0.3
    lines = [line for line in ax.lines if line.get_label() in curves]
    assert all(line.zorder > fill.zorder for line in lines for fill in ax.collections)
    low, high = ax.get_ylim()
    assert low < 1.05 - np.median(far)
    assert 1.15 + 50 * np.median(far) < high < 51


def test_maps_of_depth_attention_in_one_report_have_one_scale_of_colours(
    tracked, tmp_path, figures
):
    evidence = gather("demo", None, tracked.folder, tracked.uri)
    page = Page(tmp_path)
    for part in STUDIES:
        part(evidence, page)
    ends = {image.get_clim() for figure in figures for ax in figure.axes for image in ax.images}
    assert len(ends) == 1
    assert sum(len(ax.images) for figure in figures for ax in figure.axes) == 2


def weights(most: float, names: list[str] | None = None) -> pd.DataFrame:
    """Reads of which the largest weight is ``most``."""
    names = names or ["embedding", "f1", "f2"]
    index = pd.MultiIndex.from_tuples([(1, "mlp"), (2, "output")], names=["sublayer", "kind"])
    rest = (1 - most) / (len(names) - 1)
    return pd.DataFrame([[most, *[rest] * (len(names) - 1)]] * 2, index, names)


def test_colours_of_maps_that_are_compared_mean_the_same(tmp_path, figures) -> None:
    """Where their largest weights differ, and so do the losses of their grids."""
    shapes = itertools.product((32, 40, 72), (4, 8), (2, 4), ("baseline", "full"))
    columns = ["model.dim", "model.num_layers", "model.num_heads", "variant"]
    runs = pd.DataFrame(list(shapes), columns=columns)
    runs["val/loss"] = 2 + 0.01 * np.arange(len(runs)) + 0.5 * (runs["variant"] == "full")
    records = {
        name: SimpleNamespace(attention=weights(most), step=1, profile={})
        for name, most in (("block8", 0.5), ("full", 0.9))
    }
    evidence = SimpleNamespace(
        done=runs, chosen=runs, tuned=[], variants=["full"], depth=records, sizes=["d8-L1"]
    )
    page = Page(tmp_path)
    for part in (_depth, _architecture):
        part(evidence, page)
    ends = [ax.images[0].get_clim() for figure in figures for ax in figure.axes[:1]]
    assert ends[:2] == [(0, 0.9)] * 2
    assert ends[2] == ends[3] == (runs["val/loss"].min(), runs["val/loss"].max())
    assert ends[4] == ends[5] == (1.802, max(ends[5]))  # the paper's own lowest


@pytest.mark.parametrize("name", ["screen", "paper"])
def test_no_tick_labels_collide_in_figures_that_have_much_to_name(name) -> None:
    """Many sources, long names of sublayers and values, many sizes."""
    grid = pd.DataFrame(
        np.linspace(2, 3, 60).reshape(5, 12),
        pd.Index(np.linspace(0.1, 0.5, 5), name="heads / num_layers"),
        pd.Index(np.linspace(10.25, 120.25, 12), name="d / num_layers"),
    )
    sizes = [f"d{width}-L12-kda" for width in range(12, 68, 4)]
    table = pd.DataFrame({"variant": "full", "size": sizes, "gain": np.linspace(1, 1.2, 14)})
    x = np.geomspace(1e-4, 3e-2, 9)
    cells = pd.DataFrame({"size": "d12", "optim.lr": x, "loss": 2 + np.log(x / 1e-3) ** 2 / 50})
    chosen = pd.DataFrame({"size": ["d12"], "best": [1e-3], "loss": [2.0]})
    forest = pd.DataFrame({"variant": [f"a-long-name-{i}" for i in range(12)]})
    forest = forest.assign(difference=-1.2345, low=-1.2347, high=-1.2343)
    drawings = [
        lambda ax: plots.depth_map(ax, weights(0.5, ["embedding", *[f"f{i}" for i in range(96)]])),
        lambda ax: plots.depth_map(ax, weights(0.5, [f"partial{i}" for i in range(9)])),
        lambda ax: plots.grid_map(ax, grid),
        lambda ax: plots.gain_per_size(ax, table, {"full": (1.1, 1.05, 1.2)}),
        lambda ax: plots.tuning_bowls(ax, cells, chosen, "optim.lr", "full"),
        lambda ax: plots.ablation_forest(ax, forest),
    ]
    with analysis.style(name):
        for draw in drawings:
            figure, (ax,) = plots.new_axes()
            draw(ax)
            labels_apart(figure)


def test_panels_of_one_figure_have_axes_of_one_kind(tracked, tmp_path, figures) -> None:
    """Ours beside the paper's, a variant's beside another's: scales and labels agree."""
    report = write_report(
        "demo", tmp_path, spec=tracked.spec, folder=tracked.folder, tracking_uri=tracked.uri
    )
    drawn = dict(zip((path.stem for path in report.figures), figures, strict=True))
    assert "depth_attention_full" in drawn
    for name, other in (
        ("loss", "loss_paper"),
        ("ablation", "ablation_paper"),
        ("depth_attention_full", "depth_attention_block8"),
    ):
        kinds = [
            (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel())
            for ax in (drawn[name].axes[0], drawn[other].axes[0])
        ]
        assert kinds[0] == kinds[1], name


def test_curves_are_against_what_the_verdict_is_about(tracked, tmp_path, figures) -> None:
    report = write_report("demo", tmp_path, folder=tracked.folder, tracking_uri=tracked.uri)
    names = [path.stem for path in report.figures]
    for name in ("curves", "loss", "gain_by_compute"):
        ax = figures[names.index(name)].axes[0]
        assert ax.get_xlabel() == "training compute C (FLOP)"
        assert re.search("FLOP", report.verdict)


def test_files_of_panels_have_plain_names_and_no_two_the_same(tmp_path) -> None:
    """Whatever a variant is called."""
    page = Page(tmp_path)
    panels = {f"bowls_{name}": plots.new_axes()[0] for name in ("a/../b", "a|..|b", "a b", "ü")}
    page.figure(panels, "Loss.")
    assert [path.parent for path in page.figures] == [tmp_path] * 4
    assert len({path.name for path in page.figures}) == 4
    assert all(re.fullmatch(r"[\w.-]+\.png", p.name, re.A) for p in page.figures)
