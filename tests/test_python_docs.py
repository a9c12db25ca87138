"""The pages with code are true: their Python runs as it stands, their commands in the order in
which a reader meets them.
"""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("python.md", "own_data.md", "own_model.md")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def in_order(page: str) -> list[str]:
    """The pieces of code of a page; those of own_model.md go on from its first."""
    first, *others = blocks(page, "python")
    return [first, *(f"{first}{code}" if page == "own_model.md" else code for code in others)]


def shell(commands: str, folder: Path) -> str:
    """What commands of a page print that all end well, with no path but the checkout's."""
    hidden = ("MLFLOW_TRACKING_URI", "ATTNRES_RUNS")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"ATTNRES_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    program = f"attnres() {{ '{sys.executable}' -m attnres_lab \"$@\"; }}\nset -e\n"
    done = subprocess.run(
        ["bash", "-c", program + commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CODE = [(page, code) for page in PAGES for code in in_order(page)]


@pytest.mark.parametrize(("page", "code"), CODE, ids=[f"{p}-{i}" for i, (p, _) in enumerate(CODE)])
def test_the_code_runs(
    page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", module="lightning_fabric.*")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache")) if page == "own_data.md" else None
    exec(compile(code, f"docs/{page}", "exec"), {})


@pytest.mark.slow
def test_own_text_in_an_empty_folder_from_plan_to_report_and_a_store_made_again(
    tmp_path: Path,
) -> None:
    """The commands of own_data.md, then those of broken_store.md, as a shell runs them."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(300):
        words = " ".join(f"word{(number * k) % 97}" for k in range(400))
        (texts / f"{number}.txt").write_text(words)
    (sweep,) = blocks("own_data.md", "yaml")
    sweep = re.sub(r"budget: \d+ steps", "budget: 12 steps", sweep)
    (tmp_path / "own_text.yaml").write_text(sweep.replace("/data/texts", str(texts)))
    pages = ("own_data.md", "broken_store.md")
    said = "".join(shell(blocks(page, "bash")[0], tmp_path) for page in pages)
    assert "18 trials, 18 new" in said
    assert "18/18 done" in said
    assert "full" in said
    assert (tmp_path / "runs" / "sweeps" / "own_text" / "report" / "report.html").exists()
    assert re.search(r"^1 runs and sweeps are in ", said, re.M)


@pytest.mark.slow
def test_an_own_model_in_a_sweep_from_its_function_to_a_gain(tmp_path: Path) -> None:
    """The files and commands of own_model.md; five steps a trial instead of a hundred."""
    model, _, function = blocks("own_model.md", "python")
    (tmp_path / "mynet.py").write_text(f"{model}\n\n{function}")
    (sweep,) = blocks("own_model.md", "yaml")
    (tmp_path / "mynet.yaml").write_text(sweep.replace("100 steps", "5 steps"))
    (commands,) = blocks("own_model.md", "bash")
    said = shell(commands.replace("$PWD", f"$PWD:{ROOT}"), tmp_path)
    assert "27/27 done" in said
    assert "27 runs, 3 sizes (d8-L3, d16-L3, d32-L3), 3 seeds of its own at each size" in said
