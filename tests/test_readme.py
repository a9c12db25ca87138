"""Every command and every snippet of the README runs, in the order in which a reader meets them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()
]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


def run_ui(environment: dict[str, str]) -> None:
    """Start it, wait for the address, and end it with Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "attnres_lab", "ui"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    deadline = time.time() + 90
    for line in process.stdout:
        if "http://127.0.0.1" in line:
            break
        assert time.time() < deadline
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode in (0, 130)


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "ATTNRES_RUNS": str(tmp_path / "runs"), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    for command in COMMANDS:
        program, *words = command.split()
        if program == "make":
            assert (
                subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True).returncode
                == 0
            ), command
        elif words == ["ui"]:
            run_ui(environment)
        else:
            assert program == "attnres"
            result = subprocess.run(
                [sys.executable, "-m", "attnres_lab", *words],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    notebook = next(snippet for snippet in SNIPPETS if "load_runs" in snippet)
    result = subprocess.run(
        [sys.executable, "-c", notebook], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "full" in result.stdout


def test_the_variant_of_the_readme_passes_the_conformance_suite(tmp_path: Path) -> None:
    """In its file, with its entry in the registry, as the README says."""
    shutil.copytree(ROOT / "attnres_lab", tmp_path / "attnres_lab")
    folder = tmp_path / "attnres_lab" / "residual"
    (folder / "scaled.py").write_text(
        next(snippet for snippet in SNIPPETS if "ScaledConfig" in snippet)
    )
    registry = (folder / "__init__.py").read_text()
    registry = registry.replace(
        "\n\nOWN", "\nfrom attnres_lab.residual.scaled import Scaled\n\nOWN"
    ).replace("= {\n", '= {\n    "scaled": Scaled,\n')
    (folder / "__init__.py").write_text(registry)
    check = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'residual')!r})\n"
        "import conformance\n"
        "from attnres_lab.residual import REGISTRY\n"
        "for name in dir(conformance):\n"
        "    if name.startswith('check_'): getattr(conformance, "
        "name)(REGISTRY['scaled'].Config())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_the_readme_names_only_files_that_exist() -> None:
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_sweep_of_the_readme_loads(tmp_path: Path) -> None:
    text = re.search(r"```yaml\n(.*?)```", README, re.S)
    assert text
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "sweeps" / "x.yaml").write_text(text.group(1))
    environment = {**os.environ, "ATTNRES_RUNS": str(tmp_path / "runs")}
    command = [
        sys.executable,
        "-m",
        "attnres_lab",
        "sweep",
        "plan",
        str(tmp_path / "sweeps" / "x.yaml"),
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "18 trials" in result.stdout
