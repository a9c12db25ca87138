"""A disk that is full, a folder that may not be written, shared memory that is used up: a clear
message or none, and nothing is lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnres_lab.errors import UserError
from attnres_lab.sweep.report import print_status
from tests.sweep.conftest import Lab, in_process
from tests.sweep.services import wait_for
from tests.sweep.test_crash import CHAIN, _exit_with_outcome, check_exact, trial_pids

pytestmark = pytest.mark.infra


@pytest.fixture
def small(lab: Lab) -> Iterator[Path]:
    """The runs folder as a file system of one megabyte."""
    folder = lab.path / "runs"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the space there is."""
    ballast = folder / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    lab: Lab, small: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Really full: trials and coordinator alike can write nothing, not even a status. With space
    again the sweep goes on where it was.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.2")
    path = lab.sweep(
        space={"seed": [0, 1, 2, 3]}, retry={"infrastructure": 1, "backoff": 0.05}, **CHAIN
    )
    coordinator = in_process(_refused, lab, path)
    wait_for(lambda: len(list(small.rglob("last.ckpt"))) == 2)
    ballast = fill(small)
    coordinator.join(60)
    assert coordinator.exitcode == 2
    assert "No space left on device; what was written before is intact" in capfd.readouterr().out
    wait_for(lambda: not trial_pids(lab), 5)
    ballast.unlink()
    assert lab.run(path).exit_code == 0
    check_exact(lab)
    assert max(int(e[2]) for e in lab.witness() if e[0] == "start") > 0


def test_a_read_only_file_system_is_named_and_the_sweep_goes_on_once_it_is_mended(
    lab: Lab, small: Path
) -> None:
    path = lab.sweep(**CHAIN)
    lab.run(lab.sweep(space={"optim.lr": [1e-3], "seed": [0, 1]}, **CHAIN))
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    path = lab.sweep(**CHAIN)
    with pytest.raises(UserError, match=r"Read-only file system; .* mend this, then run it again"):
        lab.run(path)
    print_status(lab.folder, as_json=False, watch=False)  # looking is allowed
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_folder_that_becomes_read_only_in_the_middle(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """No file can be made or replaced in the sweep's folders any more, by root neither."""
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.2")
    path = lab.sweep(
        space={"seed": [0, 1, 2, 3]}, retry={"infrastructure": 1, "backoff": 0.05}, **CHAIN
    )
    coordinator = in_process(_refused, lab, path)
    wait_for(lambda: len(list(lab.folder.trials.rglob("last.ckpt"))) == 2)
    folders = [str(p) for p in (lab.folder.path, *lab.folder.path.rglob("*")) if p.is_dir()]
    frozen = subprocess.run(["chattr", "+i", *folders], capture_output=True, text=True, check=False)
    try:
        if frozen.returncode:
            pytest.skip(f"folders cannot be frozen here: {frozen.stderr.strip()}")
        coordinator.join(60)
        assert coordinator.exitcode == 2
        assert (
            "Operation not permitted; what was written before is intact" in capfd.readouterr().out
        )
        wait_for(lambda: not trial_pids(lab), 5)
    finally:
        subprocess.run(["chattr", "-i", *folders], check=False, capture_output=True)
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_disk_that_is_unmounted_in_the_middle_ends_the_sweep_with_a_line(
    lab: Lab, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials end with it, and nothing is started in the empty folder that is left."""
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.2")
    pids: list[int] = []

    def unmount(self: object) -> None:
        if not pids and (found := trial_pids(lab)):
            pids.extend(found)
            subprocess.run(["umount", "-l", str(small)], check=True)

    with monkeypatch.context() as patch:
        patch.setattr("attnres_lab.sweep.view.Screen.tick", unmount)
        with pytest.raises(UserError, match="runs/sweeps/s: was moved, deleted or unmounted"):
            lab.run(lab.sweep(space={"seed": [0, 1, 2]}, **CHAIN))
    assert pids
    wait_for(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], 5)
    left = [path for path in small.rglob("*") if path.is_file()]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(small)], check=True)  # as it was
    assert left == []


def test_training_does_not_need_shared_memory(lab: Lab) -> None:
    """The real command on real trials, where /dev/shm has no byte left (in a mount namespace of its
    own).
    """
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace of one's own here: needs root")
    path = lab.sweep(space={"seed": [0, 1]}, function="attnres_lab.training.run:run")
    fill_it = (
        "mount -t tmpfs -o size=4k tmpfs /dev/shm && ! head -c 8192 /dev/zero 2>&- >/dev/shm/full"
    )
    command = f"{fill_it} && exec {sys.executable} -m attnres_lab sweep run {path}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{lab.path}/mlflow.db"}
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(lab.states().values()) == {"finished"}


def _refused(lab: Lab, path: Path) -> None:
    """The command: a user's error is a line and exit code 2."""
    try:
        _exit_with_outcome(lab, path)
    except UserError as error:
        print(error, flush=True)
        os._exit(2)
