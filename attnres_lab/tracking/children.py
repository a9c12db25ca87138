"""The runs of a sweep in the store, planned or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attnres_lab.tracking.store import Store


def runs_of(store: Store, sweep_id: str) -> dict[str, Any]:
    """By the tag ``attnres.id``, deleted ones too. One whose creation was answered too late is
    there twice: the emptier one is deleted.
    """
    found: dict[str, Any] = {}
    token: str | None = ""
    while token is not None:
        page = store.client.search_runs(
            [store.experiment_id],
            f"tags.sweep_id = '{sweep_id}'",
            3,
            1000,
            page_token=token or None,
        )
        for run in page:
            uid = run.data.tags["attnres.id"]
            both = {id(r): r for r in (run, found.get(uid, run))}.values()
            found[uid], *double = sorted(both, key=_filled, reverse=True)
            for other in double:
                if other.info.lifecycle_stage == "active":
                    store.client.delete_run(other.info.run_id)
        token = page.token or None
    return found


def set_apart(client: Any, runs: Mapping[str, Any], planned: Collection[str]) -> None:
    """Tag those of a sweep's ``runs`` in the store that its plan no longer has as ``stale``, and
    those that are back no more; one that only stood for its place in the plan is deleted.
    """
    for uid, run in runs.items():
        gone, run_id = uid not in planned, run.info.run_id
        if run.info.lifecycle_stage != "active":
            continue
        if gone and run.info.status == "SCHEDULED":
            client.delete_run(run_id)
        elif gone and "stale" not in run.data.tags:
            client.set_tag(run_id, "stale", "true")
        elif not gone and "stale" in run.data.tags:
            client.delete_tag(run_id, "stale")


def _filled(run: Any) -> tuple[bool, int]:
    """Order of two runs of one id: deleted ones first, then by what was written."""
    return run.info.lifecycle_stage == "active", len(run.data.metrics) + len(run.data.params) + len(
        run.data.tags
    )
