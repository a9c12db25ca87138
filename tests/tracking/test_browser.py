"""What a user finds in MLflow's pages: a real sweep, a real server, a real browser."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracking_helpers import OLD_LOADER

from attnres_lab.tracking import log_report
from attnres_lab.tracking.figures import LETTERS, TILE

pytestmark = [pytest.mark.infra, pytest.mark.filterwarnings(OLD_LOADER)]
ROOT = Path(__file__).parents[2]
SWEEP = """
name: browse
base: base.yaml
overrides: {train.log_every: 4, model.dim: 16, budget: 64 steps}
space:
  model.residual: [{name: baseline}, {name: full}, {name: block, num_blocks: 8}]
  seed: [0]
launcher: {name: local, workers: 1}
"""
REPORT = (
    "# browse\n\nNo verdict: the evidence is too thin.\n",
    "<html><body><h1>The report of browse</h1></body></html>",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished sweep with a report, and the environment that finds it."""
    folder = tmp_path_factory.mktemp("browse")
    patch = pytest.MonkeyPatch()
    patch.setenv("ATTNRES_RUNS", str(folder / "runs"))
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (folder / "browse.yaml").write_text(SWEEP)
    shutil.copyfile(ROOT / "experiments" / "quickstart.yaml", folder / "base.yaml")
    subprocess.run(
        [sys.executable, "-m", "attnres_lab", "sweep", "run", str(folder / "browse.yaml")],
        check=True,
        timeout=540,
    )
    (folder / "report").mkdir()
    for name, text in zip(("report.md", "report.html"), REPORT, strict=True):
        (folder / "report" / name).write_text(text)
    log_report("browse", folder / "report")
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def address(runs) -> str:
    """``attnres ui``, from a working directory that has nothing to do with the runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "attnres_lab", "ui"], cwd="/", stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture
def page(browser):
    """A user who was never here."""
    page = browser.new_page(viewport={"width": 1400, "height": 860})
    page.set_default_timeout(60_000)
    yield page
    page.close()


@pytest.fixture
def shot(page, screenshots, request):
    """A picture of the page at the end of the test."""
    yield screenshots
    screenshots.keep(page, request.node.name)


def open_runs(page, address: str, query: str = "") -> None:
    """The experiment's page with the sweep unfolded."""
    page.goto("about:blank")
    page.goto(address + query)
    page.get_by_role("link", name="browse", exact=True).wait_for()
    if (
        assistant := page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    ).count():
        assistant.click()


def unfold(page) -> None:
    """Once the shared view is there: where it comes late it folds all again."""
    page.get_by_text("You're viewing a shared view").wait_for()
    page.locator("[data-component-id$='runnamecellrenderer.tsx_46']").first.click()


def links(page) -> set[str]:
    return {
        text
        for text in page.get_by_role("link").all_inner_texts()
        if re.fullmatch(r"\w+-d\d+-L\d+-s\d+", text)
    }


def test_trials_are_grouped_under_their_sweep(page, address, shot) -> None:
    """The experiment opens on one row; unfolded it shows the three trials."""
    open_runs(page, address)
    assert not links(page)
    unfold(page)
    page.get_by_role("link", name="block8-d16-L8-s0", exact=True).wait_for()
    assert links(page) == {"baseline-d16-L8-s0", "full-d16-L8-s0", "block8-d16-L8-s0"}


def test_the_table_opens_with_the_columns_of_the_science(page, address, shot) -> None:
    """Variant, size, seed and loss are in sight, by the view in the address."""
    open_runs(page, address)
    for name in ("variant", "size", "seed", "val/loss"):
        head = page.locator(".ag-header-cell").get_by_text(name, exact=True)
        head.wait_for()
        box = head.bounding_box()
        assert box["x"] + box["width"] <= 1400, name
    unfold(page)
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).wait_for()
    assert len(links(page)) == 3


def test_a_filter_by_variant_leaves_its_trials(page, address, shot) -> None:
    """The tags of the sweep are on its trials."""
    open_runs(page, address)
    box = page.get_by_test_id("search-box")
    box.click()
    box.fill("tags.variant = 'full' and tags.sweep = 'browse'")
    box.press("Escape")
    box.press("Enter")
    page.wait_for_url(re.compile("searchFilter=tags"))
    unfold(page)
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).wait_for()
    assert links(page) == {"full-d16-L8-s0"}


