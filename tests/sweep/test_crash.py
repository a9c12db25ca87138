"""Whatever is killed, and whenever: every trial is finished exactly once, from where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import psutil
import pytest
from filelock import FileLock

from attnres_lab.config import load, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import write_atomic
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.process import execute
from attnres_lab.sweep.spec import load_spec
from tests.sweep.conftest import Lab, in_process, study_states
from tests.sweep.synthetic import expected

CHAIN = {"function": "tests.sweep.synthetic:chain"}


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.time() + seconds
    while not what():
        assert time.time() < deadline
        time.sleep(0.02)


def check_exact(lab: Lab) -> None:
    """Each trial finished once, alone, with the value of one that nobody ever interrupted; nothing
    is left running.
    """
    events = lab.witness()
    assert not [e for e in events if e[0] == "overlap"]
    assert sorted(e[1] for e in events if e[0] == "finish") == sorted(lab.states())
    assert set(lab.states().values()) == {"finished"}
    assert set(study_states(lab)) == {"COMPLETE"}
    for hash in lab.states():
        run = lab.folder.trial(hash)
        assert json.loads(run.result.read_text())["value"] == expected(load(run.config))
        assert [row["step"] for row in run.rows()] == list(range(1, 11))
    wait_for(lambda: not trial_pids(lab), 10)


def check_mlflow(uri: str, trials: int, steps: int = 10) -> None:
    """One parent, one run for each trial, all of them finished, and no point of a curve twice."""
    import mlflow

    warnings.simplefilter("ignore")  # MLflow's own; pytest sets the filters anew for each test
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("attnres").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * (trials + 1)
    children = [run for run in runs if "trial" in run.data.tags]
    assert len({run.data.tags["trial"] for run in children}) == trials
    for run in children:
        found = [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")]
        assert sorted(found) == sorted(set(found))
        assert max(found) == steps


def trial_pids(lab: Lab) -> list[int]:
    return [int(e[3]) for e in lab.witness() if e[0] == "start" and psutil.pid_exists(int(e[3]))]


def test_a_killed_trial_goes_on_from_its_checkpoint(lab: Lab) -> None:
    coordinator = in_process(lab.run, lab.sweep(**CHAIN))
    wait_for(lambda: trial_pids(lab))
    time.sleep(0.1)
    os.kill(trial_pids(lab)[0], signal.SIGKILL)
    coordinator.join()
    assert coordinator.exitcode == 0
    check_exact(lab)
    assert max(int(e[2]) for e in lab.witness() if e[0] == "start") > 0


def test_after_the_kill_of_a_coordinator_its_trials_end_and_the_next_one_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "2")  # twenty seconds, would nobody end them
    path = lab.sweep(**CHAIN)
    coordinator = in_process(lab.run, path)
    wait_for(lambda: len(trial_pids(lab)) == 2)
    children = trial_pids(lab)
    coordinator.kill()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in children), 5)
    wait_for(lambda: lab.folder.holder() is None, 5)
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_second_coordinator_is_refused_with_the_name_of_the_first(lab: Lab) -> None:
    path = lab.sweep(**CHAIN)
    coordinator = in_process(lab.run, path)
    wait_for(lambda: trial_pids(lab))
    with pytest.raises(UserError, match=f"held by process {coordinator.pid} on "):
        lab.run(path)
    coordinator.join()
    check_exact(lab)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_gracefully_and_the_sweep_goes_on_later(
    lab: Lab, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    path = lab.sweep(**CHAIN, space={"seed": [0, 1, 2]})
    coordinator = in_process(_exit_with_outcome, lab, path)
    wait_for(lambda: len(trial_pids(lab)) == 2)
    time.sleep(0.05)
    os.kill(coordinator.pid, number)
    coordinator.join()
    assert coordinator.exitcode == 130
    assert not trial_pids(lab)
    states = sorted(lab.states().values())
    assert "running" not in states
    assert "stopped" in states
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_second_ctrl_c_ends_trials_that_do_not_listen_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "60")
    path = lab.sweep(**CHAIN)
    coordinator = in_process(_exit_with_outcome, lab, path)
    wait_for(lambda: len(trial_pids(lab)) == 2)
    for _ in range(2):
        os.kill(coordinator.pid, signal.SIGINT)
        time.sleep(0.4)
    coordinator.join(10)
    assert coordinator.exitcode == 130
    assert not trial_pids(lab)
    assert sorted(lab.states().values()) == ["scheduled", "scheduled", "stopped", "stopped"]
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.01")
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_lock_that_a_dead_machine_left_is_taken_over(lab: Lab) -> None:
    """Of another host and with a process id that lives here: only the kernel's lock counts."""
    path = lab.sweep(**CHAIN)
    lab.folder.path.mkdir(parents=True)
    (lab.folder.path / "coordinator.lock").touch()
    (lab.folder.path / "coordinator.json").write_text(
        json.dumps({"pid": os.getpid(), "host": "elsewhere", "started": 0})
    )
    Path(f"{lab.folder.journal}.lock").symlink_to("elsewhere")  # Optuna's own
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_sweep_stop_from_another_terminal_stops_gracefully(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.05")
    path = lab.sweep(**CHAIN)
    coordinator = in_process(_exit_with_outcome, lab, path)
    wait_for(lambda: trial_pids(lab))
    lab.folder.stop.touch()
    coordinator.join()
    assert coordinator.exitcode == 130
    assert lab.run(path).exit_code == 0
    check_exact(lab)


def test_a_trial_that_another_process_still_runs_is_not_run_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed before, is held by somebody else now, and so fails for another reason; set free, it
    runs.
    """
    monkeypatch.setattr("attnres_lab.sweep.process.PATIENCE", 0.1)
    path = lab.sweep(**CHAIN, space={"seed": [0]}, retry={"infrastructure": 0})
    lab.run(path)
    run = lab.folder.trial(lab.folder.plan()[0].hash)
    run.set_status("failed", failure="bug", message="an old failure")
    with FileLock(run.path / "lock"):
        assert lab.run(path).exit_code == 1
    status = run.status()
    assert (status.failure, status.message) == (
        "infrastructure",
        "another process still holds the trial's folder",
    )
    assert len([e for e in lab.witness() if e[0] == "start"]) == 1
    assert lab.run(path).exit_code == 0


def test_a_trial_that_a_lost_process_finishes_meanwhile_is_not_run_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that its cluster gave up, and that lives: the new attempt waits for the folder,
    then finds the result.
    """
    monkeypatch.setenv("SYNTHETIC_SECONDS", "0.1")
    path = lab.sweep(**CHAIN, space={"seed": [0]})
    (trial,) = Plan(load_spec(path)).known()
    run = lab.folder.trial(trial.entry.hash)
    run.path.mkdir(parents=True)
    write_atomic(run.config, to_yaml(trial.config).encode())
    lost = in_process(execute, run.path, CHAIN["function"])
    wait_for(lambda: lab.witness())
    assert lab.run(path).exit_code == 0
    lost.join()
    check_exact(lab)
    assert len(lab.witness()) == 2


def _exit_with_outcome(lab: Lab, path: Path) -> None:
    os._exit(lab.run(path).exit_code)


@pytest.mark.slow
def test_twenty_random_kills_of_trials_and_coordinators(lab: Lab) -> None:
    """The real command with its fork server; each time a trial, the coordinator, or both at once
    are killed at a random moment.

    At the end the folders, the study and MLflow agree that everything is finished, once.
    """
    random = Random(7)
    path = lab.sweep(
        **CHAIN, space={"seed": list(range(6))}, retry={"backoff": 0.05, "infrastructure": 20}
    )
    environment = {**os.environ, "SYNTHETIC_SECONDS": "0.5", "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
    kills = 0
    while kills < 20:
        with open(lab.path / "log", "ab") as log:
            coordinator = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        before = len(lab.witness())
        while coordinator.poll() is None and len(lab.witness()) == before:
            time.sleep(0.05)
        time.sleep(random.uniform(0, 1.5))
        victim = random.choice(["trial", "trial", "coordinator", "both"])
        for pid in trial_pids(lab)[: random.randint(1, 2)] if victim != "coordinator" else []:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        if victim != "trial":
            coordinator.kill()
            kills += 1
        elif coordinator.poll() is None:
            time.sleep(random.uniform(0, 1))
            coordinator.kill()
            kills += 1
        coordinator.wait()
        if set(lab.states().values()) == {"finished"}:
            break
    final = subprocess.run(
        command,
        env={**environment, "SYNTHETIC_SECONDS": "0.02"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert final.returncode == 0, final.stdout + final.stderr
    assert kills >= 20
    check_exact(lab)
    check_mlflow(f"sqlite:///{lab.path}/runs/mlflow.db", trials=6)


def test_a_full_disk_ends_the_sweep_with_a_clear_message_and_loses_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator cannot write; trials in progress are ended, and the next run goes on."""
    path = lab.sweep(**CHAIN, space={"seed": [0, 1, 2, 3]})
    write, calls = os.fsync, []

    def full(fd: int) -> None:
        calls.append(fd)
        if len(calls) > 12 and os.getpid() == mine:
            raise OSError(28, "No space left on device")
        write(fd)

    mine = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError,
            match="No space left on device; what was written before is intact",
        ):
            lab.run(path)
    wait_for(lambda: not trial_pids(lab), 5)
    assert lab.run(path).exit_code == 0
    check_exact(lab)


@pytest.mark.slow
def test_real_training_killed_in_a_sweep_ends_with_the_same_bits(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.delenv("ATTNRES_CACHE", raising=False)
    base = {
        "model": {"dim": 32, "num_layers": 4, "num_heads": 2},
        "budget": "60 steps",
        "data": {"seq_len": 64, "val_tokens": 1024},
    }
    base["train"] = {"batch_size": 4, "log_every": 5, "checkpoint_every": 5}
    (lab.path / "base.yaml").write_text(json.dumps(base))
    function = {"function": "attnres_lab.training.run:run", "space": {"seed": [0, 1]}}
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(lab.sweep(**function))]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{lab.path}/mlflow.db"}
    coordinator = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: sum(lab.folder.trial(h).checkpoint.exists() for h in lab.states()) == 2, 240)
    coordinator.kill()
    coordinator.wait()
    assert (
        subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL).returncode
        == 0
    )
    clean = Lab(lab.path / "clean")
    (clean.path / "base.yaml").write_text(json.dumps(base))
    assert clean.run(clean.sweep(**function, name="s")).exit_code == 0
    assert set(clean.states()) == set(lab.states())
    for hash in lab.states():
        states = [
            torch.load(x.folder.trial(hash).checkpoint, weights_only=True)["state_dict"]
            for x in (lab, clean)
        ]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
