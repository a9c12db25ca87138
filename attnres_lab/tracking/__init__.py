"""Mirrors run folders into MLflow (docs/tracking.md). Training writes files; a process of its own
reads them and writes to the store.
"""

from attnres_lab.runs.secrets import redact
from attnres_lab.tracking.mirror import RunMirror, SweepMirror, forget, log_report, rebuild
from attnres_lab.tracking.store import (
    connect,
    experiment_name,
    is_server,
    readable_errors,
    tracking_uri,
)

__all__ = [
    "RunMirror",
    "SweepMirror",
    "connect",
    "experiment_name",
    "forget",
    "is_server",
    "log_report",
    "readable_errors",
    "rebuild",
    "redact",
    "tracking_uri",
]
