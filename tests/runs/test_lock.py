"""One process at a time works in a run folder, whatever it does there, and shows that it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder
from attnres_lab.runs.lock import LOCKED, only_one

HOLD = (
    "import sys\n"
    "from attnres_lab.runs.folder import RunFolder\n"
    "from attnres_lab.runs.lock import only_one\n"
    "with only_one(RunFolder(sys.argv[1])):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def hold(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Another process that holds the folder for a moment."""
    environment = {k: v for k, v in os.environ.items() if k != LOCKED} | variables
    command = [sys.executable, "-c", HOLD, str(folder)]
    return subprocess.run(command, env=environment, input="", capture_output=True, text=True)


def test_who_holds_a_folder_goes_on_and_others_are_refused(tmp_path: Path) -> None:
    """The ranks that it starts have its environment, others do not."""
    with only_one(RunFolder(tmp_path)):
        with only_one(RunFolder(tmp_path)):
            assert "another process works in this folder" in hold(tmp_path).stderr
        assert "another process works in this folder" in hold(tmp_path).stderr
        assert hold(tmp_path, **{LOCKED: os.environ[LOCKED]}).stdout == "held\n"
    assert hold(tmp_path).stdout == "held\n"
    assert not os.environ[LOCKED]


def test_a_held_folder_has_a_heartbeat(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    assert files.last_beat() is None
    with only_one(files):
        pass
    assert files.last_beat()


def test_a_folder_that_another_holds_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another process works"), only_one(RunFolder(tmp_path)):
            pass
        other.stdin.close()  # it ends
        with only_one(RunFolder(tmp_path), patience=60):
            assert other.wait() == 0
