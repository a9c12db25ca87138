"""Run folders as records: the one answer to what there is and what came out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attnres_lab.errors import UserError, nearest
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.runs.paths import artifacts_folder, runs_folder
from attnres_lab.runs.sweep import Entry, SweepFolder

#: What ``environment.json`` says of a run that its record repeats.
LABELS = (
    "run_name",
    "variant",
    "size",
    "seed",
    "config_hash",
    "revision",
    "dirty",
    "device",
    "data_fingerprint",
)
#: The columns that open every table of runs, exports and ``analysis.load_runs`` alike; the others,
#: numbers and dotted config keys, follow by the alphabet.
FIRST = (
    *("run_id", "name", "sweep", "status", "variant", "size", "seed"),
    *("data_fingerprint", "trial", "tuning"),
)
_JSON = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one for each value
#: What a table calls the keys of a record that have another name there.
NAMES = {"run": "run_id", "run_name": "name", "state": "status"}


def find(folder: Path | None = None) -> list[Path]:
    """Run folders below ``folder`` (default: all runs), the last changed first. Raises UserError
    when there are none.
    """
    root = Path(folder or runs_folder()).absolute()
    found = []
    for path, folders, files in os.walk(root):
        if Path(path) == artifacts_folder():
            folders.clear()
        elif status := _status_of(files):
            folders.clear()
            found.append((os.stat(f"{path}/{status}").st_mtime, path))
    if not found:
        raise UserError(f"{root}: no runs here; train or sweep first, or name another folder")
    return [Path(path) for _, path in sorted(found, reverse=True)]


def locate(name: str) -> Path:
    """The run folder ``name``, from here or from the folder of the runs; else the one run whose
    folder's name (a trial's hash) or run name begins so; one of a sweep's plan before those that
    lie beside it. Raises UserError.
    """
    for path in (Path(name), runs_folder() / name):
        if path.is_dir() and _status_of(os.listdir(path)):
            return path
    folders = find()
    found = [path for path in folders if path.name.startswith(name)]
    found = found or [
        path
        for path in folders
        if str((read_json(path / "environment.json") or {}).get("run_name", "")).startswith(name)
    ]
    if len(found) > 1:  # a sweep keeps what it discarded, under a name that begins with the hash
        plans: dict[Path, dict[str, Entry]] = {}
        found = [path for path in found if not _stale(path, _plan_of(path, plans))] or found
    if len(found) == 1:
        return found[0]
    why = (
        f"{len(found)} runs begin so, {found[0]} and {found[1]} among them; give a hash"
        if found
        else "no run folder, and no run is called so"
    )
    raise UserError(f"{name}: {why}; 'attnres runs list' prints the names")


def _status_of(files: Iterable[str]) -> str:
    """Which of a folder's files makes it a run's: its status, or the last damaged one that was set
    aside; empty for none.
    """
    found = [name for name in files if re.fullmatch(r"status\.json(\.damaged-\d+)?", name)]
    return min(found, key=lambda name: (len(name) > len("status.json"), name), default="")


def select(
    records: Iterable[Mapping[str, Any]], conditions: Iterable[str] = (), sort: str = ""
) -> list[Mapping[str, Any]]:
    """The records that meet all ``conditions`` (``variant=full``, ``val/loss<3``), sorted by the
    column ``sort`` (``-`` before it: highest first; runs without the value, or with nan, last). A
    column is one of the record or a config key. Raises UserError.
    """
    records = list(records)
    columns = {key.removeprefix("config/") for record in records for key in record} | {"stale"}

    def value(record: Mapping[str, Any], column: str) -> Any:
        if column not in columns:
            raise UserError(f"{column}: no run has such a column{nearest(column, columns)}")
        return record.get(column, record.get(f"config/{column}"))

    for condition in conditions:
        match = re.fullmatch(r"([^<>=!]+)(=|!=|<|>)([^<>=!]*)", condition)
        if not match:
            raise UserError(f"{condition}: write column=value, with = != < or >")
        column, sign, wanted = match.groups()
        records = [r for r in records if _holds(value(r, column), sign, wanted)]
    if sort:
        key, down = sort.removeprefix("-"), sort.startswith("-")
        keyed = [(_in_order(value(record, key)), record) for record in records]
        have = [(at, record) for at, record in keyed if at is not None]
        text = any(isinstance(at, str) for at, _ in have)
        have.sort(key=lambda pair: as_text(pair[0]) if text else pair[0], reverse=down)
        records = [r for _, r in have] + [r for at, r in keyed if at is None]
    return records


def _in_order(value: Any) -> Any:
    """What to sort by: as ``write_json`` has them "nan" has no place, and "inf" is a number."""
    if value == "nan":
        return None
    return float(value) if value in ("inf", "-inf") else value


def _holds(value: Any, sign: str, wanted: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(wanted)
        except ValueError:
            return sign == "!="
        return {
            "=": value == number,
            "!=": value != number,
            "<": value < number,
            ">": value > number,
        }[sign]
    same = as_text(value) == wanted
    return same if sign == "=" else sign == "!=" and not same


def table(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Per run folder: its name, state and failure, labels, final numbers (of a run without a
    result those of its last row) and, as ``config/<dotted key>``, its config. The state is
    ``damaged`` where the status was set aside and none has been written since. Of a sweep's runs
    that are no part of its plan any more ``stale`` is True; others have no such key. The labels of
    a trial that writes none, for a function of the user's trains it, are those of the plan.
    """
    root, plans, records = runs_folder(), dict[Path, dict[str, Entry]](), []
    for path in paths:
        plan = _plan_of(path, plans)
        known = None if RunFolder(path).environment.exists() else plan.get(path.name)
        stale = {"stale": True} if _stale(path, plan) else {}
        records.append(_record(path, root, known) | stale)
    return records


