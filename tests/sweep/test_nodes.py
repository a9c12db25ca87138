"""Trials over two nodes of a real Slurm and of a real Ray: the numbers of one node, whatever is
killed, and a line where a node never comes.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from attnres_lab import run
from attnres_lab.config import load, to_yaml
from attnres_lab.runs.files import read_json
from attnres_lab.runs.folder import RunFolder
from tests.sweep.conftest import Lab, study_states
from tests.sweep.services import RAY, SlurmCluster, free_port, wait_for
from tests.sweep.test_crash import check_mlflow

ROOT = Path(__file__).parents[2]
STEPS = 200
PATIENCE = 900  # seconds: on a busy machine a process imports for minutes
TWO = {"train.nodes": 2, "train.devices": 1}
SWEEP: dict[str, Any] = {
    "function": "attnres_lab.training.run:run",
    "resources": {"nodes": 2, "devices": 1},
    "retry": {"backoff": 0.1, "infrastructure": 5},
}


@pytest.fixture
def long(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A base run on the CPU with a row at each step and many checkpoints."""
    train = {"device": "cpu", "batch_size": 4, "log_every": 1, "checkpoint_every": 5}
    base = {
        "model": {"dim": 16, "num_layers": 2, "num_heads": 2},
        "data": {"seq_len": 32, "val_tokens": 512},
        "budget": f"{STEPS} steps",
        "train": train,
    }
    (lab.path / "base.yaml").write_text(yaml.safe_dump(base))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return lab


def start(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "attnres_lab", "sweep", "run", str(path)]
    with open(path.parent / "log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)


def said(lab: Lab) -> str:
    """What the coordinator and the trials printed."""
    logs = [lab.path / "log", *(lab.folder.trial(hash).log for hash in lab.states())]
    return "\n".join(log.read_text() for log in logs if log.exists())


def losses(folder: RunFolder) -> list[tuple[int, float]]:
    """Step and training loss of each row, and the last validation."""
    rows = [(row["step"], row["train/loss"]) for row in folder.rows() if "train/loss" in row]
    return [*rows, (-1, (read_json(folder.result) or {})["val/loss"])]


def check_numbers(lab: Lab) -> None:
    """Each trial is finished, once, with the very losses of two processes on one node that nobody
    disturbed; nothing is left running.
    """
    assert set(lab.states().values()) == {"finished"}, said(lab)
    assert set(study_states(lab)) == {"COMPLETE"}
    for index, hash in enumerate(lab.states()):
        trial = lab.folder.trial(hash)
        config = load(trial.config)
        near = replace(config, train=replace(config.train, nodes=1, devices=2))
        run(near, lab.path / f"near{index}")
        assert losses(trial) == losses(RunFolder(lab.path / f"near{index}"))
    wait_for(lambda: not processes_of(lab), 30)
    check_mlflow(f"sqlite:///{lab.path}/runs/mlflow.db", len(lab.states()), steps=STEPS)


def processes_of(lab: Lab, name: str = "") -> list[psutil.Process]:
    """Those that train in the sweep's folder, on the Slurm node ``name`` or on all."""
    found = psutil.process_iter(["cmdline", "environ"])
    return [
        p
        for p in found
        if str(lab.folder.trials) in " ".join(p.info["cmdline"] or [])
        and (not name or (p.info["environ"] or {}).get("SLURMD_NODENAME") == name)
    ]


def checkpointed(lab: Lab) -> bool:
    return any(lab.folder.trial(hash).checkpoint.exists() for hash in lab.states())


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm") / "cluster")
    yield cluster
    cluster.stop()


@pytest.mark.cluster
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "pipeline"])
def test_slurm_trains_over_two_nodes_as_over_one(
    long: Lab, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    space = {"train.strategy": [strategy]}
    path = long.sweep(space=space, overrides=TWO, launcher={"name": "slurm"}, **SWEEP)
    coordinator, seen = start(path), set()
    while coordinator.poll() is None:
        seen |= {
            (p.info["environ"]["SLURMD_NODENAME"], p.info["environ"].get("SLURM_PROCID"))
            for name in ("n1", "n2")
            for p in processes_of(long, name)
            if "attnres_lab.training.run" in p.info["cmdline"]
        }
        time.sleep(1)
    assert coordinator.returncode == 0, said(long)
    assert seen == {("n1", "0"), ("n2", "1")}
    check_numbers(long)


@pytest.mark.cluster
@pytest.mark.parametrize(("strategy", "victim"), [("ddp", "n2"), ("pipeline", "n1")])
def test_a_killed_slurm_node_costs_an_attempt(
    long: Lab, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch, strategy: str, victim: str
) -> None:
    """With all that it runs, as a machine that dies; the first node is where the trial's folder is
    held.
    """
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    path = long.sweep(
        space={"train.strategy": [strategy]}, overrides=TWO, launcher={"name": "slurm"}, **SWEEP
    )
    coordinator = start(path)
    wait_for(lambda: checkpointed(long), PATIENCE)
    slurm.kill_node(victim)
    (hash,) = long.states()
    wait_for(lambda: long.folder.trial(hash).status().state != "running", PATIENCE)
    time.sleep(1)
    slurm.start_node(victim)
    assert coordinator.wait(PATIENCE) == 0, said(long)
    # killed: the step's daemon lived long enough to report it; both are tried again alike
    log = (long.path / "log").read_text()
    assert log.count("(infrastructure)") + log.count("(killed)") == 1, said(long)
    check_numbers(long)


@pytest.mark.cluster
def test_a_stop_reaches_processes_on_both_slurm_nodes(
    long: Lab, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Slurm's own notice before a time limit does: to the first process, which passes it on
    through srun. A checkpoint at that very step, and it goes on from there.
    """
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    settings = {**SWEEP, "overrides": TWO | {"train.checkpoint_every": 0}}
    path = long.sweep(space={"seed": [0]}, launcher={"name": "slurm"}, **settings)
    coordinator = start(path)
    wait_for(
        lambda: any(long.folder.trial(hash).metrics.exists() for hash in long.states()), PATIENCE
    )
    slurm.call(
        "scancel", "--batch", "--signal=TERM", *slurm.call("squeue", "-h", "-o", "%A").split()
    )
    assert coordinator.wait(PATIENCE) == 0, said(long)
    assert "stopped" in (long.path / "log").read_text()
    check_numbers(long)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without devices, and two nodes of one device and one core."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no ray: pip install attnres-lab[ray]")
    for name, value in RAY.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False},
    )
    cluster.workers = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def kill(cluster: Any, node: Any) -> None:
    """A Ray node with all that it runs, as a machine that dies."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.cluster
@pytest.mark.parametrize("strategy", ["ddp", "pipeline"])
def test_ray_trains_over_two_nodes_and_a_killed_one_costs_an_attempt(
    long: Lab, ray: Any, strategy: str
) -> None:
    launcher = {"name": "ray", "address": ray.address}
    path = long.sweep(
        space={"train.strategy": [strategy]}, overrides=TWO, launcher=launcher, **SWEEP
    )
    coordinator = start(path)
    wait_for(lambda: checkpointed(long), PATIENCE)
    kill(ray, ray.workers[1])
    ray.add_node(num_cpus=1, num_gpus=1)
    assert coordinator.wait(PATIENCE) == 0, said(long)
    assert (long.path / "log").read_text().count("(infrastructure)") == 1, said(long)
    check_numbers(long)


@pytest.fixture
def networks() -> Iterator[list[str]]:
    """Two hosts on a wire, 10.213.7.1 and .2, each a network namespace; what this host's name
    stands for leads from neither to the other.
    """
    names = [f"attnres-{os.getpid()}-{i}" for i in range(2)]
    if os.getuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in names:
            ip("netns", "add", name)
        ends = [f"wire{i}" for i in range(2)]
        peer = ["type", "veth", "peer", "name", ends[1], "netns", names[1]]
        ip("link", "add", ends[0], "netns", names[0], *peer)
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.213.7.{i + 1}/24", "dev", ends[i])
            for end in ("lo", ends[i]):
                ip("-n", name, "link", "set", end, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.mark.infra
def test_processes_meet_over_the_clusters_own_network(long: Lab, networks: list[str]) -> None:
    folder = far(long)
    meeting = {"MASTER_ADDR": "10.213.7.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-m", "attnres_lab.sweep.process", str(folder.path)]
    nodes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *words, "attnres_lab.training.run:run"],
            env={**os.environ, **meeting, "NODE_RANK": str(rank), "ATTNRES_NODE_TIMEOUT": "120"},
        )
        for rank, name in enumerate(networks)
    ]
    check_near(folder, nodes)


