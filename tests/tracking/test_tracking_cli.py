"""``attnres runs`` and ``attnres track rebuild`` on run folders."""

from __future__ import annotations

import pandas as pd
import pytest
from tracking_helpers import write_run, write_sweep
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.errors import UserError


def attnres(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def attnres_fails(*words: str) -> str:
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    return str(error.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    write_sweep(tmp_path / "sweeps" / "quick")
    write_run(tmp_path / "train" / "tiny", variant="block8", loss=2.5)
    return tmp_path


def test_list_shows_every_run(folder) -> None:
    """By its path below the runs folder, with its state, labels and loss; older ones are
    counted.
    """
    lines = attnres("runs", "list").splitlines()
    assert len(lines) == 6
    (tiny,) = (line.split() for line in lines if "train/tiny" in line)
    assert tiny[:7] == ["train/tiny", "finished", "block8", "d32-L8", "0", "50", "2.5"]
    assert "3 older runs" in attnres("runs", "list", "--limit", "2")
    assert len(attnres("runs", "list", str(folder / "sweeps")).splitlines()) == 5


def test_compare_shows_numbers_and_what_differs_in_the_configs(folder) -> None:
    """Equal config keys are left out."""
    lines = [
        line.split()
        for line in attnres(
            "runs", "compare", "train/tiny", "sweeps/quick/trials/full0"
        ).splitlines()
    ]
    assert ["val/loss", "2.5", "3", "0.5"] in lines
    assert ["model.residual.name", "block8", "full"] in lines
    assert not [line for line in lines if line[0] == "model.dim"]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_export_holds_every_number(folder, ending) -> None:
    """A line per run, or per row, readable by pandas."""
    file = folder / f"table.{ending}"
    read = pd.read_csv if ending == "csv" else pd.read_parquet
    attnres("runs", "export", str(file))
    table = read(file).set_index("name")
    assert len(table) == 5
    assert table.loc["block8-d32-L8-s0", "val/loss"] == 2.5
    assert table.loc["block8-d32-L8-s0", "model.dim"] == 32
    attnres("runs", "export", str(file), "--rows")
    assert (read(file).groupby("name").size() == 7).all()


def test_mistakes_get_one_line_with_the_remedy(folder, monkeypatch, tmp_path_factory) -> None:
    """No such run, an unknown format, no runs at all, no store."""
    assert "runs list" in attnres_fails("runs", "compare", "train/tony", "train/tiny")
    assert ".csv, .parquet, .json" in attnres_fails("runs", "export", "x.xlsx")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path_factory.mktemp("none")))
    assert "no runs here" in attnres_fails("runs", "list")
    assert "there is no store yet" in attnres_fails("ui")
