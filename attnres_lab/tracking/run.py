"""One run folder into one MLflow run: incrementally, and every value once."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnres_lab.runs.folder import RunFolder, Status, read_json
from attnres_lab.runs.rows import RowReader
from attnres_lab.tracking.artifacts import Memory, Target, remove_half_uploads, send_files, stamp
from attnres_lab.tracking.dataset import dataset_input, user
from attnres_lab.tracking.names import encode, factors, finite, metrics, to_params
from attnres_lab.tracking.store import Store

# others: KILLED
MLFLOW_STATUS = {
    "scheduled": "SCHEDULED",
    "running": "RUNNING",
    "finished": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
}
METRICS_PER_CALL = 1000  # MLflow's limit
ENTITIES_PER_CALL = 100  # of parameters, and of tags
TAG_KEYS = (
    "variant",
    "size",
    "seed",
    "dirty",
    "device",
    "devices",
    "data_fingerprint",
    "config_hash",
)
#: Per-sublayer values are in the depth records: as metrics they would bury the losses under a
#: hundred charts.
SKIPPED = re.compile(r"step|time|depth/[^/]+/\d+")


@dataclass(frozen=True)
class Identity:
    """What MLflow knows a run by: ``uid`` never changes and is the tag ``attnres.id``; ``tags`` and
    ``params`` may come before the folder does.
    """

    uid: str
    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)


class RunSync:
    """Keeps one MLflow run equal to ``folder``. A call that raises has lost nothing: the next one
    asks the store how far it got.
    """

    def __init__(
        self, store: Store, folder: Path, identity: Identity, run_id: str | None = None
    ) -> None:
        self.store, self.identity, self.run_id = store, identity, run_id
        self.files = RunFolder(folder)
        self._memory = Memory(folder, store, run_id)
        self.status: Status | None = None  # as last written to the store
        self._attached = False
        # the stamp of the final status, once everything but artifacts is written
        self._ended: list[int] | None = None
        self._told: dict[str, Any] = {}  # the last point of each metric, of this process
        self._new = False  # whether this process made the run: the store holds nothing of it

    @property
    def done(self) -> bool:
        """Whether the status in the folder is the one with which everything was written."""
        return (done := self._memory.values.get("done")) is not None and done == self._stamp()

    @property
    def started(self) -> bool:
        """Whether the folder holds anything of the run."""
        return self.files.config.exists() or self._stamp() is not None

    def sync(self) -> None:
        """Parameters, tags, new metric rows and the status. Raises what MLflow raises."""
        mark, status = self._stamp(), self.files.status()
        try:
            if self._attached and self._state == "SCHEDULED" and self.files.begun():
                self._attached = False  # it has a start of its own now
            if not self._attached:
                self._attach()
            self._describe()
            self._send_rows(self._new_rows())
            if status.state not in ("scheduled", "running") and (
                result := read_json(self.files.result)
            ):
                self._send_result(result, status)
            self._send_status(status)
        except BaseException:
            self._attached = False
            raise
        self._ended = mark if status.state not in ("scheduled", "running") else None

    def sync_artifacts(self) -> None:
        """Files that are new or have changed; after the last ones of a run that ended it is
        done.
        """
        if not self.files.path.is_dir() or self.run_id is None:
            return
        told = self._told if self._new else None
        target = Target(self.store, self.run_id, self._name, self._tags, told)
        send_files(target, self.files, self._memory, ended=self._ended)
        self._new = False

    def close(self) -> None:
        """The process is gone: a run that says it is running was killed."""
        if self._attached and self._state == "RUNNING":
            self._set({}, {"failure": "killed"})
            self._flush()
            seen = self.files.last_beat() or time.time()
            self.store.client.set_terminated(self.run_id, "KILLED", int(seen * 1000))
            self._attached = False

    def _attach(self) -> None:
        """Find or create the run, and ask what it holds."""
        client = self.store.client
        run = None if self.run_id is None else client.get_run(self.run_id)
        if run is not None and run.info.status == "SCHEDULED" and self.files.begun():
            # MLflow moves no start: the run that stood for the plan makes way
            if run.info.lifecycle_stage == "active":
                client.delete_run(self.run_id)
            run, self._memory.values = None, {}
        self._new, self._told = run is None, {}
        if run is not None:
            remove_half_uploads(run)
        run = run or self._create()
        self.run_id = str(run.info.run_id)
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(self.run_id)
        latest = run.data._metric_objs  # the last point of each metric, with its step
        self._known = {metric.key for metric in latest}
        self._params: dict[str, str] = dict(run.data.params)
        self._tags: dict[str, str] = dict(run.data.tags)
        self._state, self._name = run.info.status, run.info.run_name
        self._has_data = bool(run.inputs and run.inputs.dataset_inputs)
        self._step = max(
            (metric.step for metric in latest if not metric.key.startswith("factor/")), default=-1
        )
        self._at_step = {metric.key for metric in latest if metric.step == self._step}
        self._rows = RowReader(self.files.metrics)
        # metric to (rows without a finite value, first such step)
        self._nonfinite: dict[str, tuple[int, int]] = {}
        self._described: Any = None
        self._last_time = 0.0
        self._batch: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self._ended = None
        self._attached = True
        self._memory.values["run_id"] = self.run_id

    def _create(self) -> Any:
        source = {"mlflow.user": user(), "mlflow.source.name": "attnres"}
        tags = {"attnres.id": self.identity.uid, **source, **self.identity.tags}
        begun = self.files.begun()
        return self.store.client.create_run(
            self.store.experiment_id,
            int(begun * 1000) if begun else None,
            tags,
            self.identity.name,
        )

    def _stamp(self) -> list[int] | None:
        return stamp(self.files.status_file)

    def _describe(self) -> None:
        """Parameters and tags; a parameter that changed on the way (MLflow keeps the first) is
        noted in a tag.
        """
        mark = (stamp(self.files.config), stamp(self.files.environment))
        if mark == self._described:
            return
        environment = read_json(self.files.environment) or {}
        config = environment.get("config") or {}
        # a plan's own keys are kept: it says how the trial came about
        params = to_params({**self.identity.params, **config})
        told = {key: environment[key] for key in TAG_KEYS if environment.get(key) is not None}
        tags = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in told.items()
        }
        tags |= {
            f"changed.{key}": value
            for key, value in params.items()
            if self._params.get(key, value) != value
        }
        if revision := environment.get("revision"):
            tags["mlflow.source.git.commit"] = revision
        if environment.get("data_fingerprint") and not self._has_data:
            self.store.client.log_inputs(self.run_id, [dataset_input(environment)])
            self._has_data = True
        if (name := environment.get("run_name", self._name)) != self._name:
            self.store.client.update_run(self.run_id, name=name)
            self._name = name
        self._set(params, {"kind": "run"} | tags | dict(self.identity.tags))
        if mark[1]:
            varied = {key: config[key] for key in self.identity.params if key in config}
            new = {key: value for key, value in factors(varied).items() if key not in self._known}
            self._log(metrics(new, mark[1][0] / 1e9, 0))
            self._known |= set(new)
        self._described = mark

    def _set(self, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        new_params = {key: value for key, value in params.items() if key not in self._params}
        new_tags = {key: value for key, value in tags.items() if self._tags.get(key) != value}
        self._batch[1].extend(Param(key, value) for key, value in new_params.items())
        self._batch[2].extend(RunTag(key, value) for key, value in new_tags.items())
        self._params |= new_params
        self._tags |= new_tags

    def _new_rows(self) -> list[dict[str, Any]]:
        """Rows since the last turn; counts those whose values MLflow cannot store."""
        rows = self._rows.new()
        if self._rows.restarted:
            self._nonfinite = {}
        for row in rows:
            for key, value in row.items():
                if value in ("nan", "inf", "-inf") or (
                    isinstance(value, float) and not finite(value)
                ):
                    count, first = self._nonfinite.get(key, (0, row["step"]))
                    self._nonfinite[key] = (count + 1, first)
        return rows

    def _send_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Log what the store does not hold: later steps, and at the last step the keys that are new
        (a step may have several rows).
        """
        for row in rows:
            step = int(row["step"])
            when = row.get("time", self._last_time)
            self._last_time = max(self._last_time, when)
            if step < self._step:
                continue
            if step > self._step:
                self._step, self._at_step = step, set()
            values = {
                encode(key): value for key, value in row.items() if not SKIPPED.fullmatch(key)
            }
            numbers = {
                key: value
                for key, value in values.items()
                if finite(value) and key not in self._at_step
            }
            self._at_step |= set(numbers)
            self._log(metrics(numbers, when, step))

    def _send_result(self, result: Mapping[str, Any], status: Status) -> None:
        """The final numbers; of a result that was written again since, those that are others now:
        a later point at the same step is the one that the store shows.
        """
        mark, before = stamp(self.files.result), self._memory.values.get("result")
        step, ended = result.get("step", status.step), self._last_time or status.updated
        if before not in (None, mark):
            self._flush()
            shown = self.store.client.get_run(self.run_id).data.metrics
            names = {encode(key): value for key, value in result.items()}
            if "train/final_loss" in shown:  # the result's; of the rows train/loss is another mean
                names.pop("train/loss", None)
            changed = {
                key: value
                for key, value in names.items()
                if not SKIPPED.fullmatch(key) and finite(value) and shown.get(key) != value
            }
            self._log(metrics(changed, time.time(), step))
        else:
            self._send_rows([{"time": ended, **result, "step": step}])
        self._memory.values["result"] = mark

    def _log(self, metrics: list[Any]) -> None:
        """Keep for the next call, which takes so many: a call costs more than what is in it."""
        if len(self._batch[0]) + len(metrics) > METRICS_PER_CALL:
            self._flush()
        self._batch[0].extend(metrics)
        self._told |= {metric.key: metric for metric in metrics}

    def _flush(self) -> None:
        """Send what was kept: the store writes metrics first and tags last."""
        metrics, params, tags = self._batch
        for first in range(0, max(len(params), len(tags), bool(metrics)), ENTITIES_PER_CALL):
            part = slice(first, first + ENTITIES_PER_CALL)
            now = metrics if first == 0 else []
            self.store.client.log_batch(self.run_id, now, params[part], tags[part])
        self._batch = ([], [], [])

    def _send_status(self, status: Status) -> None:
        tags = {"status": status.state, "failure": status.failure or "", "message": status.message}
        tags |= {
            f"nonfinite.{key}": f"{count} rows, first at step {step}"
            for key, (count, step) in self._nonfinite.items()
        }
        self._set({}, {key: value for key, value in tags.items() if value or key in self._tags})
        self._flush()
        state = MLFLOW_STATUS.get(status.state, "KILLED")
        if state != self._state:
            if state in ("SCHEDULED", "RUNNING"):
                self.store.client.update_run(self.run_id, state)
            else:
                self.store.client.set_terminated(self.run_id, state, int(status.updated * 1000))
            self._state = state
        self.status = status