def test_loss_curves_lie_over_each_other_against_flops(page, address, shot) -> None:
    """Validation first, then training; three variants in one chart, with FLOPs as the x axis."""
    open_runs(page, address, "&compareRunsMode=CHART")
    unfold(page)
    page.get_by_placeholder("Search metric charts").fill("^(val|train)/loss$")
    charts = page.locator(".js-plotly-plot")
    for chart in (charts.nth(0), charts.nth(1)):
        chart.locator(".scatterlayer .trace").nth(2).wait_for(state="attached")
    page.locator("[data-component-id='mlflow.charts.controls.global_chart_setup_dropdown']").click()
    page.get_by_text("Metric", exact=True).hover()
    page.get_by_role("menuitemcheckbox", name="flops", exact=True).press("Enter")
    page.keyboard.press("Escape")
    for chart in (charts.nth(0), charts.nth(1)):
        chart.locator(".xtitle", has_text="flops").first.wait_for()
        lines = {
            path.get_attribute("d") or ""
            for path in chart.locator(".scatterlayer .trace path.js-line").all()
        }
        assert len({line for line in lines if line.count("L") + line.count("C") >= 5}) == 3


def test_the_note_of_the_sweep_is_a_page_with_a_table(page, address, shot) -> None:
    """Progress, verdict and the ablation table."""
    open_runs(page, address)
    page.get_by_role("link", name="browse", exact=True).click()
    page.get_by_text("3 of 3 trials have a result").wait_for()
    page.get_by_text("Show more").click()
    assert page.get_by_text("No verdict: the evidence is too thin.").count()
    table = page.locator("pre code").inner_text().splitlines()
    assert [line.split()[1] for line in table[2:]] == ["baseline", "full", "block8"]
    assert page.locator("pre code").evaluate("e => getComputedStyle(e).fontFamily").count("mono")


def test_the_depth_heat_map_and_the_report_open(page, address, shot) -> None:
    """The image among the run's metrics, the report among the sweep's artifacts."""
    open_runs(page, address)
    unfold(page)
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).click()
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_placeholder("Search metric charts").fill("depth attention")
    image = page.locator("img[src*='depth']").or_(page.locator("img[src^='blob:']")).first
    image.wait_for()
    shown = image.evaluate("image => image.clientHeight") / (TILE[1] * 72)
    assert LETTERS * shown >= 9  # pixels of its letters in the tile
    shot.keep(page, "mlflow_depth")
    open_runs(page, address)
    page.get_by_role("link", name="browse", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report", exact=True).click()
    page.get_by_text("report.html", exact=True).click()
    page.frame_locator("iframe").get_by_role("heading", name="The report of browse").wait_for()


def test_the_figures_to_explore_open_and_change_their_axis(page, address, shot) -> None:
    """The page of figures among the sweep's artifacts is drawn without a network, and a click puts
    FLOPs on its x axis.
    """
    page.route(
        lambda url: "127.0.0.1" not in url and not url.startswith(("blob:", "data:")),
        lambda route: route.abort(),
    )
    open_runs(page, address)
    page.get_by_role("link", name="browse", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("figures.html", exact=True).click()
    frame = page.frame_locator("iframe")
    chart = frame.locator(".js-plotly-plot").first
    assert (
        chart.locator(".scatterlayer .trace").count() in (0, 6)
        or chart.locator(".scatterlayer .trace").nth(5).wait_for()
    )
    chart.locator(".updatemenu-button", has_text="flops").click()
    chart.locator(".xtitle", has_text="flops").wait_for()
    # the curves, and the depth attention of two variants
    assert frame.locator(".js-plotly-plot").count() == 3


def test_the_checkpoint_is_a_model_of_its_run(page, address, shot) -> None:
    """A reference that says where the weights lie."""
    open_runs(page, address)
    unfold(page)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="full-d16-L8-s0-checkpoint").click()
    opened.value.get_by_text("checkpoints/last.ckpt").first.wait_for(timeout=60_000)
    opened.value.get_by_text("val/loss").first.wait_for()
    shot.keep(opened.value, "checkpoint")
