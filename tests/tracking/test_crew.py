"""A rebuild by several processes: the store is that of one, whoever is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tracking_helpers import OLD_LOADER, dump, wait_for, write_run, write_sweep

from attnres_lab.tracking import crew, rebuild, tracking_uri
from attnres_lab.tracking.run import RunSync

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)
PROGRAM = """
from pathlib import Path
from attnres_lab.tracking import crew, rebuild
crew.WORTH, crew.cores = 2, lambda: 2
for home in rebuild(Path("{runs}")):
    print(home)
"""


@pytest.fixture
def filled(runs, tmp_path, monkeypatch, empty_store) -> tuple[Path, dict]:
    """A sweep of which a trial is still to run, and single runs; what one process writes of them,
    to a store that is replaced by an empty one.
    """
    write_sweep(runs / "sweeps" / "quick", variants=("baseline", "full", "block8"), done=5)
    for variant in ("mhc", "mudd", "value"):
        write_run(runs / "train" / variant, variant=variant)
    list(rebuild(runs))
    before = dump(tracking_uri())
    assert len(before) == 10
    (tmp_path / "new.db").write_bytes(empty_store.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'new.db'}")
    return runs, before


@pytest.fixture
def sent_here(monkeypatch) -> list[str]:
    """Names of the folders that this process sends itself, and two processes beside it for any
    four runs.
    """
    monkeypatch.setattr(crew, "WORTH", 2)
    monkeypatch.setattr(crew, "cores", lambda: 2)
    names, sync = [], RunSync.sync

    def noted(self: RunSync) -> None:
        names.append(self.files.path.name)
        sync(self)

    monkeypatch.setattr(RunSync, "sync", noted)
    return names


def test_few_runs_are_no_work_for_two() -> None:
    """Nobody is started for them."""
    assert list(crew.send([crew.Errand(Path(f"{n}")) for n in range(2 * crew.WORTH - 1)])) == [
        False
    ] * (2 * crew.WORTH - 1)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(filled, sent_here, capfd) -> None:
    """A folder that cannot be read costs its own run at most, and is named once."""
    runs, before = filled
    write_run(runs / "train" / "full", variant="x0")
    bad = runs / "sweeps" / "quick" / "trials" / "full0" / "environment.json"
    whole = bad.read_text()
    bad.write_text('{"config": 3, "run_name": "full-d32-L8-s0"}')
    assert len(list(rebuild(runs))) == 5
    assert sorted(sent_here) == ["block81", "full0"]  # not begun; not readable
    said = capfd.readouterr().err
    assert said.count("full0 is left out") == 1, said
    assert "Traceback" not in said
    bad.write_text(whole)
    list(rebuild(runs))
    after = dump(tracking_uri())
    assert after.pop("x0-d32-L8-s0")["status"] == "FINISHED"
    assert after == before


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_sent_all_the_same(filled, sent_here, monkeypatch) -> None:
    """One of the two is killed when the first run is sent."""
    runs, before = filled
    map_ = crew.ProcessPoolExecutor.map

    def kill_one(pool, *args):
        for index, sent in enumerate(map_(pool, *args)):
            if index == 0:
                psutil.Process(next(iter(pool._processes))).kill()
            yield sent

    monkeypatch.setattr(crew.ProcessPoolExecutor, "map", kill_one)
    list(rebuild(runs))
    assert dump(tracking_uri()) == before


@pytest.mark.slow
def test_they_end_with_who_started_them(filled, tmp_path) -> None:
    """Nobody is left that writes beside the next rebuild, which gives the whole store."""
    runs, before = filled
    for n in range(30):
        write_run(runs / "train" / f"more{n}", variant=f"v{n}")
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(runs=runs)])
    new = str(tmp_path / "new.db")
    wait_for(lambda: any(new in f.read_text() for f in runs.rglob("tracking.json")))
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 2
    process.kill()
    process.wait()
    assert psutil.wait_procs(family, timeout=30)[1] == []
    list(rebuild(runs))
    after = dump(tracking_uri())
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 30
