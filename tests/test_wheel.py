"""The wheel, installed beside the libraries that it needs, works in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
HIDDEN = ("PYTHONPATH", "ATTNRES_RUNS", "MLFLOW_TRACKING_URI")
BARE = {key: value for key, value in os.environ.items() if key not in HIDDEN}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment: this one's libraries, and the wheel."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("attnres_lab", "analysis", "experiments", "sweeps", "notebooks"):
        shutil.copytree(ROOT / name, place / "source" / name, symlinks=True)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--quiet"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(place), "."]
    subprocess.run(build, cwd=place / "source", env=BARE, check=True)
    shutil.rmtree(place / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    (site,) = place.glob("venv/lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = place.glob("*.whl")
    install = [*pip, "--python", str(python), "install", *offline, str(wheel)]
    subprocess.run(install, env=BARE, check=True)
    return python


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty")


def attnres(python: Path, folder: Path, *words: str) -> str:
    """What a command prints that ends well, with no path but the environment's own."""
    result = subprocess.run(
        [str(python.parent / "attnres"), *words],
        cwd=folder,
        env=BARE,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


def test_a_shipped_sweep_runs_and_reports_beside_a_folder_called_analysis(
    python: Path, empty: Path
) -> None:
    """The folder is the user's own, and also where Python looks first."""
    (empty / "analysis").mkdir()
    (empty / "analysis" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    attnres(python, empty, "sweep", "run", "smoke")
    assert "24/24 done" in attnres(python, empty, "sweep", "status", "smoke")
    for command in ([str(python.parent / "attnres")], [str(python), "-m", "attnres_lab"]):
        result = subprocess.run(
            [*command, "report", "smoke"],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(empty), "ATTNRES_RUNS": str(empty / "runs")},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert (empty / "runs" / "sweeps" / "smoke" / "report" / "report.html").exists()
    shutil.rmtree(empty / "analysis")


def test_studies_benchmarks_and_starters_are_part_of_it(python: Path, empty: Path) -> None:
    assert attnres(python, empty, "--version") == "attnres-lab 0.1.0\n"
    assert "45 trials, 45 new" in attnres(python, empty, "sweep", "plan", "scaling", "--scale=nano")
    small = ["--dim=8", "--layers=1", "--batch=1", "--seq-len=8", "--threads=1", "--repeats=2"]
    said = attnres(python, empty, "bench", "residual", *small, "--no-peers", "--variants=full")
    assert "wrote benchmarks/results/" in said
    said = attnres(python, empty, "init", "mine")
    assert [str(f.relative_to(empty)) for f in sorted(empty.glob("mine/*/*"))] == sorted(
        said.splitlines()[:-2]
    )
    assert "42 trials" in attnres(python, empty / "mine", "sweep", "plan", "quickstart")
    sweep = empty / "mine" / "sweeps" / "quickstart.yaml"  # the command takes one's own first
    sweep.write_text(
        "name: quickstart\nquestion: Is it quick?\nbase: ../experiments/quickstart.yaml\n"
        "overrides: {budget: 3 steps}\nspace: {model.residual: [baseline, full]}\n"
    )
    assert "runs/sweeps/quickstart/report/report.html" in attnres(
        python, empty / "mine", "quickstart"
    )


def test_analysis_is_one_package_under_two_names(python: Path, tmp_path: Path) -> None:
    code = (
        "import analysis, sys\n"
        "import attnres_lab.analysis.report.page as page\n"
        "import attnres_lab.analysis as same\n"
        "from attnres_lab.analysis import load_runs\n"
        "assert same is analysis and load_runs is analysis.load_runs\n"
        "assert page is sys.modules['analysis.report.page']\n"
        "assert page.__spec__.name == page.__name__ == 'analysis.report.page'\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([str(python), "-I", "-c", code], cwd=tmp_path, check=True)
