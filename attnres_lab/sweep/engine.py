"""Composes a sweep run: spec, plan, launcher, study, mirror, coordinator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from attnres_lab.errors import UserError
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.coordinator import Coordinator, Outcome
from attnres_lab.sweep.known import bring, check_data
from attnres_lab.sweep.launchers import make_launcher
from attnres_lab.sweep.optuna_study import OptunaStudy
from attnres_lab.sweep.plan import changes, check_named, make_plan
from attnres_lab.sweep.pricing import Speeds, check_memory, device_of, outlook
from attnres_lab.sweep.results import Results
from attnres_lab.sweep.spec import TRAIN, SpecFile
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.view import Screen
from attnres_lab.tracking import SweepMirror


def run_sweep(
    source: SpecFile,
    folder: SweepFolder,
    *,
    large: bool = False,
    again: Sequence[str] | None = None,
) -> Outcome:
    """Run what is pending; or only ``again``, hashes of trials or their beginnings, from scratch;
    none: what failed. Raises UserError.
    """
    spec, plan = source.spec, make_plan(source, folder, large=large or again is not None)
    with _writing(folder), folder.coordinate(), ExitStack() as stack:
        bring(source, folder)
        trials = plan.known()
        check_named(trials)
        told = list(changes(source, folder, trials))
        file = str(source.file.path.resolve())
        folder.describe(spec.name, str(plan.base.path), source.file.text, file)
        folder.write_plan([trial.entry for trial in trials])
        launcher = stack.enter_context(closing(make_launcher(spec, folder.path)))
        goal = (spec.objectives[0].metric, spec.objectives[0].direction)
        screen = stack.enter_context(Screen(folder, goal, launcher.slots))
        for line in told:
            screen.say(line)
        device = device_of(spec, trials, launcher.slots)
        check_memory(trials, device, spec)
        if trials:
            check_data(source, folder, trials[0].config)
        about = {
            "Objective": ", ".join(f"{o.direction} {o.metric}" for o in spec.objectives),
            "Sampler": spec.sampler.name,
            "Space": ", ".join(spec.space),
            "Base": spec.base,
        }
        stack.enter_context(SweepMirror(spec.name, folder.path, about))
        study = OptunaStudy(spec, source.space, folder.journal, screen.say)
        results = Results(spec, folder, study, screen)
        chosen = None if again is None else _choose(trials, folder, again)
        coordinator = Coordinator(plan, trials, results, launcher, chosen)
        if spec.function == TRAIN and chosen is None:
            known = outlook(Speeds(device), plan)
            screen.outlook = lambda: known(coordinator.trials.values())
        done = coordinator.count("done")
        if spec.adaptive or done < len(trials):
            screen.say(
                f"{spec.name}: {done} of {len(trials)} trials done; "
                f"{launcher.slots} at a time; {folder.path}"
            )
        outcome = coordinator.run()
        screen.final()
        Speeds(device).learn((t, folder.trial(t.entry.hash)) for t in coordinator.trials.values())
    return outcome


@contextmanager
def _writing(folder: SweepFolder) -> Iterator[None]:
    """The disk may be full, read-only, or taken away. Raises UserError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename or folder.path}: {error.strerror or error}"
        raise UserError(
            f"{where}; the trials were ended, their checkpoints and results are intact: mend "
            "this, then run the sweep again"
        ) from error


def _choose(trials: list[Trial], folder: SweepFolder, again: Sequence[str]) -> set[str]:
    """What to run; named trials lose their results to ``discarded/``, where they stay. Raises
    UserError for a name that is no trial.
    """
    chosen = {
        prefix: [t.entry.hash for t in trials if t.entry.hash.startswith(prefix)]
        for prefix in again
    }
    for prefix, found in chosen.items():
        if len(found) != 1:
            raise UserError(
                f"{prefix}: {len(found)} planned trials begin so; see attnres sweep status"
            )
    for run in (folder.trial(hash) for found in chosen.values() for hash in found):
        if run.path.exists():
            target = folder.path / "discarded" / f"{run.path.name}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            run.path.rename(target)
    failed = (t.entry.hash for t in trials if folder.trial(t.entry.hash).status().state == "failed")
    return {hash for found in chosen.values() for hash in found} or set(failed)
