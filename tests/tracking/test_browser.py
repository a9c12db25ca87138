"""What a user finds in MLflow's pages: a real sweep, a real server, a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from tracking_helpers import OLD_LOADER

from attnres_lab.runs.folder import read_json
from attnres_lab.tracking import log_report
from attnres_lab.tracking.figures import LETTERS, TILE

pytestmark = [pytest.mark.infra, pytest.mark.filterwarnings(OLD_LOADER)]
ROOT = Path(__file__).parents[2]
SWEEP = """
name: browse
base: base.yaml
overrides: {train.log_every: 4, train.probe_every: 32, model.dim: 16, budget: 64 steps}
space:
  model.residual: [{name: baseline}, {name: full}, {name: block, num_blocks: 8}]
  seed: [0]
launcher: {name: local, workers: 1}
"""
VARIANTS = ("baseline", "full", "block8")
TRIALS = {f"{variant}-d16-L8-s0" for variant in VARIANTS}
GAIN = 1.25  # of a made-up report: a sweep of one size has none
REPORT = {
    "report.md": "# browse\n\nNo verdict: the evidence is too thin.\n",
    "report.html": "<html><body><h1>The report of browse</h1></body></html>",
    "gains.json": f'{{"full": {{"gain": {GAIN}, "low": 1.1, "high": 1.4}}}}',
}


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
    for name, text in REPORT.items():
        (folder / "report" / name).write_text(text)
    log_report("browse", folder / "report")
    yield folder
    patch.undo()


@contextmanager
def serving(folder: Path):
    """The address that ``attnres ui`` prints, in a working directory that has nothing to do with
    the runs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "attnres_lab", "ui"],
        cwd="/",
        env=os.environ | {"ATTNRES_RUNS": str(folder)},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def address(runs) -> str:
    with serving(runs / "runs") as address:
        yield address


@pytest.fixture
def page(browser):
    """A user who was never here."""
    page = browser.new_page(viewport={"width": 1400, "height": 860})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def open_runs(page, address: str, query: str = "", name: str = "browse") -> None:
    """The experiment's page by the address that ``attnres ui`` prints."""
    page.goto("about:blank")
    page.goto(address + query)
    page.get_by_role("link", name=name, exact=True).wait_for()
    if (
        assistant := page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    ).count():
        assistant.click()


def links(page) -> set[str]:
    return {
        text
        for text in page.get_by_role("link").all_inner_texts()
        if re.fullmatch(r"\w+-d\d+-L\d+-s\d+", text)
    }


def test_the_table_opens_with_the_trials_and_the_columns_of_the_science(
    page, address, screenshots
) -> None:
    """By the view in the address, without a click: a line for each trial, and variant, size, seed,
    loss and gain in sight, from left to right.
    """
    open_runs(page, address)
    for variant in VARIANTS:
        page.get_by_role("link", name=f"{variant}-d16-L8-s0", exact=True).wait_for()
    assert links(page) == TRIALS
    places = []
    for name in ("variant", "size", "seed", "val/loss", "gain/best", "params"):
        head = page.locator(".ag-header-cell").get_by_text(name, exact=True)
        head.wait_for()
        box = head.bounding_box()
        places += [box["x"], box["x"] + box["width"]]
    assert places == sorted(places)
    assert places[-1] <= page.viewport_size["width"]
    cells = page.locator(".ag-center-cols-container [role=row]").all_inner_texts()
    seen = {word for cell in cells for word in cell.split()}
    assert {*VARIANTS, "d16-L8", f"{GAIN}"} <= seen
    screenshots.keep(page, "table")


def test_a_finished_study_opens_on_its_trials_and_its_gain(page, finished, screenshots) -> None:
    """The sweep with the gain that its report found, and below it the newest of its trials."""
    gains = read_json(finished / "sweeps" / "quickstart" / "report" / "gains.json") or {}
    with serving(finished) as address:
        open_runs(page, address, name="quickstart")
        assert len(links(page)) > 10
        first = page.locator(".ag-center-cols-container [role=row]").first
        best = max(gain["gain"] for gain in gains.values())
        assert first.get_by_text(f"{best:.4f}"[:-1]).count()
        screenshots.keep(page, "mlflow_runs")


def test_sorted_by_its_date_the_table_folds_trials_under_their_sweep(page, address) -> None:
    open_runs(page, address)
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).wait_for()
    page.locator(".ag-header-cell").get_by_text("Created", exact=True).click()
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).wait_for(state="detached")
    page.locator("[data-component-id$='runnamecellrenderer.tsx_46']").first.click()
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).wait_for()
    assert links(page) == TRIALS


def test_a_filter_by_variant_leaves_its_trials(page, address, screenshots) -> None:
    """The tags of the sweep are on its trials."""
    open_runs(page, address)
    box = page.get_by_test_id("search-box")
    box.click()
    box.fill("tags.variant = 'full' and tags.sweep = 'browse'")
    box.press("Escape")
    box.press("Enter")
    page.wait_for_url(re.compile("searchFilter=tags"))
    page.get_by_role("link", name="block8-d16-L8-s0", exact=True).wait_for(state="detached")
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).wait_for()
    assert links(page) == {"full-d16-L8-s0"}


