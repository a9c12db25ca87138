"""One sweep folder into a parent run and its children, one level deep."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnres_lab.runs.folder import DONE, read_json, write_json
from attnres_lab.runs.looks import looks
from attnres_lab.runs.secrets import redact, redact_settings
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.runs.table import flatten, planned, table, tidy
from attnres_lab.tracking import figures
from attnres_lab.tracking.artifacts import is_ours, remove_half_uploads, stamp
from attnres_lab.tracking.children import runs_of, set_apart
from attnres_lab.tracking.crew import UNREADABLE, Errand
from attnres_lab.tracking.dataset import user
from attnres_lab.tracking.export import write_records
from attnres_lab.tracking.note import markdown, paragraph
from attnres_lab.tracking.outcome import best, gains
from attnres_lab.tracking.run import Identity, RunSync
from attnres_lab.tracking.store import Store
from attnres_lab.tracking.whole import WHOLE, mark_of, summary_of

#: Planned trials written per turn, so that the running ones do not wait for them.
SCHEDULED_PER_TURN = 20
NOTE_SECONDS = 5.0


class SweepSync:
    """Keeps the parent run and the trials' runs equal to a sweep's folder."""

    def __init__(self, store: Store, folder: Path, name: str, summary: Mapping[str, str]) -> None:
        self.store, self.folder, self.name = store, folder, name
        self.files = SweepFolder(folder)
        self.summary = summary_of(folder, summary)
        self.id = self.files.identify()
        self._parent: str | None = None
        self._trials: dict[str, RunSync] = {}
        self._entries: dict[str, Entry] = {}
        self._plan_stamp = 0
        self._unreadable: set[str] = set()
        self._whole: str | None = None  # the mark of a folder of which the store holds everything
        self._note, self._note_due = "", 0.0
        self._report = stamp(self.files.page)  # written last

    def sync(self) -> bool:
        """One turn. False while planned trials wait to be written."""
        if self._unchanged():
            return True
        try:
            if self._parent is None:
                self._attach()
                self._set_state("running", "RUNNING")
                set_apart(self.store.client, self._known, self._ids())
            self._read_plan()
            started = {key for key, trial in self._trials.items() if trial.started}
            waiting = [
                trial
                for key, trial in self._trials.items()
                if key not in started and trial.status is None
            ]
            current = [
                self._trials[key]
                for key in started
                if key not in self._unreadable and not self._trials[key].done
            ]
            for trial in [*current, *waiting[:SCHEDULED_PER_TURN]]:
                self._sync_one(trial)
            for trial in current:
                if trial.run_id:
                    trial.sync_artifacts()
            self._write_note()
            self._take_report()
        except BaseException:
            self._parent = None
            raise
        return len(waiting) <= SCHEDULED_PER_TURN

    def errands(self) -> list[Errand]:
        """The trials that the store has not taken whole, for other processes to send. This object
        learns nothing of what they do.
        """
        if self._unchanged():
            return []
        self._attach()
        self._read_plan()
        return [
            Errand(trial.files.path, self.folder, trial.identity, trial.run_id)
            for trial in self._trials.values()
            if trial.started and not trial.done
        ]

    def close(self) -> None:
        """The tables and figures, and the parent's last state: finished when every trial has a
        result.
        """
        if self._unchanged():
            return
        mark = self._mark()
        self._take_report()
        self._write_note(at_once=True)
        set_apart(self.store.client, runs_of(self.store, self.id), self._ids())
        measured = [t.files for key, t in self._trials.items() if not self._entries[key].tuning]
        self._send_metrics(best(measured))
        self._send_tables()  # after the metrics: the disk of the artifacts may be full
        complete = all(trial.files.status().state in DONE for trial in self._trials.values())
        self._set_state(
            "finished" if complete else "incomplete", "FINISHED" if complete else "KILLED"
        )
        if all(trial.done for trial in self._trials.values()):
            self.store.client.set_tag(self._parent, WHOLE, mark)

    def _unchanged(self) -> bool:
        """Whether the store took everything of this very folder: a finished sweep that is run again
        costs a look at its files.
        """
        if self._whole is None:
            run = self._find_parent()
            self._whole = run.data.tags.get(WHOLE, "") if run else ""
        return bool(self._whole) and self._whole == self._mark()

    def _mark(self) -> str:
        return mark_of(self.folder, self.summary)

    def has_report(self) -> bool:
        """Whether the store has the files of the sweep's report, or there are none."""
        report, parent = self.files.report, self._find_parent()
        names = {path.name for path in report.iterdir()} if report.is_dir() else set()
        there = self.store.client.list_artifacts(parent.info.run_id, report.name) if parent else []
        return names <= {Path(item.path).name for item in there}

    def upload(self, folder: Path) -> None:
        """A report folder as ``report`` of the parent run; what its page opens with goes into the
        note.
        """
        whole = self._unchanged()
        if self._parent is None:
            self._attach(children=False)
        folder = folder.resolve()
        for path in sorted(folder.rglob("*")):
            if is_ours(path, folder):
                below = Path(self.files.report.name) / path.parent.relative_to(folder)
                self.store.client.log_artifact(self._parent, str(path), below.as_posix())
        for page in sorted(folder.glob("*.md"))[:1]:
            self.summary["Verdict"] = paragraph(page.read_text())
        self._send_metrics(gains(folder / self.files.gains.name))
        self._read_plan()
        self._write_note(at_once=True)
        if whole:  # it still is, with another note
            self.store.client.set_tag(self._parent, WHOLE, self._mark())

    def _take_report(self) -> None:
        """One that was written since."""
        if (written := stamp(self.files.page)) != self._report:
            if written:
                self.upload(self.files.report)
            self._report = written

    def _send_metrics(self, found: list[Any]) -> None:
        """Those of the parent that are new or have changed."""
        shown = self.store.client.get_run(self._parent).data.metrics
        if changed := [metric for metric in found if shown.get(metric.key) != metric.value]:
            self.store.client.log_batch(self._parent, changed)

    def _set_state(self, tag: str, status: str) -> None:
        self.store.client.set_tag(self._parent, "status", tag)
        if status == "RUNNING":
            self.store.client.update_run(self._parent, status)
            return
        last = max((trial.files.status().updated for trial in self._trials.values()), default=0)
        end = int(last * 1000) if last else None
        self.store.client.set_terminated(self._parent, status, end)

    def _sync_one(self, trial: RunSync) -> None:
        """A folder that cannot be read does not hold up the others."""
        try:
            trial.sync()
        except UNREADABLE as error:
            self._unreadable.add(trial.files.path.name)
            print(
                f"tracking: {trial.files.path} is left out: {type(error).__name__}: {error}",
                file=sys.stderr,
                flush=True,
            )

    def _attach(self, *, children: bool = True) -> None:
        """Find or create the parent and learn which children exist: a creation whose answer was
        lost is not repeated.
        """
        tags = {
            "attnres.id": self.id,
            "kind": "sweep",
            "mlflow.user": user(),
            "mlflow.source.name": f"attnres sweep run {self.name}",
            "sweep": self.name,
            "sweep_id": self.id,
            "status": "running",
        }
        self._known, self._trials, self._plan_stamp = {}, {}, 0
        if children:
            self._known = runs_of(self.store, self.id)
            found = self._known.get(self.id)
        else:
            found = self._find_parent()
        if (parent := found.info.run_id if found else None) is None:
            planned = stamp(self.files.plan_file)
            start = planned[0] // 1_000_000 if planned else None
            parent = self.store.client.create_run(
                self.store.experiment_id, start, tags, self.name
            ).info.run_id
        else:
            remove_half_uploads(self.store.client.get_run(parent))
        self._parent = parent

    def _find_parent(self) -> Any:
        """The sweep's own run, or None."""
        found = self.store.client.search_runs(
            [self.store.experiment_id], f"tags.`attnres.id` = '{self.id}'", max_results=1
        )
        return found[0] if found else None

    def _ids(self) -> set[str]:
        """Of the sweep's own run and of the runs of its plan."""
        return {self.id, *(f"{self.id}/{entry.hash}" for entry in self.files.plan())}

    def _send_tables(self) -> None:
        """A line per trial as CSV, and the figures to explore."""
        paths = [
            trial.files.path
            for key, trial in self._trials.items()
            if trial.started and key not in self._unreadable
        ]
        if not paths:
            return
        with tempfile.TemporaryDirectory() as place:
            records = table(paths)
            write_records(Path(place) / "trials.csv", tidy(planned(self.files)))
            (Path(place) / "figures.html").write_text(figures.page(self.name, records, paths))
            self.store.client.log_artifacts(self._parent, place)

    def _read_plan(self) -> None:
        path = self.files.plan_file
        stamp = path.stat().st_mtime_ns if path.exists() else 0
        if stamp == self._plan_stamp:
            return
        plan = self.files.plan()
        self._looks = looks(entry.variant for entry in plan)
        for entry in plan:
            if (key := entry.hash) not in self._trials:
                identity = self._identity(entry)
                self._entries[key] = entry
                self._trials[key] = RunSync(
                    self.store,
                    self.files.trial(key).path,
                    identity,
                    known.info.run_id if (known := self._known.get(identity.uid)) else None,
                )
        facts = self.files.facts()
        # the sweep's YAML is in there, and in it perhaps the address of a database
        facts["yaml"] = redact_settings(str(facts.get("yaml", "")))
        lines = redact(path.read_text()) if path.exists() else "[]"
        for file, text in (
            (path, lines),
            (self.files.description, json.dumps(facts, indent=1)),
        ):
            self.store.client.log_text(self._parent, text, file.name)
        self._plan_stamp = stamp

    def _identity(self, entry: Entry) -> Identity:
        tags = {
            "sweep": self.name,
            "sweep_id": self.id,
            "trial": entry.hash,
            "mlflow.parentRunId": str(self._parent),
        }
        tags |= {key: str(getattr(entry, key)) for key in ("variant", "size", "seed")}
        tags |= {"tuning": "true"} if entry.tuning else {}
        tags["mlflow.runColor"] = self._looks[entry.variant].color
        tags["protocol"] = (
            "tuned" if any(key.startswith("optim.") for key in entry.params) else "shared"
        )
        return Identity(f"{self.id}/{entry.hash}", entry.run_name, tags, flatten(entry.params))

    def _write_note(self, at_once: bool = False) -> None:
        if not at_once and time.monotonic() < self._note_due:
            return
        trials = []
        for key, trial in self._trials.items():
            state = trial.files.status().state
            trials.append(
                {
                    **asdict(self._entries[key]),
                    "state": state,
                    "result": read_json(trial.files.result) if state in DONE else None,
                }
            )
        note = markdown(self.name, self.summary, trials)
        if note != self._note:
            self.store.client.set_tag(self._parent, "mlflow.note.content", note)
            write_json(self.files.sent, {"id": self.id, "summary": self.summary})
        self._note, self._note_due = note, time.monotonic() + NOTE_SECONDS
