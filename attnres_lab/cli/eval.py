"""``attnres eval``: scores of trained models on benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from attnres_lab.evaluation.run import Settings


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("eval")(evaluate)


def evaluate(  # noqa: PLR0913
    runs: list[str] = typer.Argument(
        help="Runs (a folder, a hash, a name) and sweeps (a folder, a name): their finished runs."
    ),
    tasks: str = typer.Option(
        "nano", help="nano, paper, or names of lm_eval's tasks, with commas between them."
    ),
    data: Path | None = typer.Option(
        None, help="A folder with copies of the hub's data sets, <owner>/<name>."
    ),
    limit: int | None = typer.Option(None, min=1, help="The first so many questions of each task."),
    shots: int | None = typer.Option(None, min=0, help="By default what the task says."),
    batch_size: int = typer.Option(16, min=1, help="Sequences of a forward pass."),
    max_length: int | None = typer.Option(
        None, min=2, help="Tokens that a model reads at once; by default its data.seq_len."
    ),
    chat: bool = typer.Option(False, "--chat", help="Prompts as messages to a chat model."),
    allow_code: bool = typer.Option(
        False, "--allow-code", help="Run programs that the model wrote (humaneval, mbpp)."
    ),
    again: bool = typer.Option(False, "--again", help="Also what has been scored already."),
) -> None:
    """Score finished runs; what a run has already is not made again. Scores go to its result.json
    and artifacts/eval, and to the store. Runs that cannot be scored do not hold up the others.
    """
    from attnres_lab.errors import UserError
    from attnres_lab.evaluation.run import Settings

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UserError("--tasks: none is given; give nano, paper or names of lm_eval's tasks")
    settings = Settings(
        tasks=names,
        limit=limit,
        shots=shots,
        chat=chat,
        max_length=max_length,
        data=str(data) if data else None,
        batch_size=batch_size,
        allow_code=allow_code,
    )
    folders = dict.fromkeys(path for name in runs for path in _folders(name))
    if errors := _score(folders, settings, again=again):
        raise UserError("\n".join(errors))


def _score(folders: Iterable[Path], settings: Settings, *, again: bool) -> list[str]:
    """Score each run and print its scores; at the end, and where it is cut short, they go into the
    store. Returns a line for each error.
    """
    from attnres_lab.errors import UserError
    from attnres_lab.evaluation.run import evaluate as score
    from attnres_lab.runs.folder import RunFolder, read_json
    from attnres_lab.runs.lock import mendable

    errors, homes = dict[str, None](), dict[Path, None]()
    try:
        for folder in folders:
            values, before = dict[str, float](), read_json(RunFolder(folder).result)
            try:
                with mendable(folder):
                    values = score(folder, settings, again=again)
                _print(folder, values)
            except UserError as error:
                errors[str(error)] = None
            finally:  # some tasks of several may be done; the folder may be gone
                if values or (read_json(RunFolder(folder).result) or before) != before:
                    homes[_home(folder)] = None
    finally:
        for home in homes:
            _mirror(home)
    return list(errors)


def _print(folder: Path, values: Mapping[str, float]) -> None:
    print(f"{folder}{'' if values else ': has these scores already'}")
    for key, value in values.items():
        if not key.endswith("_stderr"):
            error = values.get(f"{key}_stderr")
            print(f"  {key:40} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))


def _folders(name: str) -> Iterable[Path]:
    """Folders of the finished runs of a sweep, or of one run."""
    from attnres_lab.errors import UserError
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.runs.table import locate

    for sweep in (SweepFolder(Path(name)), SweepFolder.named(name)):
        if trials := sweep.plan():
            found = [sweep.trial(entry.hash) for entry in trials]
            done = {run.path: s for run in found if (s := run.status()).state == "finished"}
            here = [path for path, status in done.items() if not status.imported]
            if len(here) < len(done):
                print(f"{name}: {len(done) - len(here)} imported, so without a model: left out")
            if not here:
                raise UserError(f"{name}: none of its {len(found)} trials has finished here yet")
            return here
    return [locate(name)]


def _home(folder: Path) -> Path:
    """What is mirrored as one: the run's sweep, else the run."""
    from attnres_lab.runs.sweep import SweepFolder

    sweep = folder.absolute().parent.parent
    return sweep if SweepFolder(sweep).plan_file.exists() else folder


def _mirror(home: Path) -> None:
    """The scores into the store, which may be away; while a sweep runs its mirror has it."""
    from attnres_lab import tracking
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.tracking.store import reason

    if SweepFolder(home).holder():
        return
    try:
        for _ in tracking.rebuild(home):
            pass
    except Exception as error:
        typer.echo(
            f"not in the store ({reason(error)}); run attnres track rebuild when it is back",
            err=True,
        )