@pytest.mark.slow
def test_torchrun_trains_over_two_nodes_as_over_one(long: Lab) -> None:
    """As the guide has it, for runs without a sweep."""
    folder = far(long)
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    words += ["-m", "attnres_lab.training.run", str(folder.path)]
    check_near(folder, [subprocess.Popen(words) for _ in range(2)])


def far(lab: Lab) -> RunFolder:
    """The folder of a run over two nodes that nobody has started."""
    folder = RunFolder(lab.path / "far")
    folder.path.mkdir()
    folder.config.write_text(to_yaml(load(lab.path / "base.yaml", TWO | {"budget": "20 steps"})))
    return folder


def check_near(folder: RunFolder, nodes: list[subprocess.Popen[bytes]]) -> None:
    """All end well, with the very losses of two processes on one node."""
    assert [node.wait(PATIENCE) for node in nodes] == [0, 0]
    config, near = load(folder.config), folder.path.with_name("near")
    run(replace(config, train=replace(config.train, nodes=1, devices=2)), near)
    assert losses(folder) == losses(RunFolder(near))


@pytest.mark.cluster
def test_a_ray_node_that_never_comes_is_a_line(long: Lab, ray: Any) -> None:
    """Two nodes of two devices, where each has one."""
    wide = {
        "overrides": {"train.nodes": 2, "train.devices": 2},
        "resources": {"nodes": 2, "devices": 2, "node_timeout": 3},
        "retry": {"infrastructure": 0},
    }
    launcher = {"name": "ray", "address": ray.address}
    path = long.sweep(space={"seed": [0]}, launcher=launcher, **SWEEP | wide)
    assert start(path).wait(PATIENCE) == 1
    (hash,) = long.states()
    status = long.folder.trial(hash).status()
    assert (status.state, status.failure) == ("failed", "infrastructure")
    assert status.message.startswith("its nodes never came: the cluster has fewer with these")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "message"),
    [("0", "1 of 2 processes came to 127.0.0.1:"), ("1", "there is no first process at 127.0.0.1")],
)
def test_a_node_that_never_comes_is_a_line(
    long: Lab, rank: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": rank}
    for name, value in {**meeting, "ATTNRES_NODE_TIMEOUT": "3"}.items():
        monkeypatch.setenv(name, value)
    folder = RunFolder(long.path / "run")
    config = load(long.path / "base.yaml", TWO)
    with pytest.raises(Exception, match=message) as error:
        run(config, folder.path)
    assert "\n" not in str(error.value)
    assert "within 3 s: a node did not start" in str(error.value)
    assert folder.status().failure == "infrastructure"