def test_loss_curves_lie_over_each_other_against_flops(page, address, screenshots) -> None:
    """Validation first, then training; three variants in one chart, with FLOPs as the x axis."""
    open_runs(page, address, "&compareRunsMode=CHART")
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
    screenshots.keep(page, "loss_against_flops")


def test_the_note_of_the_sweep_is_a_page_with_a_table(page, address, screenshots) -> None:
    """Progress, verdict and the ablation table."""
    open_runs(page, address)
    page.get_by_role("link", name="browse", exact=True).click()
    page.get_by_text("3 of 3 trials have a result").wait_for()
    page.get_by_text("Show more").click()
    assert page.get_by_text("No verdict: the evidence is too thin.").count()
    table = page.locator("pre code").inner_text().splitlines()
    assert [line.split()[1] for line in table[2:]] == ["baseline", "full", "block8"]
    assert page.locator("pre code").evaluate("e => getComputedStyle(e).fontFamily").count("mono")
    screenshots.keep(page, "sweep_note")


def first_map(page):
    """The picture in the tile of depth maps: MLflow opens it at step 0, where there is none."""
    page.get_by_placeholder("Search metric charts").fill("depth attention")
    page.get_by_text("No image logged at this step").first.wait_for(state="attached")
    page.get_by_role("slider").first.press("ArrowRight")
    image = page.locator("img[src*='depth']").or_(page.locator("img[src^='blob:']")).first
    image.scroll_into_view_if_needed()
    return image


def in_sight(page, image) -> bool:
    """Whether the middle and all corners of the picture are what one sees there."""
    return image.evaluate(
        """image => {
            const box = image.getBoundingClientRect()
            return [.02, .5, .98].every(x => [.02, .5, .98].every(y => document.elementFromPoint(
                box.left + x * box.width, box.top + y * box.height) === image))
        }"""
    )


def readable(image) -> bool:
    """Whether the letters of its axes are 9 pixels high or more."""
    return LETTERS * image.evaluate("image => image.clientHeight") / (TILE[1] * 72) >= 9


def test_depth_maps_are_readable_at_their_tiles_size(page, address, screenshots) -> None:
    """Among the charts of the experiment, and nothing lies over them."""
    open_runs(page, address, "&compareRunsMode=CHART")
    image = first_map(page)
    page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    assert in_sight(page, image)
    assert readable(image)
    screenshots.keep(page, "mlflow_depth")


def test_a_runs_page_shows_its_depth_map_without_the_list_of_parameters(page, address) -> None:
    """MLflow sets all parameters of the run over the map, until the chart is told not to."""
    open_runs(page, address)
    page.get_by_role("link", name="full-d16-L8-s0", exact=True).click()
    page.get_by_role("tab", name="Model metrics").click()
    page.get_by_placeholder("Search metric charts").fill("depth attention")
    page.locator("[data-component-id$='chartcard.common.tsx_158']").first.click()
    page.get_by_role("menuitem", name="Configure").click()
    page.get_by_role("switch", name="Show run parameters").click()
    page.get_by_role("button", name="Save changes").click()
    image = first_map(page)
    page.wait_for_function("image => image.naturalWidth > 0", arg=image.element_handle())
    assert in_sight(page, image)
    assert readable(image)


def test_the_report_opens_among_the_artifacts_of_its_sweep(page, address) -> None:
    open_runs(page, address)
    page.get_by_role("link", name="browse", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("report", exact=True).click()
    page.get_by_text("report.html", exact=True).click()
    page.frame_locator("iframe").get_by_role("heading", name="The report of browse").wait_for()


def test_charts_open_with_the_losses(page, address) -> None:
    """Validation, then training, then depth maps, whatever else there is to draw."""
    open_runs(page, address, "&compareRunsMode=CHART")
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(2).wait_for(state="attached")
    text = page.locator("body").inner_text()
    heads = [re.search(rf"^{name}\s*\(\d+\)", text, re.M) for name in ("val", "train", "depth")]
    places = [head.start() for head in heads if head]
    assert len(places) == len(heads), text
    assert places == sorted(places)
    assert not re.search(r"^(factor|optim)\s*\(", text[: places[-1]], re.M)


def test_the_figures_to_explore_open_and_change_their_axis(page, address, screenshots) -> None:
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


def test_the_checkpoint_is_a_model_of_its_run(page, address, screenshots) -> None:
    """A reference that says where the weights lie."""
    open_runs(page, address)
    with page.expect_popup() as opened:
        page.get_by_role("link", name="full-d16-L8-s0-checkpoint").click()
    opened.value.get_by_text("checkpoints/last.ckpt").first.wait_for(timeout=60_000)
    opened.value.get_by_text("val/loss").first.wait_for()
    screenshots.keep(opened.value, "checkpoint")
