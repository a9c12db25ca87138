"""``attnres quickstart`` and ``attnres init``: the first steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import typer

STARTERS = (
    "experiments/quickstart.yaml",
    "sweeps/quickstart.yaml",
    "sweeps/schema.json",
    "notebooks/1_from_a_sweep_to_a_gain.ipynb",
    "notebooks/2_your_own_table.ipynb",
    "notebooks/3_looking_into_depth_attention.ipynb",
    "notebooks/4_a_trainer_of_your_own.ipynb",
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(quickstart)
    app.command()(init)


def quickstart() -> None:
    """Run the sweep quickstart (minutes on two cores), then report what it has shown."""
    from attnres_lab.cli.report import report
    from attnres_lab.sweep.engine import run_sweep
    from attnres_lab.sweep.spec import load_spec

    name = Path("quickstart")
    source = load_spec(name)
    outcome = run_sweep(source, source.folder)
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)
    report(name, scale=None, out=None)


def init(folder: Path = typer.Argument(help="A folder; made if need be.")) -> None:
    """Copy an experiment, a sweep and the notebooks to start from; overwrites nothing."""
    from attnres_lab.errors import UserError
    from attnres_lab.shipped import HERE

    if there := [name for name in STARTERS if (folder / name).exists()]:
        raise UserError(
            f"{folder / there[0]}: exists; init overwrites nothing, name another folder"
        )
    try:
        for name in STARTERS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, folder / name)
            print(folder / name)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None
    print(f"\nNext: cd {folder}, edit, then: attnres sweep run sweeps/quickstart.yaml")
