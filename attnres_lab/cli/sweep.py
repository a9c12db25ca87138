"""``attnres sweep``: plan, run, watch, stop, retry, export, list, rm."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.sweep.spec import SpecFile

sub = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Plan, run and watch a sweep of many trials."
)
SPEC = typer.Argument(help="A sweep YAML, or the name of one: quickstart, scaling.")
SCALE = typer.Option(None, "--scale", help="For a study: nano, small, lab or paper.")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(sub, name="sweep")


def existing(spec: Path, scale: str | None) -> SweepFolder:
    """The folder of a sweep, given by its YAML or, from anywhere in the project, by the name that
    ``attnres sweep list`` has. Raises UserError.
    """
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.sweep.spec import load_spec

    named = SweepFolder.named(str(spec))
    if len(spec.parts) == 1 and not scale and named.plan():
        return named
    return load_spec(spec, scale).folder


@sub.command()
def plan(
    spec: Path = SPEC,
    scale: str | None = SCALE,
    large: bool = typer.Option(False, "--large", help="Allow more than 10,000 trials."),
    measure: bool = typer.Option(
        False,
        "--measure",
        help="Train a few steps of each size and variant that was never measured here.",
    ),
    power: bool = typer.Option(
        False,
        "--power",
        help=(
            "Also the seeds that a wanted precision needs, by the noise of the runs that are done."
        ),
    ),
    half_width: float = typer.Option(
        0.05, "--half-width", min=1e-4, help="Of the gain's interval, for --power: 0.05 is 5 %."
    ),
) -> None:
    """Print the trials and what they cost, before anything runs."""
    from attnres_lab.sweep.planview import print_plan
    from attnres_lab.sweep.spec import load_spec

    source = load_spec(spec, scale)
    print_plan(source, source.folder, large=large, measure=measure)
    if power:
        _print_power(source.spec.name, half_width, _tuning_runs(source))


def _tuning_runs(source: SpecFile) -> float:
    """That a size and variant is expected to take, on average over all of them."""
    from statistics import fmean

    from attnres_lab.sweep.plan import Plan
    from attnres_lab.sweep.tuning import EXPECTED, Tuning

    if source.spec.tune is None:
        return 0.0
    return EXPECTED * fmean(runs for _, _, runs in Tuning(Plan(source)).prospect())


def _print_power(name: str, half_width: float, tuning: float) -> None:
    from attnres_lab.analysis import designs, load_runs, pilot
    from attnres_lab.analysis import plan as seeds
    from attnres_lab.errors import UserError

    try:
        runs = load_runs(name)
        noise = pilot(runs)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{name}: --power takes the noise from runs that are done: {error}"
        ) from None
    print(
        "\nseeds per size for each precision, by the noise of what is done (sd of a run "
        f"{noise.sigma:.4f} nats, of a variant's gain from size to size {noise.interaction:.4f}, "
        f"alpha {noise.alpha:.3f}):"
    )
    print(seeds(noise).to_string(na_rep="over 1000"))
    timed = runs["device_seconds"] if "device_seconds" in runs else runs.assign(s=0.0)["s"]
    found = designs(
        noise,
        half_width,
        hours=float(timed.mean()) / 3600,
        variants=runs["variant"].nunique(),
        tuning=tuning,
    )
    if found.empty:
        print(
            f"\nno design of up to 32 sizes and 100 seeds reaches a half-width of {half_width:.1%}"
        )
        return
    tuned = f", {tuning:.3g} tuning runs for each size and variant on average" if tuning else ""
    print(
        f"\ndesigns with a half-width of at most {half_width:.1%}, by the mean time of what is done"
        f"{tuned}; the cheapest first:"
    )
    print(found.head(8).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


@sub.command()
def run(
    spec: Path = SPEC,
    scale: str | None = SCALE,
    large: bool = typer.Option(False, "--large", help="Allow more than 10,000 trials."),
    overrides: list[str] = typer.Argument(
        None, help="Dotted keys laid over those of the file, for example optim.lr=3e-3."
    ),
    workers: int = typer.Option(None, "--workers", min=1, help="Trials at a time."),
) -> None:
    """Run what is pending; after an interruption, go on. Exit code: 0 all done, 1 some trials
    failed, 2 bad input, 130 interrupted.
    """
    from attnres_lab.config import parse_overrides
    from attnres_lab.sweep.engine import run_sweep
    from attnres_lab.sweep.spec import load_spec

    source = load_spec(spec, scale)
    given = parse_overrides(overrides or [])
    _refuse_what_the_space_sets(source, given)
    changed = replace(source.spec, overrides=source.spec.overrides | given)
    if workers:
        changed = replace(changed, launcher=replace(changed.launcher, workers=workers))
    source = replace(source, spec=changed)
    raise typer.Exit(run_sweep(source, source.folder, large=large).exit_code)


def _refuse_what_the_space_sets(source: SpecFile, given: Iterable[str]) -> None:
    """Each point would lay its own value over the one given. Raises UserError."""
    from attnres_lab.errors import UserError
    from attnres_lab.sweep.space import sets

    taken = {key: axis.key for axis in source.space.axes for key in sets(axis)}
    taken |= {"seed": "seed"} if source.space.seeds or source.space.each else {}
    for key in given:
        for own, axis in taken.items():
            if f"{key}.".startswith(f"{own}."):
                where = f"{source.file.where(f'space.{axis}')}: space.{axis}"
                raise UserError(f"{key}: set by {where}, trial by trial; change it there")


@sub.command()
def status(
    spec: Path = SPEC,
    scale: str | None = SCALE,
    json: bool = typer.Option(False, "--json", help="For programs."),
    watch: bool = typer.Option(False, "--watch", help="Renew every two seconds until done."),
) -> None:
    """Show what each trial is doing; from any terminal, while the sweep runs or not."""
    from attnres_lab.errors import UserError
    from attnres_lab.sweep.launchers import expected_slots
    from attnres_lab.sweep.report import print_status
    from attnres_lab.sweep.spec import load_spec

    folder = existing(spec, scale)
    slots, source = 0, load_spec(spec, scale) if spec.is_file() else None
    with suppress(UserError):  # it may run on a larger machine than this one
        slots = expected_slots(source.spec) if source else 0
    print_status(folder, as_json=json, watch=watch, slots=slots)


@sub.command("list")
def list_() -> None:
    """A line per sweep of this project, the last changed first."""
    from attnres_lab.runs.paths import runs_folder
    from attnres_lab.runs.progress import progress
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.sweep.summary import columns, headline, summary

    rows = [("sweep", "now", "trials")]
    for folder in SweepFolder.all():
        now = "running" if folder.holder() else "not running"
        rows.append((folder.path.name, now, headline(summary(progress(folder)))))
    if len(rows) == 1:
        print(f"{runs_folder()}: no sweep yet; start one with: attnres sweep run quickstart")
    else:
        print(columns(rows))


@sub.command()
def rm(
    name: str = typer.Argument(help="The name of a sweep, as 'attnres sweep list' has it."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
) -> None:
    """Delete a sweep: its folder with all its trials, and its runs in the MLflow store."""
    from attnres_lab.errors import UserError, nearest
    from attnres_lab.runs.paths import runs_folder
    from attnres_lab.runs.sweep import SweepFolder

    names = [folder.path.name for folder in SweepFolder.all()]
    if name not in names:
        raise UserError(f"{name}: no such sweep in {runs_folder()}{nearest(name, names)}")
    folder = SweepFolder.named(name)
    if not yes:
        typer.confirm(f"delete {folder.path} with {len(folder.plan())} trials?", abort=True)
    from attnres_lab.tracking import forget

    with folder.coordinate():  # raises where it runs
        try:
            count = forget(folder.path)
        except Exception as error:  # the store may be away, and is a mirror only
            typer.echo(f"its runs stay in the store: {str(error).splitlines()[0]}", err=True)
        else:
            print(f"{count} runs deleted in the store; mlflow gc frees their space")
        shutil.rmtree(folder.path)
    print(f"{folder.path} deleted")


@sub.command()
def logs(trial: str = typer.Argument(help="The hash of a trial, or its beginning.")) -> None:
    """Print what a trial's process wrote."""
    from attnres_lab.sweep.report import print_log

    print_log(trial)


