"""A run's files into its MLflow run, once each, and its checkpoint as a logged model."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname
from uuid import uuid4

import yaml
from filelock import FileLock

from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.runs.lock import sweep_up
from attnres_lab.runs.secrets import redact, redact_settings, redact_value
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.tracking import sqlite
from attnres_lab.tracking.figures import heat_map
from attnres_lab.tracking.names import model_name
from attnres_lab.tracking.store import Store
from attnres_lab.tracking.view import MAPS

# metrics of a run that are of its last weights
MEASURED = r"(val|eval)/.*(?<!_stderr)|train/loss"
# what mlflow.create_external_model says of weights that lie elsewhere
EXTERNAL = {"mlflow.model.isExternal": "true"}


class Memory:
    """What a store was sent of a folder: ``tracking.json``, by store. It may be deleted."""

    def __init__(self, folder: Path, store: Store, run_id: str | None) -> None:
        self._path, self._label = RunFolder(folder).sent, store.label
        self.values: dict[str, Any] = (read_json(self._path) or {}).get(store.label, {})
        # another run, or none: the store was lost or replaced
        if self.values.get("run_id") != run_id:
            self.values = {}

    def save(self, **values: Any) -> None:
        """Remember ``values`` too."""
        sqlite.settle()
        self.values |= values
        if not self._path.parent.is_dir():  # nothing starts another in its place
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path.parent))
        write_json(self._path, (read_json(self._path) or {}) | {self._label: self.values})


@contextmanager
def mirroring(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Be the only process that mirrors ``folder``, a run's or a sweep's. Temporary files, MLflow's
    too, are put into it, where the next one removes what a killed one left. Raises filelock.Timeout
    where another does it and is not to be waited for: it may take as long as the sweep.
    """
    place, before = scratch(folder), tempfile.tempdir
    with FileLock(folder / ".tracking.lock", timeout=-1 if wait else 0):
        for home in (folder, *SweepFolder(folder).trials.glob("*/")):
            sweep_up(home.glob(f".{RunFolder(home).sent.name}.*.tmp"))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        tempfile.tempdir = str(place)
        try:
            yield
        finally:
            tempfile.tempdir = before
            shutil.rmtree(place, ignore_errors=True)


def scratch(folder: Path) -> Path:
    """Where temporary files are put while ``folder`` is mirrored."""
    return folder / ".tracking.tmp"


def remove_half_uploads(run: Any) -> None:
    """Remove what a killed process left of its uploads to an MLflow run in a local folder. The
    caller mirrors the folder that the run is of.
    """
    address = run.info.artifact_uri
    if urlsplit(address).scheme == "file":
        for path in Path(url2pathname(urlsplit(address).path)).rglob(".artifact.uploading.*"):
            path.unlink(missing_ok=True)


