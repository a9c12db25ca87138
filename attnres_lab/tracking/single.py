"""A run that belongs to no sweep, in the store."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.tracking.run import Identity, RunSync
from attnres_lab.tracking.store import Store


def single(store: Store, folder: Path) -> RunSync:
    """The mirror of a run that belongs to no sweep; its id is kept in ``tracking.json``, and is the
    one that training drew, so that either file may be lost.
    """
    files = RunFolder(folder)
    memory = read_json(files.sent) or {}
    if "id" not in memory:
        drawn = (read_json(files.environment) or {}).get("id")
        memory["id"] = drawn or uuid4().hex
        write_json(files.sent, memory)
    found = store.client.search_runs(
        [store.experiment_id], f"tags.`attnres.id` = '{memory['id']}'", 3, 1
    )
    known = found[0].info.run_id if found else None
    return RunSync(store, folder, Identity(memory["id"], folder.name), known)
