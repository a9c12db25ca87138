"""Finished trials as a small table: ``attnres sweep export`` writes it, and a sweep whose file
names it under ``known`` takes its trials from there instead of running them again.

A row is one trial: its hash, a checksum of the row, the plan's labels, the resolved config by
dotted key, the result, and ``environment/<dotted key>``. Its identity is the hash of its config,
which is computed again: a changed config is another trial.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from attnres_lab.config import RunConfig, flatten, load, to_yaml
from attnres_lab.data import prepare
from attnres_lab.errors import UserError
from attnres_lab.runs.files import checked, read_json, write_atomic, write_json
from attnres_lab.runs.folder import DONE, RunFolder, Status
from attnres_lab.runs.progress import Progress, progress
from attnres_lab.runs.secrets import redact_value
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.runs.table import NAMES as RECORD_NAMES
from attnres_lab.runs.table import flatten as flat
from attnres_lab.runs.table import in_order
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.spec import SpecFile
from attnres_lab.sweep.trials import trial_hash
from attnres_lab.tracking.export import FORMATS, write_records
from attnres_lab.yamlfile import YamlFile

CHECKSUM = "sha256"
#: What the table calls them, as every other export does; older tables have the names inside.
NAMES = {"hash": "trial", **RECORD_NAMES}
STATUS = ("state", "failure", "message")
PLANNED = {"flops": "planned_flops", "tokens": "planned_tokens"}
#: Columns that are neither config nor result.
ABOUT = {*(PLANNED.get(f.name, f.name) for f in fields(Entry)), *STATUS, CHECKSUM} - {"params"}
SECTIONS = {field.name for field in fields(RunConfig)}
#: Places on one machine; no part of a run's identity.
PLACES = ("data.cache_dir", "init_from")
ENVIRONMENT = "environment/"
#: Three of four columns of a deep model; its depth records have them.
SUBLAYER = re.compile(r"depth/[^/]+/\d+")


def export(folder: SweepFolder, to: Path) -> list[Path]:
    """What is known about every trial, a row each, save values by sublayer that the sweep's file
    does not name: into ``to`` where it ends in .csv, .parquet or .json, else into trials.csv,
    trials.parquet and trials.json in the folder ``to``. Raises UserError for a sweep that never
    ran, and for what cannot be written.
    """
    trials = sorted(progress(folder), key=lambda trial: _place(trial.entry))
    wanted = str(folder.facts().get("yaml", ""))
    rows = [
        {k: v for k, v in row.items() if not SUBLAYER.fullmatch(k) or k in wanted}
        for row in (_row(trial, folder.trial(trial.entry.hash)) for trial in trials)
    ]
    if not rows:
        raise UserError(f"{folder.path}: nothing has run yet; start it with: attnres sweep run")
    paths = [to] if to.suffix in FORMATS else [to / f"trials{ending}" for ending in FORMATS]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".csv":
                write_atomic(path, _csv(rows).encode())
            else:
                write_records(path, in_order([_renamed(row, NAMES) for row in rows]))
    except OSError as error:
        raise UserError(f"{error.filename or to}: {error.strerror or error}") from None
    return paths


def _renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in row.items()}


def bring(source: SpecFile, folder: SweepFolder) -> int:
    """Give every finished trial of the tables under ``known`` its folder, unless it has one; how
    many were given. Raises UserError for a table that is missing, damaged, or of other code.
    """
    count = 0
    for name in source.spec.tables:
        place = f"{source.file.where('known')}: known: {name}"
        for line, cells in _read(source.file.path.parent / name, place):
            run, state = folder.trial(cells["hash"]), cells.get("state")
            if state not in DONE or run.status_file.exists():
                continue
            config = _config(cells, f"{place}, line {line}", source.spec.function)
            _write(run, config, cells, name, set(source.spec.space))
            count += 1
    return count


def check_data(source: SpecFile, folder: SweepFolder, config: RunConfig) -> None:
    """Raises UserError where a trial that was taken from a table saw other data than ``config``
    finds here: losses of two corpora cannot be compared.
    """
    if source.spec.function != TRAIN or not source.spec.tables or config.task.name != "language":
        return
    here = ""
    for run in map(RunFolder, sorted(folder.trials.glob("*/"))):
        there = (read_json(run.environment) or {}).get("data_fingerprint")
        if not run.status().imported or not there:
            continue
        here = here or prepare(config.data, progress=True).fingerprint
        if there != here:
            raise UserError(
                f"{source.file.where('known')}: known: {run.path.name} was trained on the data "
                f"{there}, here they are {here}: use the same data (of the source python, the same "
                "release of Python), or take known out and start another sweep"
            )


def _place(entry: Entry) -> tuple[int, str, bool, int, str]:
    """The same order for the same trials, in whatever order they came up."""
    return entry.num_params, entry.variant, not entry.tuning, entry.seed, entry.hash


def _row(trial: Progress, run: RunFolder) -> dict[str, Any]:
    """What is known of a trial, by column."""
    entry = {PLANNED.get(key, key): value for key, value in asdict(trial.entry).items()}
    params = entry.pop("params")
    config = flatten(load(run.config)) if run.config.exists() else flat(params)
    config = {key: value for key, value in config.items() if key not in PLACES and key != "name"}
    config |= {key: redact_value(config[key]) for key in {"loggers"} & set(config)}
    status = {key: getattr(trial.status, key) for key in STATUS}
    if trial.status.imported:  # the next one that takes it from here says so
        status["message"] = ""
    environment = read_json(run.environment) or {}
    about = flat({k: v for k, v in environment.items() if k not in ("config", *entry)})
    return {
        **entry,
        **{key: value for key, value in params.items() if key not in (*entry, *config)},
        **status,
        **{key: value for key, value in config.items() if key not in entry},
        **{key: value for key, value in trial.row.items() if key not in entry},
        **{f"{ENVIRONMENT}{key}": value for key, value in about.items()},
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    """One form for every value, so that what is read again is what was written."""
    texts = [
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
        for row in rows
    ]
    texts = [{key: text for key, text in row.items() if text} for row in texts]
    lines = in_order([checked(_renamed(row, NAMES)) for row in texts])
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def _read(path: Path, place: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table with their lines, without empty cells."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise UserError(f"{place}: {why}; attnres sweep export writes such a table") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        inside = {outside: key for key, outside in NAMES.items()}
        given = {inside.get(key, key) for key in reader.fieldnames or ()}
        if missing := {"hash", "state"} - given:
            name = NAMES[min(missing)]
            raise UserError(f"{place}: no column {name}: this is no table of trials")
        for row in reader:
            cells = {key: cell for key, cell in row.items() if key and cell}
            written = cells.pop(CHECKSUM, None)
            whole = written is None and CHECKSUM not in (reader.fieldnames or ())
            whole = whole or written == checked(cells)[CHECKSUM]
            cells = {inside.get(key, key): cell for key, cell in cells.items()}
            if not cells.get("hash", "").isalnum() or not whole:
                raise UserError(
                    f"{place}, line {reader.line_num}: damaged: the row is not what was written; "
                    "export the table again, or delete the line, and the trial runs again"
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{place}, line {reader.line_num}: damaged: {error}") from None


def _config(cells: Mapping[str, str], place: str, function: str) -> RunConfig:
    """The config of a row. Raises UserError where this code finds another hash for it."""
    tree: dict[str, Any] = {}
    for key in (key for key in cells if key.partition(".")[0] in SECTIONS):
        if any(other.startswith(f"{key}.") for other in cells):
            continue  # how the space names a section that is there key by key
        node, (*parents, last) = tree, key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = _value(cells[key])
    remedy = (
        "the table is of another version of the code, and its trials would run again: export it "
        "there anew, or take known out"
    )
    try:
        config = load(YamlFile(Path("known"), text=json.dumps(tree)))
    except UserError as error:
        raise UserError(
            f"{place}: {cells['hash']}: {str(error).partition(': ')[2]}; {remedy}"
        ) from None
    if (found := trial_hash(config, function)) != cells["hash"]:
        raise UserError(
            f"{place}: {cells['hash']}: the hash of its config is {found} here; {remedy}"
        )
    return config


def _write(
    run: RunFolder, config: RunConfig, cells: Mapping[str, str], name: str, axes: set[str]
) -> None:
    """The folder of a trial; its status last, so that one cut short is written again."""
    own = {key for key in cells if key.partition(".")[0] in SECTIONS}
    about = {key: _value(cells[key]) for key in cells if key.startswith(ENVIRONMENT)}
    result = {
        key: _value(cell) for key, cell in cells.items() if key not in {*ABOUT, *own, *about, *axes}
    }
    config = replace(config, name=cells.get("run_name", config.run_name)[:100])
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(to_yaml(config))
    if about:
        labels = {"variant": config.variant, "size": config.model.size, "seed": config.seed}
        environment: dict[str, Any] = {**labels, "run_name": config.name}
        for key, value in about.items():
            node, (*parents, last) = environment, key.removeprefix(ENVIRONMENT).split(".")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        write_json(run.environment, environment | {"config": flatten(config)})
    if result:
        write_json(run.result, result)
    run.set_status(
        cells["state"],  # type: ignore[arg-type]  # one of DONE
        message=f"{Status.IMPORTED}{name}",
        step=int(result.get("step", 0)),
    )


def _value(text: str) -> Any:
    """What ``_csv`` made ``text`` of."""
    try:
        return json.loads(text)
    except ValueError:
        return text
