"""The notebooks run on a fresh clone, without a finished sweep."""

import os
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_four() -> None:
    assert len(NOTEBOOKS) == 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [
        cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")
    ]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, str]:
    """The text that each notebook prints, by its number; warnings are errors in them too."""
    from nbclient import NotebookClient

    runs = tmp_path_factory.mktemp("runs")
    before = dict(os.environ)
    os.environ |= {
        "ATTNRES_RUNS": str(runs),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error:::analysis",
    }
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    texts = {}
    try:
        for path in NOTEBOOKS:
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(
                notebook, timeout=180, resources={"metadata": {"path": str(path.parent)}}
            ).execute()
            cells = [output for cell in notebook.cells for output in cell.get("outputs", [])]
            texts[path.stem[0]] = "\n".join(
                output.get("text", output.get("data", {}).get("text/plain", "")) for output in cells
            )
    finally:
        os.environ.clear()
        os.environ |= before
    return texts


@pytest.mark.slow
def test_without_a_sweep_the_first_gives_the_published_gains(outputs) -> None:
    """STATISTICS: Block 1.2390 [1.1838, 1.2967], Full 1.3064."""
    assert "Taking the paper's Table 2 instead" in outputs["1"]
    assert "1.2390" in outputs["1"]
    assert "1.3064" in outputs["1"]


@pytest.mark.slow
def test_the_second_finds_the_gain_that_it_put_in(outputs) -> None:
    paired = outputs["2"].split("\npaired ")[1].split("\n")[0].split()
    assert float(paired[0]) <= 1.2 <= float(paired[2])
    assert "need at least 3" in outputs["2"]
    published = outputs["2"].split("need at least 3")[1]
    assert "difference -0.030" in " ".join(published.split())
    assert "exponent 0.05 assumed" in published


@pytest.mark.slow
def test_the_third_looks_into_a_record(outputs) -> None:
    assert "this record is made up" in outputs["3"]
    assert "evenness" in outputs["3"]


@pytest.mark.slow
def test_the_fourth_trains_with_a_stock_trainer(outputs) -> None:
    """Twenty steps; ten where two batches are one step."""
    assert re.search(r"val/loss \d\.\d+ in .*\.ckpt", outputs["4"])
    assert "val/loss" in outputs["4"].split("logged: ")[1].splitlines()[0]
    assert "optimiser steps: 10" in outputs["4"]
    assert "'val/bpb'" in outputs["4"]
