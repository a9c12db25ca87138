"""Why a run failed: the one place that classifies."""

from __future__ import annotations

import errno
import signal
from typing import Literal

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import DONE, Failure, State, Status
from attnres_lab.runs.secrets import redact

#: What makes a run fit.
REMEDY = "set train.micro_batch_size lower, or model.activation_checkpointing: true"
#: Exit code of a trial whose folder another process still holds.
LOCKED = 75
#: Exit code of a trial that could not write into its folder, not even how it ended.
UNWRITABLE = 74
#: What a cluster says of a trial that left no status: it was told to make room, needed more memory
#: than it has, lost a node, or waited in vain for one.
Fate = Literal["", "stopped", "out_of_memory", "node_lost", "node_missing"]
#: Errors of the machine or its file systems, not of the run.
MACHINE = (
    *(errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ENETDOWN, errno.ESTALE),
    *(errno.EMFILE, errno.ENFILE, errno.EPERM, errno.EACCES),
)
#: How torch.distributed says that another rank is gone.
PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def of_exception(error: BaseException) -> Failure:
    """What kind of failure an exception is."""
    name = type(error).__name__
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, UserError):
        return "config"
    if peer_gone(error):
        return "killed"
    if isinstance(error, ConnectionError | TimeoutError | EOFError) or (
        isinstance(error, OSError) and error.errno in MACHINE
    ):
        return "infrastructure"
    return "bug"


def peer_gone(error: BaseException) -> bool:
    """Whether an exception says no more than that another rank is gone."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in PEER_GONE)


def describe(error: BaseException) -> tuple[Failure, str]:
    """What kind of failure an exception is, and a line that says so, without secrets."""
    failure = of_exception(error)
    parts = redact(str(error)).splitlines()[:1]
    message = ": ".join(parts if isinstance(error, UserError) else [type(error).__name__, *parts])
    return failure, f"{message}; {REMEDY}" if failure == "out_of_memory" else message


def of_exit(
    status: Status, code: int | None, fate: Fate, *, asked: bool
) -> tuple[State, Failure | None, str]:
    """State, failure and message of a trial whose process is gone.

    ``status`` is what it left, ``code`` its exit code as of subprocess (negative: killed by that
    signal; None: nobody knows), ``fate`` what the cluster says, ``asked`` whether it was asked to
    end. What a trial said of itself stands; only one that left no end is judged by its exit.
    """
    if status.state in DONE or status.state in ("failed", "stopped"):
        return status.state, status.failure, status.message
    if asked or fate == "stopped":
        return "stopped", None, "ended on request" if asked else "ended by the cluster"
    if code == LOCKED:
        return "failed", "infrastructure", "another process still holds the trial's folder"
    if code == UNWRITABLE:
        return "failed", "infrastructure", "the disk failed; the trial's log may say how"
    if fate == "out_of_memory":
        return "failed", fate, f"the node's memory was not enough; {REMEDY}"
    if fate == "node_lost":
        return "failed", "infrastructure", "a node that it ran on is gone"
    if fate == "node_missing":
        return (
            "failed",
            "infrastructure",
            "its nodes never came: the cluster has fewer with these devices and cores than "
            "resources.nodes, and had for resources.node_timeout",
        )
    if code is None:
        return "failed", "killed", "the process is gone"
    if code < 0:
        return "failed", "killed", f"killed by {signal.Signals(-code).name}"
    return "failed", "bug", f"exit code {code}"
