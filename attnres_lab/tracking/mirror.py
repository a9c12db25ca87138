"""Start and end the process that mirrors a folder while it grows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from filelock import Timeout

from attnres_lab.errors import UserError
from attnres_lab.runs.lock import mendable
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.tracking import sqlite
from attnres_lab.tracking.artifacts import mirroring
from attnres_lab.tracking.store import Store, connect, file_of, left_behind, tracking_uri

GRACE = 30.0  # seconds that the last rows get once the training is over


class _Mirror:
    """A process that mirrors until its standard input ends: at the end of the block, or when this
    process dies. One that was killed is started again at the end. Raises UserError for a wrong
    address of the store.
    """

    def __init__(self, folder: Path, task: Mapping[str, object]) -> None:
        self.folder, self._task = Path(folder).absolute(), task
        tracking_uri()  # a wrong address is told before anything is trained

    def __enter__(self) -> Self:
        with mendable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._process = self._start()
        return self

    def __exit__(self, *_: object) -> None:
        code = self._end()
        if code != 0 and not self.folder.is_dir():  # it was moved or deleted
            return
        if code not in (0, None):
            self._process = self._start()
            code = self._end()
        if code != 0:
            left_behind(self.folder)

    def _start(self) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        }
        command = [sys.executable, "-m", "attnres_lab.tracking"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, env=environment, start_new_session=True, text=True
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code says so
            process.stdin.write(
                json.dumps({"folder": str(self.folder), "grace": GRACE, **self._task}) + "\n"
            )
            process.stdin.flush()
        return process

    def _end(self) -> int | None:
        """The exit code once the last rows are sent; None: they took too long."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None


class RunMirror(_Mirror):
    """Mirror the folder of one training run while the block runs. Never raises for a store that is
    slow, down or wrong.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {"kind": "run"})


class SweepMirror(_Mirror):
    """Mirror a sweep (``plan.json``, ``trials/<hash>/``) while the block runs; ``summary`` is what
    the parent's note says of the plan, by title.
    """

    def __init__(self, sweep_name: str, sweep_folder: Path, summary: Mapping[str, str]) -> None:
        super().__init__(
            sweep_folder, {"kind": "sweep", "name": sweep_name, "summary": dict(summary)}
        )


def log_report(sweep_name: str, folder: Path) -> None:
    """Upload a report folder to the parent run of the sweep; where the sweep is running its mirror
    takes along the report that lies in the sweep's folder. Raises what MLflow raises, and
    UserError for another folder then.
    """
    from attnres_lab.tracking.sweep import SweepSync

    home = SweepFolder.named(sweep_name)
    try:
        with mirroring(home.path, wait=False):
            SweepSync(connect(), home.path, sweep_name, {}).upload(Path(folder))
    except Timeout:
        if Path(folder).resolve() != home.report.resolve():
            message = f"the sweep is running, and sends the report in {home.report} only"
            raise UserError(message) from None


def rebuild(folder: Path) -> Iterator[Path]:
    """Write every run and sweep below ``folder`` to the store again, each as it is yielded; what
    the store already holds is not doubled, and what is running is left to its own mirror. Many runs
    are shared out to a process per core.

    Raises UserError when there are no runs, and what MLflow raises.
    """
    from attnres_lab.runs.table import find
    from attnres_lab.tracking.crew import Errand, send

    found = sorted(find(folder))
    homes = dict.fromkeys(path.parents[1] for path in found)
    sweeps = [home for home in homes if SweepFolder(home).plan_file.exists()]
    store = connect(thorough=True, rebuilding=True)
    if path := file_of(tracking_uri()):
        sqlite.hurry(path)
    try:
        for home in sweeps:
            yield home
            _unless_running(_send_sweep, store, home)
        alone = [home for home in found if home.parents[1] not in sweeps]
        for home, sent in zip(alone, send([Errand(home) for home in alone]), strict=True):
            yield home
            if not sent:
                _unless_running(_send_run, store, home)
    finally:
        sqlite.calm()


def _unless_running(send: Callable[[Store, Path], None], store: Store, home: Path) -> None:
    """``send`` what is in ``home``; a line instead where a mirror does so already."""
    try:
        with mirroring(home, wait=False):
            send(store, home)
    except Timeout:
        print(f"tracking: {home}: left to the mirror of what is running there", file=sys.stderr)


def _send_run(store: Store, home: Path) -> None:
    from attnres_lab.tracking.single import single

    run = single(store, home)
    run.sync()
    run.sync_artifacts()


def _send_sweep(store: Store, home: Path) -> None:
    from attnres_lab.tracking.crew import send
    from attnres_lab.tracking.sweep import SweepSync

    if not SweepSync(store, home, home.name, {}).has_report():
        SweepSync(store, home, home.name, {}).upload(SweepFolder(home).report)
    for _ in send(SweepSync(store, home, home.name, {}).errands()):
        pass  # the sweep finds what was sent, and sends what was not
    sweep = SweepSync(store, home, home.name, {})
    while not sweep.sync():
        pass
    sweep.close()


def forget(home: Path) -> int:
    """Mark the runs of the sweep in ``home`` as deleted in the store; their number. Raises what
    MLflow raises.
    """
    store, query = connect(), f"tags.sweep_id = '{SweepFolder(home).identify()}'"
    count = 0
    while found := store.client.search_runs([store.experiment_id], query, max_results=1000):
        for run in found:
            store.client.delete_run(run.info.run_id)
        count += len(found)
    return count
