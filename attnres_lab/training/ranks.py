"""The processes of a run on several devices: who starts them on which node, and how they meet.

On one node Lightning starts them. On several, a launcher puts ``MASTER_ADDR``, an address of the
first node, into the environment, and either ``SPREAD``, a command that starts a process for each
device of all nodes (srun), or ``NODE_RANK`` and ``MASTER_PORT``; then each node starts its own.
torchrun does all of this by itself, with ``-m attnres_lab.training.run FOLDER``. Imports torch only
to meet, for launchers read the names from here.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from attnres_lab.errors import UserError

if TYPE_CHECKING:
    from attnres_lab.config import TrainConfig

PARENT = "ATTNRES_PARENT"  # the process id of who started this process
SPREAD = "ATTNRES_SPREAD"
TIMEOUT = "ATTNRES_NODE_TIMEOUT"  # seconds that the nodes wait for each other
PATIENCE = 600.0  # where nobody says
GRACE = 20.0  # seconds for the others to end by themselves once one of them has failed
#: What Slurm tells each process of a step, and what torch and Lightning call it.
SLURM = {
    "SLURM_PROCID": "RANK",
    "SLURM_LOCALID": "LOCAL_RANK",
    "SLURM_NODEID": "NODE_RANK",
    "SLURM_NTASKS": "WORLD_SIZE",
}


def start_ranks(train: TrainConfig, folder: Path) -> int:
    """Start the processes that train the run in ``folder``, this node's or all, and wait for
    them; the first exit code that is not 0. SIGTERM and SIGINT are passed on.

    Raises UserError where nobody is to start those of other nodes.
    """
    command = [sys.executable, "-m", "attnres_lab.training.run", str(folder)]
    environment = {**os.environ, PARENT: str(os.getpid())}
    spread = os.environ.get(SPREAD)
    if train.nodes == 1:
        ranks = [subprocess.Popen(command, env=environment)]
    elif spread:
        del environment[PARENT]  # another node's parent has another number
        environment["MASTER_PORT"] = str(free_port())
        ranks = [subprocess.Popen([*shlex.split(spread), *command], env=environment)]
    elif {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} <= set(os.environ):
        ranks = [
            subprocess.Popen(command, env=environment | _place(train, local))
            for local in range(train.devices)
        ]
    else:
        raise _alone(train)
    apart = train.nodes > 1 and spread

    def pass_on(number: int, frame: object) -> None:
        _send(ranks, signal.SIGUSR1 if apart else number)  # srun would kill them all at once

    before = {n: signal.signal(n, pass_on) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        return _wait(ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def check_started(train: TrainConfig) -> None:
    """Raises UserError where torchrun started another number of processes: those that are missing
    would be waited for.
    """
    started = int(os.environ.get("WORLD_SIZE", train.world))
    if "TORCHELASTIC_RUN_ID" in os.environ and started != train.world:
        raise UserError(
            f"train.devices: the run wants {train.nodes} x {train.devices} processes, and torchrun "
            f"started {started}; give --nnodes {train.nodes} --nproc-per-node {train.devices}"
        )


def _alone(train: TrainConfig) -> UserError:
    return UserError(
        f"train.nodes: {train.nodes}, but nothing starts processes on other nodes here; run it in "
        "a sweep with resources.nodes on slurm or ray, or on each node with torchrun -m "
        "attnres_lab.training.run FOLDER"
    )


def _place(train: TrainConfig, local: int) -> dict[str, str]:
    """What process ``local`` of this node is told."""
    rank = int(os.environ["NODE_RANK"]) * train.devices + local
    return {"RANK": str(rank), "LOCAL_RANK": str(local), "WORLD_SIZE": str(train.world)}


def _send(ranks: list[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        process.send_signal(number)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; after a failure the others have some seconds to say how they end."""
    deadline, code = float("inf"), 0
    while any(process.poll() is None for process in ranks):
        code = code or next((p.returncode for p in ranks if p.returncode), 0)
        if code:
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _send(ranks, signal.SIGKILL)
        time.sleep(0.1)
    return code or next((p.returncode for p in ranks if p.returncode), 0)


def free_port() -> int:
    """One that nobody on this node listens to."""
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def take_place() -> None:
    """Take a process that srun started for what Slurm says it is."""
    if SPREAD in os.environ and "LOCAL_RANK" not in os.environ:
        os.environ.update({ours: os.environ[name] for name, ours in SLURM.items()})


def meet(train: TrainConfig, accelerator: str) -> None:
    """Connect this process to those of all nodes, over the network that ``MASTER_ADDR`` is in.
    Raises TimeoutError where not all come, UserError where nobody started any.
    """
    import torch
    from torch import distributed

    if not {"RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise _alone(train)
    address, port, world = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), train.world
    rank, seconds = int(os.environ["RANK"]), float(os.environ.get(TIMEOUT, PATIENCE))
    if network := _network(address):
        # gloo would take whatever the host name stands for
        os.environ.setdefault("GLOO_SOCKET_IFNAME", network)
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            address, port, world, is_master=rank == 0, timeout=timedelta(seconds=seconds)
        )
    except distributed.DistError as error:
        came = re.search(r"(\d+)/\d+ clients", str(error))
        who = f"{came[1]} of {world} processes came to" if came else "there is no first process at"
        raise TimeoutError(
            f"{who} {address}:{port} within {seconds:g} s: a node did not start, or the network "
            "keeps them apart; see its log, and resources.node_timeout"
        ) from error
    store.set_timeout(distributed.constants.default_pg_timeout)
    cuda = accelerator == "cuda"
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        store=store,
        rank=rank,
        world_size=world,
        device_id=torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else None,
    )
    if cuda:
        atexit.register(distributed.destroy_process_group)  # torch complains where nobody does


def _network(address: str) -> str | None:
    """The interface of this node through which ``address`` is reached."""
    family, kind, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as s:
        s.connect(place)  # sends nothing
        own = s.getsockname()[0]
    known = psutil.net_if_addrs().items()
    return next((name for name, addresses in known if own in [a.address for a in addresses]), None)
