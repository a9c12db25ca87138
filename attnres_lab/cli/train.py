"""``attnres train``: one run from one YAML."""

from __future__ import annotations

from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(train)


def train(
    config: Path = typer.Argument(help="A run YAML, or the name of one: tiny, nano."),
    overrides: list[str] = typer.Argument(
        None, help="Dotted keys, for example model.residual.name=block optim.lr=3e-3."
    ),
) -> None:
    """Train one model; a run that was interrupted goes on where it stopped."""
    from attnres_lab.config import content_hash, load, parse_overrides
    from attnres_lab.runs.paths import runs_folder

    run_config = load(config, parse_overrides(overrides or []))
    from attnres_lab import tracking  # heavy, and of no use for a config that does not load
    from attnres_lab.training import run as training
    from attnres_lab.training.plugged import check_plugged

    check_plugged([run_config])  # before a folder is made
    folder = (
        runs_folder()
        / "train"
        / f"{run_config.name}-{run_config.run_name}-{content_hash(run_config)}"
    )
    print(f"{run_config.run_name} in {folder}")
    with tracking.RunMirror(folder):
        result = training.run(run_config, folder, progress=True)
    print(
        f"{result.status.state} at step "
        f"{result.status.step}{': ' + result.status.message if result.status.message else ''}"
    )
    for key, value in result.metrics.items():
        if key.startswith("depth/"):  # as many as reads and sources: in metrics.jsonl and in the UI
            continue
        print(
            f"  {key:28} {value:,.6g}" if isinstance(value, int | float) else f"  {key:28} {value}"
        )
    if result.status.state == "stopped":
        raise typer.Exit(130)
    if result.status.state == "diverged":
        raise typer.Exit(1)
