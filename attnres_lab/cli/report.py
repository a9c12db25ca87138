"""``attnres report``: what a sweep has shown."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(report)


@contextmanager
def _keeping() -> Iterator[None]:
    """What is read stays until the end: to look for garbage in it takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_keeping()
def report(
    sweep: Path = typer.Argument(help="A sweep YAML, or the name of one: quickstart, scaling."),
    scale: str | None = typer.Option(
        None, "--scale", help="For a study: nano, small, lab or paper."
    ),
    out: Path | None = typer.Option(
        None, "--out", help="Where to write; by default the folder report/ of the sweep."
    ),
) -> None:
    """Write what a sweep has shown: Markdown, one HTML page, and figures, stored with the sweep's
    run too.
    """
    from attnres_lab.errors import UserError
    from attnres_lab.runs.secrets import redact_settings
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.shipped import find
    from attnres_lab.sweep.spec import at_scale
    from attnres_lab.yamlfile import YamlFile

    ran = SweepFolder.named(str(sweep)) if len(sweep.parts) == 1 and not scale else None
    facts = ran.facts() if ran and not sweep.is_file() else {}
    if facts.get("yaml"):  # a sweep that ran, by its name: by the file that it ran with
        file, words = YamlFile(sweep, text=str(facts["yaml"])), str(sweep)
    else:
        found = find(sweep, "sweeps")
        file = at_scale(YamlFile(found), scale)
        words = f"sweeps/{found.name}{' --scale ' + scale if scale else ''}"
    name = file.data.get("name")
    if not isinstance(name, str):
        raise UserError(f"{file.where('name')}: name: missing; a sweep needs one")
    import attnres_lab.analysis  # noqa: F401  # first, so that analysis is ours
    from analysis.report import write_report

    home = SweepFolder.named(name)
    out = out or home.report
    spec = file.path
    if facts or scale:  # what the study is at this scale, or was
        out.mkdir(parents=True, exist_ok=True)
        (spec := out / "sweep.yaml").write_text(redact_settings(file.text))
    try:
        written = write_report(name, out, spec=spec, folder=home.path, words=words)
    except ValueError as error:
        if home.plan():
            raise UserError(str(error)) from None
        raise UserError(
            f"{name}: nothing has run yet; start it with: attnres sweep run {sweep}"
            f"{' --scale ' + scale if scale else ''} ({error})"
        ) from None
    print(written.verdict.replace("> ", "").replace(">\n", "\n").strip())
    print(f"\n{written.html}\n{written.markdown}")
    _store(name, written.markdown.parent)


def _store(name: str, folder: Path) -> None:
    """Attach the report to the sweep's run; the store may be away, and then the files are still
    there.
    """
    from attnres_lab.tracking import log_report
    from attnres_lab.tracking.store import reason

    try:
        log_report(name, folder)
    except Exception as error:
        typer.echo(
            f"not stored with the sweep's run ({reason(error)}); run this again later",
            err=True,
        )
