"""What is on disk, without what the clock put there: two undisturbed runs are equal in it."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

CLOCK = re.compile(
    # of rows and results, the checksums over them, and what is drawn anew
    r"(device_)?seconds|time|updated|peak_memory_bytes|perf/.*|system/.*|sha256|rows|id|started"
)
#: Of a process, not of the run; what the mirror remembers is compared in the store.
LIVE = {"heartbeat", "lock", "alone", "log.txt", "tracking.json", ".tracking.lock"}
LIVE |= {"coordinator.heartbeat", "coordinator.lock"}


def run_state(folder: Path) -> dict[str, Any]:
    """Relative path to content, of every file of a run folder."""
    return {
        str(path.relative_to(folder)): content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in LIVE
    }


def difference(one: dict[str, Any], other: dict[str, Any], at: str = "") -> str:
    """The places that differ, with what differs; empty where nothing does."""
    lines = []
    for key in sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines.append(difference(a, b, f"{at}{key}: "))
        else:
            lines.append(f"{at}{key}: {a!s:.1500}\nnot {b!s:.1500}")
    return "\n".join(lines)


def content(path: Path) -> Any:
    """Of a file: as bytes, or, for what is ours, without clocks and checksums."""
    if zipfile.is_zipfile(path):
        return _checkpoint(path)
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_bytes().splitlines()]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not CLOCK.fullmatch(str(k))}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _checkpoint(path: Path) -> Any:
    import torch

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            content = value.contiguous().numpy().tobytes()
            return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    checkpoint = plain(torch.load(path, weights_only=True))
    checkpoint["run"]["row_start"] = checkpoint["run"]["row_start"][0]  # the other is seconds
    return _timeless(checkpoint)


def sweep_state(runs: Path) -> dict[str, Any]:
    """Of the sweep ``s`` in a folder of runs: its trials' files, its own, and its study."""
    folder = runs / "sweeps" / "s"
    files = {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in LIVE
    }
    state: dict[str, Any] = {name: content(path) for name, path in files.items()}
    for name in ("study.journal", "witness.txt"):  # what they say counts, not how often
        if name in state:
            state[name] = ""
    state.get("sweep.json", {}).pop("id", None)  # drawn anew for each sweep
    return state | {"study": study_state(folder / "study.journal")}


def search_state(runs: Path) -> dict[str, Any]:
    """Of a search, whose sampler proposes another point in place of one that was lost before it was
    planned: how many points are planned and told, and which files there are.
    """
    state = sweep_state(runs)
    return {
        "planned": len(state["plan.json"]),
        "study": [trial[1] for trial in state["study"]],
        "files": {re.sub(r"trials/[^/]+", "trials/*", name): 0 for name in state},
    }


def study_state(journal: Path) -> list[Any]:
    """(point, state, values, parameters) of every Optuna trial but failed ones: attempts."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(
        study_name="s", storage=JournalStorage(JournalFileBackend(str(journal)))
    )
    return sorted(
        [t.user_attrs.get("point"), t.state.name, t.values, t.params]
        for t in study.trials
        if t.state.name != "FAIL"
    )
