"""``attnres ui``: MLflow's user interface on the project's store."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(ui)


def ui(
    port: int = typer.Option(
        0,
        min=0,
        max=65535,
        help="Port on the loopback address; 0: 5000, or the next that is free.",
    ),
) -> None:
    """Browse runs, sweeps and reports in the browser. Ctrl-C ends it."""
    from attnres_lab.tracking.server import serve

    serve(port)
