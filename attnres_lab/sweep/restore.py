"""The Optuna study of a sweep again, from the sweep's own files: a mirror that was lost costs
nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from attnres_lab.runs.folder import read_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.ledger import Ledger
from attnres_lab.sweep.plan import Trial
from attnres_lab.sweep.pruning import Pruning
from attnres_lab.sweep.space import parse_space
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.study import Study


def restore_study(folder: SweepFolder) -> int:
    """Tell the study every point that owes nothing and that it does not know, intermediate values
    included; returns their number.

    Raises UserError while the sweep runs, and for a sweep file that is no longer valid.
    """
    with tempfile.TemporaryDirectory() as place, folder.coordinate():
        file = Path(place) / "sweep.yaml"
        file.write_text((read_json(folder.path / "sweep.json") or {})["yaml"])
        source = load_spec(file)
        view: Any = SimpleNamespace(say=print)
        config: Any = None  # only a trial that runs needs its own
        study = Study(
            source.spec,
            parse_space(source.spec.space, source.file, adaptive=source.spec.adaptive),
            folder.journal,
            view.say,
        )
        ledger, pruning = (
            Ledger(source.spec, folder, study, view),
            Pruning(source.spec, study, folder),
        )
        ledger.adopt([Trial(entry, config) for entry in folder.plan()])
        study.reconcile(ledger.points)
        lost = [
            point for point in ledger.points if not ledger.owed(point) and point not in study.told
        ]
        for point in lost:
            entries = [ledger.trials[hash].entry for hash in ledger.points[point]]
            if pruning.on:
                study.begin(point, entries[0].params)
                pruning.hopeless(entries[:1])
                for index, entry in enumerate(entries if pruning.over_seeds else []):
                    if values := ledger.values(entry.hash):
                        pruning.seed_done(entry, index, values[0])
            ledger.tell(point)
    return len(lost)
