"""The Optuna study of a sweep again, from the sweep's own files: a mirror that was lost costs
nothing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attnres_lab.runs.folder import DONE
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.optuna_study import OptunaStudy
from attnres_lab.sweep.results import Results
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.trials import Trial
from attnres_lab.yamlfile import YamlFile


def restore_study(folder: SweepFolder) -> int:
    """Record in the study every point that is done and that it does not know, intermediate values
    included; returns their number.

    Raises UserError while the sweep runs, and for a sweep file that is no longer valid.
    """
    with folder.coordinate():
        source = load_spec(YamlFile(folder.description, str(folder.facts()["yaml"])))
        spec = source.spec
        view: Any = SimpleNamespace(say=print)
        config: Any = None  # only a trial that runs needs its own
        study = OptunaStudy(spec, source.space, folder.journal, view.say)
        results = Results(spec, folder, study, view)
        points: dict[str, list[Trial]] = {}
        for entry in folder.plan():
            status = folder.trial(entry.hash).status()
            points.setdefault(entry.point, []).append(Trial(entry, config, status=status))
        study.reconcile(points)
        lost = {
            point: trials
            for point, trials in points.items()
            if point not in study.recorded and all(t.status.state in DONE for t in trials)
        }
        for point, trials in lost.items():
            if results.pruning.on:
                study.begin(point, trials[0].entry.params)
            results.pruning.gives_up(trials[0].entry)
            for seed, trial in enumerate(trials):
                results.gives_up(trial, seed)
            results.record(trials)
    return len(lost)
