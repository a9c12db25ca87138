"""A store of the test's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.stores import make_empty, provide

CHROMIUM = shutil.which("chromium")
#: Pictures that the docs show.
DOCS = {
    *("mlflow_runs", "mlflow_depth", "loss_against_flops", "sweep_note"),
    *("report", "report_phone", "quickstart-loss"),
}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A store with its schema and nothing else: made once, since that takes seconds."""
    return make_empty(tmp_path_factory.mktemp("store"))


@pytest.fixture
def runs(tmp_path, monkeypatch, empty_store) -> Path:
    """The folder of the runs, with an embedded store."""
    folder = tmp_path / "runs"
    provide(empty_store, folder)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ATTNRES_RUNS", str(folder))
    return folder


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless."""
    if CHROMIUM is None:
        pytest.skip("no chromium here: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install attnres-lab[browser]"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Screenshots:
    """Pictures of pages, taken once all is checked that they show: in the test's folder, and those
    of ``DOCS`` in $ATTNRES_SCREENSHOTS. After ``make quickstart``
    ``ATTNRES_SCREENSHOTS=docs/images ATTNRES_FINISHED=runs pytest -m infra tests/tracking`` makes
    the docs' anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, page, name: str) -> None:
        """Write one, of a page or of a part of it; the docs' in few colours, for they are in the
        repository.
        """
        docs = os.environ.get("ATTNRES_SCREENSHOTS") if name in DOCS else None
        file = (Path(docs) if docs else self.folder) / f"{name}.png"
        page.screenshot(path=file)
        if docs:
            with Image.open(file) as picture:
                few = picture.convert("RGB").quantize(255, method=Image.Quantize.MEDIANCUT)
                few.save(file, optimize=True)


@pytest.fixture(scope="session")
def finished() -> Path:
    """$ATTNRES_FINISHED: a folder of runs with the quickstart and its report, for pictures of the
    docs that show what came out.
    """
    if not (folder := os.environ.get("ATTNRES_FINISHED")):
        pytest.skip("pictures of a finished quickstart: ATTNRES_FINISHED names its folder of runs")
    return Path(folder).absolute()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Screenshots:
    return Screenshots(tmp_path_factory.mktemp("screenshots"))
