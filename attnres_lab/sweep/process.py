"""One trial in its own process: holds the folder, runs the function, leaves a status that says how
it ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attnres_lab.errors import UserError
from attnres_lab.plugins import imported
from attnres_lab.runs import failures
from attnres_lab.runs.folder import DONE, RunFolder, write_json
from attnres_lab.runs.lock import only_one
from attnres_lab.sweep import scoring
from attnres_lab.sweep.scoring import TRAIN as TRAIN
from attnres_lab.training.ranks import start_ranks

#: Seconds to wait for a process that is on its way out to let go of the folder.
PATIENCE = 20.0


def execute(path: Path, function: str) -> int:
    """Run ``function`` ("module:name", called with the config and the folder) on the trial in
    ``path``; returns an exit code.

    The folder is held for as long as that takes: nothing runs twice at the same time, whoever
    started it.
    """
    from attnres_lab.config import load  # torch, after ``main`` follows who started this process

    folder = RunFolder(path)
    try:
        with only_one(folder, PATIENCE):
            try:
                # by the process that held the folder; of training a result may have been lost
                if function == TRAIN or folder.status().state not in DONE:
                    config, run = load(folder.config), resolve(function)
                    if function != TRAIN:
                        folder.set_status("running", step=folder.status().step)
                    value, status = run(config, path), folder.status()
                    if status.state in ("scheduled", "running"):  # it does not say how it ended
                        if value is not None:
                            write_json(folder.result, _result(value))
                        folder.set_status("finished", step=status.step)
                scoring.make(folder)
            except Exception as error:
                traceback.print_exc()
                if (status := folder.status()).state != "failed":  # else the function said why
                    failure, message = failures.describe(error)
                    with suppress(OSError):  # the disk may be what failed
                        folder.set_status(
                            "failed", failure=failure, message=message, step=status.step
                        )
                return 1
            return 1 if folder.status().state == "failed" else 0
    except UserError:
        return failures.LOCKED
    except OSError:  # of a status too: all else that is raised is written into one
        traceback.print_exc()
        return failures.UNWRITABLE


def _result(value: Any) -> Mapping[str, Any]:
    """What a function of the user's returned. Raises UserError for what is no mapping."""
    if isinstance(value, Mapping):
        return value
    raise UserError(
        f"function: returned {type(value).__name__}; return a mapping such as {{'val/loss': ...}}"
    )


def resolve(function: str) -> Any:
    """The callable ``module:name``. Raises UserError where there is none."""
    return imported("function", function.replace(":", "."))


def main() -> None:
    """``python -m attnres_lab.sweep.process FOLDER FUNCTION [--follow]``: for launchers that
    start a fresh interpreter; where ``NODE_RANK`` says that this is not a trial's first node, only
    the processes of this one.
    """
    if "--follow" in sys.argv:
        os.setsid()
        threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    folder = Path(sys.argv[1])
    if os.environ.get("NODE_RANK", "0") != "0":
        from attnres_lab.config import load

        sys.exit(start_ranks(load(RunFolder(folder).config).train, folder))
    sys.exit(execute(folder, sys.argv[2]))


def _follow(parent: int) -> None:
    """End with the process that started this one, children and all."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
