"""What is looked at before a sweep runs, beyond the form of its file; what its run will change."""

from __future__ import annotations

from collections.abc import Iterator

from attnres_lab.errors import UserError
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep import scoring
from attnres_lab.sweep.process import TRAIN, resolve
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.sweep.trials import Trial


def check_source(source: SpecFile) -> None:
    """Raises UserError, with its line of the file, for a function, sampler or pruner that is none,
    and for an evaluation that no trial could make.
    """
    scoring.check(source)
    try:
        if source.spec.function != TRAIN:  # which imports Lightning
            resolve(source.spec.function)
    except UserError as error:
        raise UserError(f"{source.file.where('function')}: {error}") from None
    if source.spec.adaptive or source.spec.pruner:
        from attnres_lab.sweep.optuna_study import make_pruner, make_sampler

        try:
            make_sampler(source.spec, 0), make_pruner(source.spec)
        except UserError as error:
            raise UserError(f"{source.file.where(str(error).split(': ')[0])}: {error}") from None


def check_named(trials: list[Trial]) -> None:
    """Raises UserError for a callback or logger of a trial that cannot be had."""
    if named := [t.config for t in trials if t.config.callbacks or t.config.loggers]:
        from attnres_lab.training.plugged import check_plugged  # Lightning, which few plans need

        check_plugged(named)


def changes(source: SpecFile, folder: SweepFolder, trials: list[Trial]) -> Iterator[str]:
    """What a run will do to a sweep of this name that ran before; nothing where it only goes on."""
    facts, now = folder.facts(), {t.entry.hash for t in trials}
    before, file = str(facts.get("file", "")), str(source.file.path.resolve())
    if before and before != file:
        yield (
            f"another file of the name '{source.spec.name}': {before} before, {file} now; its plan "
            f"takes the place of that one's in {folder.path}; another name keeps both"
        )
    gone = [e for e in folder.plan() if e.hash not in now and folder.trial(e.hash).path.exists()]
    if gone:
        kept = len(now & {e.hash for e in folder.plan()})
        yield (
            f"the plan has changed: {kept} of its {len(now)} trials were planned before; "
            f"{len(gone)} that ran before are no part of it: their folders stay, and no status, "
            "report or export counts them"
        )
