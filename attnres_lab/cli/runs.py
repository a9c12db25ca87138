"""``attnres runs``: the runs in the terminal and as tables; ``attnres track rebuild``. They read
the run folders, so they need no store.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = (
    "run",
    "state",
    "variant",
    "size",
    "seed",
    "step",
    "val/loss",
    "tokens",
    "flops",
    "seconds",
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    runs = typer.Typer(help="List, compare and export runs.", no_args_is_help=True)
    runs.command("list")(show)
    runs.command()(compare)
    runs.command()(export)
    track = typer.Typer(help="The MLflow store.", no_args_is_help=True)
    track.command()(rebuild)
    track.callback()(lambda: None)
    app.add_typer(runs, name="runs")
    app.add_typer(track, name="track")


def show(
    folder: Path = typer.Argument(None, help="A sweep's folder or any other; by default all runs."),
    limit: int = typer.Option(50, min=0, help="Runs to show; 0: all."),
    sort: str = typer.Option("", help="A column or config key, lowest first; -val/loss: highest."),
    filter: list[str] = typer.Option(
        [], help="For example variant=full, state!=failed, 'val/loss<3'; several hold together."
    ),
) -> None:
    """A line per run, newest first."""
    from attnres_lab.runs.table import find, select
    from attnres_lab.runs.table import table as records
    from attnres_lab.sweep.summary import columns

    paths = find(folder)
    chosen = bool(sort or filter)
    found = select(records(paths if chosen or not limit else paths[:limit]), filter, sort)
    if not found:
        print(f"none of the {len(paths)} runs is {', '.join(filter)}")
        return
    found = [r | {"state": f"{r['state']}: stale"} if "stale" in r else r for r in found]  # type: ignore[operator]
    lines = [tuple(_cell(record.get(key)) for key in COLUMNS) for record in found[: limit or None]]
    print(columns([COLUMNS, *lines]))
    more = (len(found) if chosen else len(paths)) - limit
    if limit and more > 0:
        kind = "" if chosen else "older "
        print(f"{more} {kind}runs are not shown; --limit 0 shows all")


def compare(
    a: str = typer.Argument(help="A run's folder, its hash or name, or the beginning of these."),
    b: str = typer.Argument(help="The other run."),
) -> None:
    """Where the configs of two runs differ, then their final numbers side by side."""
    from rich.table import Table

    from attnres_lab.runs.table import locate, table

    first, second = table([locate(a), locate(b)])
    metrics = Table("metric", a, b, "difference", box=None, header_style="bold")
    configs = Table("config", a, b, box=None, header_style="bold")
    for key in dict.fromkeys([*first, *second]):
        x, y = first.get(key), second.get(key)
        if key.startswith("config/"):
            if x != y:
                configs.add_row(key.removeprefix("config/"), _cell(x), _cell(y))
        elif isinstance(x, int | float) and isinstance(y, int | float):
            metrics.add_row(key, _cell(x), _cell(y), _cell(y - x))
        else:
            metrics.add_row(key, _cell(x), _cell(y), "")
    console = _console()
    console.print(configs if configs.row_count else "the configs are equal")
    console.print(metrics)


def export(
    file: Path = typer.Argument(help="A .csv, .parquet or .json file to write."),
    folder: Path = typer.Argument(None, help="A sweep's folder or any other; by default all runs."),
    rows: bool = typer.Option(False, "--rows", help="A line per logged row, not per run."),
) -> None:
    """Write the runs as a table: final numbers, labels, configs."""
    from attnres_lab.runs.table import find
    from attnres_lab.tracking.export import write_table

    typer.echo(f"{file}: {write_table(file, find(folder), rows=rows)} lines")


def rebuild(
    folder: Path = typer.Argument(
        None, help="A run, a sweep, or any folder above them; by default all runs."
    ),
) -> None:
    """Write what is in the run folders to the MLflow store, and the points of sweeps to their
    Optuna studies; what they hold is not doubled.
    """
    from attnres_lab import tracking
    from attnres_lab.errors import UserError
    from attnres_lab.runs.paths import runs_folder
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.sweep.restore import restore_study

    count = 0
    with tracking.readable_errors():
        for home in tracking.rebuild(folder or runs_folder()):
            recorded = 0
            try:
                if SweepFolder(home).facts().get("yaml"):
                    recorded = restore_study(SweepFolder(home))
            except (UserError, KeyError) as error:  # it runs, or its space is another one by now
                typer.echo(f"{home}: its study stays as it is: {error}", err=True)
            typer.echo(f"{home}{f': {recorded} points recorded in its study' if recorded else ''}")
            count += 1
    typer.echo(f"{count} runs and sweeps are in {tracking.redact(tracking.tracking_uri())}")


def _console() -> Console:
    """Wide where the output goes to a file or another program: nothing is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 400, highlight=False)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "" if value is None else str(value)
