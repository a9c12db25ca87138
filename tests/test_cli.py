"""The command line: light to start, one readable line for a user's error."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from scipy import stats

from attnres_lab import cli
from attnres_lab.errors import UserError

ROOT = Path(__file__).parent.parent
SIZES = [("s", 1e12, 4.0), ("m", 1e13, 2.0)]


def attnres(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run a command in this process; its exit code."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["attnres", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(str(caught.value.code or 0))


def test_help_imports_nothing_heavy_and_costs_under_half_a_second_of_cpu() -> None:
    code = (
        "import resource, sys; sys.argv = ['attnres', '--help']\n"
        "from attnres_lab.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlflow', 'pytorch_lightning', 'optuna', 'pandas', 'scipy', "
        "'matplotlib'} & set(sys.modules)\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "assert not heavy, heavy\n"
        "assert use.ru_utime + use.ru_stime < 0.5, use\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in ("train", "data", "sweep", "report", "ui", "runs"):
        assert command in result.stdout


def test_a_users_error_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attnres(monkeypatch, "train", "experiments/tiny.yaml", "optim.lrr=1") == 2
    assert (
        capsys.readouterr().err == "error: override: optim.lrr: unknown key, did you mean 'lr'?\n"
    )


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(
        sys, "argv", ["attnres", "--debug", "train", "experiments/tiny.yaml", "optim.lrr=1"]
    )
    with pytest.raises(UserError, match="unknown key"):
        cli.main()


@pytest.mark.parametrize(
    "command", ["train", "sweep plan", "sweep run", "sweep status", "report", "data prepare"]
)
def test_a_missing_file_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attnres(monkeypatch, *command.split(), "gone.yaml") == 2
    error = capsys.readouterr().err
    assert "gone.yaml" in error
    assert error.count("\n") == 1


def test_power_needs_runs_to_take_the_noise_from_and_then_plans(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert attnres(monkeypatch, "sweep", "plan", "sweeps/smoke.yaml", "--power") == 2
    assert "--power takes the noise from runs that are done" in capsys.readouterr().err
    rows = [
        (v, s, seed, c, loss * (1 + 0.01 * seed * (v == "full")))
        for v in ("baseline", "full")
        for s, c, loss in SIZES
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["variant", "size", "seed", "flops", "val/loss"])
    monkeypatch.setattr("analysis.load_runs", lambda name: table)
    assert attnres(monkeypatch, "sweep", "plan", "sweeps/smoke.yaml", "--power") == 0
    # differences of log loss of 0 and log(1.01) at each size: sd 0.00704 between runs of a pair,
    # over sqrt(2) for one run, times a loss of 2.83
    out = capsys.readouterr().out
    assert "sd of a run 0.0141 nats" in out
    assert "gain from size to size 0.0000" in out
    assert "designs with a half-width of at most 5.0%, by the mean time of what is done; th" in out


@pytest.mark.parametrize(
    ("tune", "tuning"),
    [
        (None, 0.0),
        ({"values": {"d16-L8": 0.02, "d24-L8": 0.02, "d32-L8": 0.02}, "per": ["size"]}, 0.0),
        ({"start": 0.01, "seeds": 3}, 12.0),
        ({"start": 0.01, "from": "2 smallest sizes", "seeds": 2}, 16 / 3),
        ({"start": 0.01, "per": ["size"]}, 4.0),
    ],
)
def test_power_prices_designs_by_the_runs_and_the_tuning_of_this_sweep(
    tune: dict[str, Any] | None,
    tuning: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """The cheapest design against a search by hand, with the noise that the runs were given: half
    an hour each, four values a tuned cell.
    """
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    sweep = {
        "name": "s",
        "base": str(ROOT / "experiments/quickstart.yaml"),
        "space": {
            "size": {f"d{d}": {"model.dim": d} for d in (16, 24, 32)},
            "model.residual": ["baseline", "full"],
            "seed": {"each": 2},
        },
    }
    if tune:
        sweep["tune"] = {"key": "optim.lr", **tune}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    # log losses fall by 0.1 for each factor of e; a variant's pairs differ by -+0.01 over seeds and
    # by -+0.03 over the first and the last size
    rows = [
        (v, f"s{i}", seed, math.exp(i), 2 * math.exp(0.1 * (1 - i) + away * (v != "baseline")))
        for v in ("baseline", "full", "block8")
        for i in range(3)
        for seed in (0, 1)
        for away in [0.03 * (i - 1) + 0.01 * (2 * seed - 1)]
    ]
    table = pd.DataFrame(rows, columns=["variant", "size", "seed", "flops", "val/loss"])
    table["device_seconds"] = 1800.0 + 60 * table["seed"] - 30
    monkeypatch.setattr("analysis.load_runs", lambda name: table)
    words = ("sweep", "plan", str(tmp_path / "s.yaml"), "--power", "--half-width", "0.15")
    assert attnres(monkeypatch, *words) == 0
    seeds, sizes = 2 * 0.01**2, 0.03**2 - 0.01**2  # variances of a pair and of a size's own
    reached = {
        (n, k): math.expm1(stats.t.ppf(0.975, n - 1) * math.sqrt((seeds / k + sizes) / n) / 0.1)
        for n in range(3, 33)
        for k in range(1, 101)
    }
    runs = {(n, k): 3 * n * k + round(3 * n * tuning) for (n, k), w in reached.items() if w <= 0.15}
    n, k = min(runs, key=lambda design: (runs[design], design))
    out = capsys.readouterr().out
    assert f"of a variant's gain from size to size {2 * math.sqrt(sizes):.4f}, alpha 0.100" in out
    said = f", {tuning:.3g} tuning runs for each size and variant on average" if tuning else ""
    head = "half-width of at most 15.0%, by the mean time of what is done"
    assert f"{head}{said}; the cheapest first:" in out
    names, first = out.partition(head)[2].splitlines()[1:3]
    expected = {
        "sizes": n,
        "seeds": k,
        "runs": 3 * n * k,
        "tuning_runs": round(3 * n * tuning),
        "device_hours": runs[n, k] / 2,
        "half_width": reached[n, k],
    }
    found = dict(zip(names.split(), map(float, first.split()), strict=True))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("word", "said"), [("--version", "attnres-lab 0."), ("-h", "Usage: ")])
def test_version_and_short_help(
    word: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attnres(monkeypatch, word) == 0
    assert said in capsys.readouterr().out


def test_the_shell_completes_commands_by_the_installed_program() -> None:
    """As the script that ``attnres --install-completion`` writes asks for it in bash."""
    asked = {"_ATTNRES_COMPLETE": "complete_bash", "COMP_WORDS": "attnres sweep st"}
    program = Path(sys.executable).with_name("attnres")
    answer = subprocess.run(
        [program], env=os.environ | asked | {"COMP_CWORD": "2"}, capture_output=True, text=True
    )
    assert answer.stdout.split() == ["status", "stop"]


def test_init_copies_what_runs_and_overwrites_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert attnres(monkeypatch, "init", str(tmp_path / "mine")) == 0
    sweep = tmp_path / "mine" / "sweeps" / "quickstart.yaml"
    assert sweep.read_bytes() == (ROOT / "sweeps" / "quickstart.yaml").read_bytes()
    sweep.write_text("mine")
    assert attnres(monkeypatch, "init", str(tmp_path / "mine")) == 2
    assert "exists; init overwrites nothing" in capsys.readouterr().err
    assert sweep.read_text() == "mine"


def test_a_name_that_nothing_has_is_answered_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attnres(monkeypatch, "sweep", "plan", "scalling") == 2
    assert "no sweep is called so, did you mean 'scaling'?" in capsys.readouterr().err
