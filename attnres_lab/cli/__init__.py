"""The command line. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import typer
from rich.console import Console

from attnres_lab import __version__
from attnres_lab.errors import UserError

app = typer.Typer(
    name="attnres",
    help="Put Attention Residuals to the test: train, sweep, browse, report.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"attnres-lab {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True),
) -> None:
    """Options of every command."""


for _module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
    importlib.import_module(f"{__name__}.{_module}").register(app)


def main() -> None:
    """Run a command: a user's error is one line and exit code 2; a traceback only with --debug."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    try:
        app()
    except UserError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"error: {error}", style="red", markup=False
        )
        sys.exit(2)
    except OSError as error:  # a disk that is full, read-only or gone, wherever it shows
        if debug or not error.filename:
            raise
        where = f"error: {error.filename}: {error.strerror}; mend this, or set ATTNRES_RUNS"
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"{where} to a folder that can be written", style="red", markup=False
        )
        sys.exit(2)
