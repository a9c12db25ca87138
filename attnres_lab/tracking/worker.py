"""The mirroring process: a turn a second, patience while the store is away, a last turn when its
parent is done.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from attnres_lab.runs.files import same_folder
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.secrets import redact
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.tracking.artifacts import mirroring
from attnres_lab.tracking.run import RunSync
from attnres_lab.tracking.single import single
from attnres_lab.tracking.store import connect, left_behind, reason, tracking_uri
from attnres_lab.tracking.sweep import SweepSync
from attnres_lab.tracking.whole import is_whole

TURN = 1.0  # seconds
LONGEST_PAUSE = 15.0  # seconds between attempts to reach a store that is away


class Worker:
    """Reads its task from standard input: one JSON line; the end of input is the end of the
    task.
    """

    def __init__(self) -> None:
        self.task: dict[str, Any] = json.loads(sys.stdin.readline())
        self.folder = Path(self.task["folder"])
        self._is_sweep = self.task["kind"] == "sweep"
        self.ended = threading.Event()
        self._sync: RunSync | SweepSync | None = None
        self._away = False
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self) -> None:
        """Turns until the end; then turns until everything is sent or the grace is over."""
        pause, deadline, place = TURN, None, self.folder.stat()
        while True:
            same_folder(self.folder, place)
            last = self.ended.is_set()
            if last and deadline is None:
                deadline = time.monotonic() + self.task["grace"]
            complete = self._turn(last)
            if last and complete:
                return
            if deadline and time.monotonic() > deadline:
                left_behind(self.folder)
                return
            pause = min(2 * pause, LONGEST_PAUSE) if self._away else TURN
            self.ended.wait(pause) if not last else time.sleep(
                min(pause, 1.0) if self._away else 0.0
            )

    def _turn(self, last: bool) -> bool:
        try:
            complete = self._mirror(last)
        except Exception as error:
            if not self._away:
                self._say(
                    f"{redact(tracking_uri())} cannot be written ({reason(error)}); the run goes "
                    f"on, its rows are kept in {self.folder} and sent later"
                )
            self._away, self._sync = True, None
            return False
        if self._away:
            self._say(f"{redact(tracking_uri())} is back; everything kept was sent")
        self._away = False
        return complete

    def _mirror(self, last: bool) -> bool:
        if self._sync is None:
            if (
                not SweepFolder(self.folder).plan_file.exists()
                and not RunFolder(self.folder).begun()
            ):
                return True  # nothing to tell yet
            if self._is_sweep and is_whole(self.folder, self.task["summary"]):
                return True  # nor any more
            store = connect(thorough=self._away)  # that it failed may be the file's fault
            if self._is_sweep:
                self._sync = SweepSync(store, self.folder, self.task["name"], self.task["summary"])
            else:
                self._sync = single(store, self.folder)
        if isinstance(self._sync, SweepSync):
            complete = self._sync.sync()
        else:
            self._sync.sync()
            self._sync.sync_artifacts()
            complete = True
        if last and complete:
            self._sync.close()
        return complete

    def _listen(self) -> None:
        sys.stdin.read()
        self.ended.set()

    def _say(self, text: str) -> None:
        print(f"tracking: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point of ``python -m attnres_lab.tracking``."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if hasattr(os, "nice"):
        os.nice(10)
    worker = Worker()
    try:
        with mirroring(worker.folder):
            worker.run()
    except OSError as error:  # the folder is gone, which its command tells, or its disk
        if worker.folder.is_dir():
            print(f"tracking: {worker.folder}: {reason(error)}", file=sys.stderr)
        sys.exit(1)
