"""A store of the test's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.stores import make_empty, provide

CHROMIUM = shutil.which("chromium")
#: Pictures that the docs show, by the test or the name under which they are kept.
DOCS = {
    "test_the_table_opens_with_the_columns_of_the_science": "mlflow_runs",
    "test_loss_curves_lie_over_each_other_against_flops": "loss_against_flops",
    "test_the_note_of_the_sweep_is_a_page_with_a_table": "sweep_note",
    "mlflow_depth": "mlflow_depth",
    "report": "report",
    "report_phone": "report_phone",
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
    """Pictures of pages: in the test's folder, and those of ``DOCS`` in $ATTNRES_SCREENSHOTS
    (``ATTNRES_SCREENSHOTS=docs/images pytest -m infra tests/tracking`` makes the docs' anew).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, page, name: str) -> None:
        """Write one; the docs' in few colours, for they are in the repository."""
        folder = self.folder
        if (docs := os.environ.get("ATTNRES_SCREENSHOTS")) and name in DOCS:
            folder, name = Path(docs), DOCS[name]
        page.screenshot(path=(file := folder / f"{name}.png"))
        if docs:
            with Image.open(file) as picture:
                few = picture.convert("RGB").quantize(255, method=Image.Quantize.FASTOCTREE)
                few.save(file, optimize=True)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory) -> Screenshots:
    return Screenshots(tmp_path_factory.mktemp("screenshots"))
