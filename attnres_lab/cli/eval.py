"""``attnres eval``: scores of trained models on benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer


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
    and artifacts/eval, and to the store.
    """
    from attnres_lab.errors import UserError
    from attnres_lab.evaluation.run import Settings
    from attnres_lab.evaluation.run import evaluate as score
    from attnres_lab.runs.lock import mendable

    names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise UserError("--tasks: none is given; give nano, paper or names of lm_eval's tasks")
    settings = Settings(
        names,
        limit,
        shots,
        chat,
        max_length,
        str(data) if data else None,
        batch_size,
        allow_code,
    )
    for folder in dict.fromkeys(path for name in runs for path in _folders(name)):
        with mendable(folder):
            values = score(folder, settings, again=again)
        print(f"{folder}{'' if values else ': has these scores already'}")
        for key, value in values.items():
            if not key.endswith("_stderr"):
                error = values.get(f"{key}_stderr")
                print(f"  {key:40} {value:.4f}" + ("" if error is None else f" ± {error:.4f}"))
        if values:
            _mirror(folder)


def _folders(name: str) -> Iterable[Path]:
    """Folders of the finished runs of a sweep, or of one run."""
    from attnres_lab.errors import UserError
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.runs.table import locate

    for sweep in (SweepFolder(Path(name)), SweepFolder.named(name)):
        if trials := sweep.plan():
            found = [sweep.trial(entry.hash) for entry in trials]
            done = [run.path for run in found if run.status().state == "finished"]
            if not done:
                raise UserError(f"{name}: none of its {len(found)} trials has finished yet")
            return done
    return [locate(name)]


def _mirror(folder: Path) -> None:
    """The scores into the store, which may be away; while a sweep runs its mirror has it."""
    from attnres_lab import tracking
    from attnres_lab.runs.sweep import SweepFolder
    from attnres_lab.tracking.store import reason

    if SweepFolder(folder.absolute().parent.parent).holder():
        return
    try:
        for _ in tracking.rebuild(folder):
            pass
    except Exception as error:
        typer.echo(
            f"not in the store ({reason(error)}); run attnres track rebuild when it is back",
            err=True,
        )