@sub.command()
def retry(
    spec: Path = SPEC,
    trials: list[str] = typer.Argument(
        None,
        help=(
            "Hashes, or their beginnings, of trials to run again from scratch; none: the failed "
            "ones go on."
        ),
    ),
    scale: str | None = SCALE,
    failed: bool = typer.Option(False, "--failed", help="The failed ones; the default."),
) -> None:
    """Run exactly the failed trials again, or exactly the named ones. Exit codes as of run."""
    from attnres_lab.errors import UserError
    from attnres_lab.sweep.engine import run_sweep
    from attnres_lab.sweep.spec import load_spec

    if failed and trials:
        raise UserError("retry: name trials or say --failed, not both")
    source = load_spec(spec, scale)
    raise typer.Exit(run_sweep(source, source.folder, again=trials or ()).exit_code)


@sub.command()
def export(
    spec: Path = SPEC,
    scale: str | None = SCALE,
    to: Path = typer.Option(
        None, "--to", help="A folder, or a .csv or .parquet file; by default the sweep's own."
    ),
) -> None:
    """Write what is known about every trial to trials.csv, trials.parquet and trials.json; a sweep
    file that names the first under known takes the finished ones from there.
    """
    from attnres_lab.sweep.known import export as write

    folder = existing(spec, scale)
    for path in write(folder, to or folder.path / "export"):
        print(path)


@sub.command()
def stop(spec: Path = SPEC, scale: str | None = SCALE) -> None:
    """Ask a running sweep to write checkpoints and end."""
    from attnres_lab.errors import UserError

    folder = existing(spec, scale)
    holder = folder.holder()
    if holder is None:
        print("nothing is running")
        return
    who = f"process {holder['pid']} on {holder['host']}"
    try:
        folder.stop.touch()
    except PermissionError:
        raise UserError(
            f"{folder.path}: run by {who}; you may not write here: stop it as its owner"
        ) from None
    print(f"asked {who} to stop; running trials write a checkpoint and end")