def stamp(path: Path) -> list[int] | None:
    """Changes whenever the file does; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return [stat.st_mtime_ns, stat.st_size]


@dataclass(frozen=True)
class Target:
    """The run that files go to. ``told``: the last point of each metric, where all that the store
    holds of the run is of this process, so that there is nothing to ask for.
    """

    store: Store
    run_id: str
    name: str
    tags: Mapping[str, str]
    told: Mapping[str, Any] | None


def send_files(
    target: Target, files: RunFolder, memory: Memory, *, ended: list[int] | None
) -> None:
    """Files that are new or have changed; the log and the checkpoint once the run has ended, whose
    last status has the stamp ``ended``: then it is done. Raises what MLflow raises.
    """
    sent = memory.values.setdefault("artifacts", {})
    before = dict(sent)
    tree = sorted(path for path in files.artifacts.rglob("*") if is_ours(path, files.path))
    last = [files.log, files.checkpoint] if ended else []
    try:
        for path in [files.config, files.environment, *tree, *last]:
            mark, key = stamp(path), path.relative_to(files.path).as_posix()
            if mark and path == files.checkpoint:  # what came out is told with it
                mark += stamp(files.result) or []
            if mark is None or sent.get(key) == mark or not is_ours(path, files.path):
                continue
            below = path.parent.relative_to(files.artifacts).as_posix() if path in tree else "."
            _send(target, files, path, below)
            if path.parent == files.depth and key not in sent:
                _send_image(target, read_json(path) or {"reads": []}, mark[0] // 1_000_000)
            sent[key] = mark
        if ended:
            memory.values["done"] = ended
    finally:
        if ended or sent != before:
            memory.save()


def is_ours(path: Path, root: Path) -> bool:
    """Whether it is a file of this folder: a link may lead to any other of this machine."""
    inside = path.resolve().is_relative_to(root.parent.resolve() / root.name)
    return inside and path.is_file() and not path.name.startswith(".")


def _send(target: Target, files: RunFolder, path: Path, below: str) -> None:
    client = target.store.client
    if path == files.checkpoint:
        send_model(target, files)
    elif path == files.config and redact_settings(text := path.read_text(errors="replace")) != text:
        client.log_text(target.run_id, _without_secrets(text), path.name)
    elif path == files.log:
        client.log_text(target.run_id, redact(path.read_text(errors="replace")), path.name)
    else:
        client.log_artifact(target.run_id, str(path), None if below == "." else below)


def _without_secrets(text: str) -> str:
    """A config as YAML, by its keys where it can be read."""
    try:
        return str(yaml.safe_dump(redact_value(yaml.safe_load(text)), sort_keys=False))
    except yaml.YAMLError:
        return redact_settings(text)


def send_model(target: Target, files: RunFolder) -> None:
    """The checkpoint as a logged model: where it lies, how far it was trained and what came out;
    the weights stay where they are.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    store, client, result = target.store, target.store.client, read_json(files.result) or {}
    # the status of one that was killed before it could say how far it was is an older one
    step = int(result.get("step", files.status().step))
    labels = {
        key: target.tags[key]
        for key in ("variant", "size", "seed", "config_hash", "data_fingerprint")
        if key in target.tags
    }
    facts = {
        "checkpoint": str(files.checkpoint.absolute()),
        "step": str(step),
        "bytes": str(files.checkpoint.stat().st_size),
    }
    facts |= {
        key: str(value) for key, value in result.items() if key in ("val/loss", "tokens", "flops")
    }
    # a model's page shows its note, not its tags
    facts["mlflow.note.content"] = "  \n".join(f"{key}: `{value}`" for key, value in facts.items())
    new, query = target.told is not None, f"source_run_id = '{target.run_id}'"
    found = [] if new else client.search_logged_models([store.experiment_id], query, max_results=1)
    if found:
        model = found[0]
        client.set_logged_model_tags(model.model_id, facts)
    else:
        name = model_name(f"{target.name}-checkpoint")
        model = client.create_logged_model(
            store.experiment_id, name, target.run_id, EXTERNAL | facts, labels, "checkpoint"
        )
    # an output cannot be changed: it is that of a run that came to an end
    if result and (new or not client.get_run(target.run_id).outputs.model_outputs):
        client.log_outputs(target.run_id, [LoggedModelOutput(model.model_id, step)])
    _send_model_metrics(target, model)
    if model.status != LoggedModelStatus.READY:
        client.finalize_logged_model(model.model_id, "READY")


def _send_model_metrics(target: Target, model: Any) -> None:
    """What was measured of these weights, so that models sort by it: the points that the run shows,
    told to the model too.
    """
    from mlflow.entities import Metric

    client = target.store.client
    there = {(metric.key, metric.value) for metric in model.metrics or ()}
    told = (
        client.get_run(target.run_id).data._metric_objs
        if target.told is None
        else target.told.values()
    )
    found = [
        Metric(metric.key, metric.value, metric.timestamp, metric.step, model_id=model.model_id)
        for metric in told
        if re.fullmatch(MEASURED, metric.key) and (metric.key, metric.value) not in there
    ]
    if found:
        client.log_batch(target.run_id, found)


def _send_image(target: Target, record: Mapping[str, Any], when: int) -> None:
    """A picture of a depth record, as ``MlflowClient.log_image`` writes it: two files and a tag.
    That gives each call a name of its own, so that a lost answer would double the picture and half
    a call stay half of one; what is there of the record's picture is written again.
    """
    if (image := heat_map(record)) is None:
        return
    from mlflow.tracking.multimedia import compress_image_size
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
    from PIL.Image import fromarray

    client, run_id, step = target.store.client, target.run_id, record["step"]
    there = client.list_artifacts(run_id, "images") if target.told is None else []
    names = (PurePosixPath(item.path).name for item in there)
    found = [name for name in names if re.search(rf"[+%]step[+%]{step}[+%]", name)]
    new = f"{MAPS}+step+{step}+timestamp+{when}+{uuid4()}"
    name = re.sub(r"([+%]compressed)?\.\w+$", "", found[0]) if found else new
    with tempfile.TemporaryDirectory() as place:
        picture = fromarray(image)
        picture.save(Path(place) / f"{name}.png", compress_level=1)
        compress_image_size(picture).save(Path(place) / f"{name}+compressed.webp")
        client.log_artifacts(run_id, place, "images")
    client.set_tag(run_id, MLFLOW_LOGGED_IMAGES, "True")