def _plan_of(path: Path, plans: dict[Path, dict[str, Entry]]) -> dict[str, Entry]:
    """The plan, by hash, of the sweep that a run lies in; ``plans`` are those read so far."""
    home = path.absolute().parents[1]
    if path.parent.name not in ("trials", "discarded"):
        return {}
    if home not in plans:
        plans[home] = {entry.hash: entry for entry in SweepFolder(home).plan()}
    return plans[home]


def _stale(path: Path, plan: Mapping[str, Entry]) -> bool:
    """Whether a run lies in a sweep and is no part of its ``plan``."""
    return bool(plan) and path.name not in plan


def planned(sweep: SweepFolder) -> list[dict[str, Any]]:
    """The records of the planned trials, in the order of the plan, with ``sweep`` and ``trial``
    (the hash), ``planned_flops`` and ``planned_tokens``, and ``tuning`` under ``tune``. What the
    plan says of a trial stands where its folder
    says nothing; folders beside the plan are left out: they are of an earlier one.
    """
    root, entries = runs_folder(), sweep.plan()
    tuned = any(entry.tuning for entry in entries)
    return [
        {"sweep": sweep.path.name, "trial": entry.hash}
        | ({"tuning": entry.tuning} if tuned else {})
        | {"planned_flops": entry.flops, "planned_tokens": entry.tokens}
        | _record(sweep.trials / entry.hash, root, entry)
        for entry in entries
    ]


def tidy(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records as rows of one schema, whatever is exported and in whatever format: the columns
    ``FIRST``, then all others by the alphabet, config keys dotted and bare; None where a run has no
    value. ``run_id`` is the run's folder.
    """
    root, rows = runs_folder(), list[dict[str, Any]]()
    for record in records:
        config = {k.removeprefix("config/"): v for k, v in record.items() if k[:7] == "config/"}
        own = {NAMES.get(k, k): v for k, v in record.items() if k[:7] != "config/"}
        own["run_id"] = str((root / str(record["run"])).absolute())
        own["name"] = own["name"] or Path(own["run_id"]).name
        rows.append(config | own)
    return in_order(rows)


def in_order(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the columns of all of them, ``FIRST`` first, the others by the alphabet."""
    rows = list(rows)
    columns = {key for row in rows for key in row}
    order = [key for key in FIRST if key in columns] + sorted(columns - set(FIRST))
    return [{key: row.get(key) for key in order} for row in rows]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def as_text(value: Any) -> str:
    """The one form of a config value in a store or a table: text as it is, anything else as JSON
    (1e5 as 100000, as a plan may have it).
    """
    if isinstance(value, str):
        return value
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return _JSON(int(value) if whole else value)


def _record(path: Path, root: Path, entry: Entry | None) -> dict[str, Any]:
    files = RunFolder(path)
    status = files.status()
    environment = read_json(files.environment) or {}
    labels: dict[str, Any] = {key: environment.get(key) for key in LABELS}
    config = environment.get("config")
    config = config if isinstance(config, dict) else {}
    if entry:
        labels |= {key: getattr(entry, key) for key in ("variant", "size", "seed")}
        labels["run_name"] = labels["run_name"] or entry.run_name
        config = flatten(entry.params) | config
    numbers = read_json(files.result) or files.last_row()
    if status.imported:
        labels["imported"] = status.imported
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    parts = inside.parts
    trial = len(parts) == 4 and (parts[0], parts[2]) == ("sweeps", "trials")
    head = {
        "run": str(inside),
        **({"sweep": parts[1], "trial": parts[3]} if trial else {}),
        "state": "damaged" if files.damaged else status.state,
        "failure": status.failure,
        "message": status.message,
        **labels,
        "step": numbers.get("step", status.step),
    }
    return (
        head
        | {key: value for key, value in numbers.items() if key not in head and key != "time"}
        | {f"config/{key}": value for key, value in config.items()}
    )
