"""The evaluation that is part of a trial: asked for in a file of its folder, made after training,
without which the trial has not ended.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, Status, read_json, write_json

if TYPE_CHECKING:
    from attnres_lab.sweep.schema import SweepSpec
    from attnres_lab.sweep.spec import SpecFile

TRAIN = "attnres_lab.training.run:run"  # the function of a trial where a sweep names none


def check(source: SpecFile) -> None:
    """Raises UserError, with its line of the file, for an evaluation that no trial could make."""
    if not source.spec.eval:
        return
    from attnres_lab.evaluation import harness

    tasks = source.spec.eval.tasks
    try:
        if code := harness.runs_code(tasks):
            raise UserError(
                f"{code} has programs run that the model wrote, which a sweep does not do; "
                f"once it is done: attnres eval {source.spec.name} --tasks {code} --allow-code"
            )
        harness.check({*tasks} - {"nano"})
    except UserError as error:
        place = f"{source.file.where('eval.tasks')}: eval.tasks"
        raise UserError(f"{place}: {str(error).removeprefix('--tasks: ')}") from None


def ask(run: RunFolder, spec: SweepSpec) -> None:
    """Tell the trial's process what to evaluate."""
    if spec.eval:
        write_json(run.wanted, asdict(spec.eval))


def make(run: RunFolder) -> None:
    """Evaluate a finished trial as its folder asks. Raises as ``evaluate``."""
    status = run.status()
    if status.state != "finished" or not (request := read_json(run.wanted)):
        return
    from attnres_lab.evaluation.run import Settings, evaluate

    evaluate(run.path, Settings.asked(request))
    run.set_status("finished", step=status.step)  # its time is that of the whole trial


def status(run: RunFolder, spec: SweepSpec) -> Status:
    """The status of a trial: without its evaluation one that finished has not ended, nor one whose
    result was lost, which our training makes again from what is left. One that was imported has
    the scores of its table, for it has no model.
    """
    found = run.status()
    if found.state == "finished" and spec.function == TRAIN and not read_json(run.result):
        return replace(found, state="running", message="its result was lost")
    if not spec.eval or found.state != "finished" or found.imported:
        return found
    from attnres_lab.evaluation.record import missing
    from attnres_lab.evaluation.run import Settings

    wanted = Settings.asked(asdict(spec.eval)).wanted
    if not any(missing(run, task, of) for task, of in wanted.items()):
        return found
    return replace(found, state="running", message="its evaluation is still to come")
