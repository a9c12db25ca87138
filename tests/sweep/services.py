"""Real services for tests, started from what the machine has: a Slurm of two nodes with fake GPUs,
and PostgreSQL; and how tests authenticate with their Ray clusters.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

#: Environment of Ray's clusters. One token for all of a test process, for Ray reads it once; its
#: workers, niced otherwise, get on beside other work.
RAY = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_worker_niceness": "0",
}


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.time() + seconds
    while not what():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class SlurmCluster:
    """slurmctld and two slurmd on this host, with a munge of their own; with accounting, also a
    slurmdbd and its MariaDB.
    """

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        extra = ("slurmdbd", "mariadbd", "mariadb-install-db") if accounting else ()
        missing = [
            name
            for name in ("slurmctld", "slurmd", "munged", "sbatch", *extra)
            if not shutil.which(name)
        ]
        if missing:
            pytest.skip(
                f"no {missing[0]}: install Debian's slurm-wlm and "
                f"munge{', slurmdbd and mariadb-server' if accounting else ''}"
            )
        self.folder = folder
        for name in ("state", "munge", "log"):
            (folder / name).mkdir(parents=True)
        (folder / "munge").chmod(0o711)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.conf = folder / "slurm.conf"
        self.accounting = free_port() if accounting else None
        self.conf.write_text(self._conf())
        devices = [folder / f"gpu{i}" for i in range(4)]
        for device in devices:
            device.symlink_to("/dev/null")
        (folder / "gres.conf").write_text(
            f"NodeName=n1 Name=gpu File={folder}/gpu[0-1]\nNodeName=n2 Name=gpu "
            f"File={folder}/gpu[2-3]\nNodeName=n[1-2] Name=shard Count=4\n"
        )
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        munge = [
            f"--{k}={folder / 'munge' / v}"
            for k, v in {
                "socket": "sock",
                "key-file": "key",
                "pid-file": "pid",
                "log-file": "log",
            }.items()
        ]
        self._start("munged", "--force", *munge, f"--seed-file={folder / 'munge' / 'seed'}")
        if accounting:
            self._start_accounting()
        self._start("slurmctld", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_for(lambda: self.call("sinfo", "-h", "-o", "%T %D").startswith("idle 2"))

    def _conf(self) -> str:
        host, user, d = socket.gethostname().split(".")[0], getpass.getuser(), self.folder
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": free_port(),
            "SlurmUser": user,
            "SlurmdUser": user,
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={d}/munge/sock",
            "CredType": "cred/munge",
            "StateSaveLocation": f"{d}/state",
            "SlurmdSpoolDir": f"{d}/spool_%n",
            "SlurmctldPidFile": f"{d}/slurmctld.pid",
            "SlurmdPidFile": f"{d}/slurmd_%n.pid",
            "SlurmctldLogFile": f"{d}/log/slurmctld",
            "SlurmdLogFile": f"{d}/log/slurmd_%n",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "SlurmdTimeout": 10,
            "SchedulerParameters": "sched_interval=1,bf_interval=1",
            "KillWait": 5,
            "MaxArraySize": 4,
            "MpiDefault": "none",
            "GresTypes": "gpu,shard",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "CANCEL",
            "SlurmctldParameters": "preempt_send_user_signal",
        }
        if self.accounting:
            settings |= {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": self.accounting,
                "AccountingStoragePass": f"{d}/munge/sock",
                "MinJobAge": 2,  # squeue forgets at once, so that only sacct knows
            }
        lines = [f"{key}={value}" for key, value in settings.items()]
        node = (
            f"NodeName={{}} NodeHostname={host} NodeAddr=127.0.0.1 Port={{}} CPUs=4 "
            "RealMemory=1000 Gres=gpu:2,shard:4 State=UNKNOWN"
        )
        lines += [node.format(name, free_port()) for name in ("n1", "n2")]
        lines += [
            "PartitionName=debug Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1"
        ]
        lines += [
            "PartitionName=polite Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20"
        ]
        return "\n".join(
            [
                *lines,
                "PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=9 "
                "PreemptMode=OFF",
                "",
            ]
        )

    def _start_accounting(self) -> None:
        d, port, user = self.folder, free_port(), getpass.getuser()
        self._start(
            "mariadb-install-db",
            f"--datadir={d}/mysql",
            f"--user={user}",
            "--auth-root-authentication-method=normal",
        )
        with open(d / "log" / "mariadb", "ab") as log:
            command = [
                "mariadbd",
                "--no-defaults",
                f"--datadir={d}/mysql",
                f"--user={user}",
                f"--port={port}",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
            ]
            self.mariadb = subprocess.Popen(
                [*command, f"--socket={d}/mysql.sock"], stdout=log, stderr=log
            )
        wait_for(lambda: (d / "mysql.sock").exists())
        sql = (
            "CREATE DATABASE slurm; CREATE USER slurm@'127.0.0.1'; GRANT ALL ON slurm.* TO "
            "slurm@'127.0.0.1'"
        )
        self._start("mariadb", f"--socket={d}/mysql.sock", "-u", "root", "-e", sql)
        settings = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={d}/munge/sock",
            "DbdHost": socket.gethostname().split(".")[0],
            "DbdAddr": "127.0.0.1",
            "DbdPort": self.accounting,
            "SlurmUser": user,
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": port,
            "StorageUser": "slurm",
            "StorageLoc": "slurm",
            "PidFile": f"{d}/slurmdbd.pid",
            "LogFile": f"{d}/log/slurmdbd",
        }
        (d / "slurmdbd.conf").write_text(
            "".join(f"{key}={value}\n" for key, value in settings.items())
        )
        (d / "slurmdbd.conf").chmod(0o600)
        self._start("slurmdbd")
        wait_for(
            lambda: (
                "test"
                in self.call("sacctmgr", "-i", "add", "cluster", "test")
                + self.call("sacctmgr", "-n", "list", "cluster")
            )
        )

    def _start(self, *command: str) -> None:
        # daemons that keep a pipe open would hang the test
        with open(self.folder / "log" / "start", "ab") as log:
            subprocess.run(command, env=self.environment, stdout=log, stderr=log, check=True)

    def start_node(self, name: str) -> None:
        self._start("slurmd", "-N", name)

    def kill_daemon(self, name: str) -> None:
        """kill -9 of a slurmd alone: what it runs goes on."""
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] == ["slurmd", "-N", name] and self._ours(process):
                process.kill()

    def kill_node(self, name: str) -> None:
        """kill -9 of a slurmd and of all that it runs, as a machine that dies."""
        spool = str(self.folder / f"spool_{name}")
        steps = [
            p
            for p in psutil.process_iter(["cmdline", "environ"])
            if (p.info["environ"] or {}).get("SLURMD_NODENAME") == name and self._ours(p)
        ]
        steps += [
            p
            for p in psutil.process_iter(["cmdline"])
            if spool in " ".join(p.info["cmdline"] or [])
        ]
        self.kill_daemon(name)
        for process in steps:
            if process.is_running():
                process.kill()

    def _ours(self, process: psutil.Process) -> bool:
        return str(self.folder) in process.environ().get("SLURM_CONF", "")

    def call(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        ).stdout

    def stop(self) -> None:
        self.call("scancel", "--me")
        for node in ("n1", "n2"):
            self.kill_node(node)
        for path in [self.folder / "munge" / "pid", *self.folder.glob("*.pid")]:
            try:
                psutil.Process(int(path.read_text())).terminate()
            except (psutil.NoSuchProcess, FileNotFoundError, ValueError):
                continue
        if self.accounting:
            self.mariadb.terminate()
            self.mariadb.wait()


class Postgres:
    """A PostgreSQL server of its own on a free port of the loopback address."""

    def __init__(self) -> None:
        candidates = [
            Path(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        ]
        home = next((p for p in candidates if (p / "initdb").exists()), None)
        if home is None:
            pytest.skip("no PostgreSQL server: install Debian's postgresql")
        pytest.importorskip("psycopg2", reason="no psycopg2: pip install attnres-lab[postgres]")
        # pytest's own folders are closed to the server's user
        folder = Path(tempfile.mkdtemp(prefix="attnres-postgres-"))
        self.home, self.folder, self.port = home, folder, free_port()
        # the server refuses to run as root
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        if self.as_user:
            shutil.chown(folder, "postgres")
        self._call("initdb", "-D", f"{folder}/data", "-A", "trust", "-U", "lab")
        self.start()
        self.url = f"postgresql://lab@127.0.0.1:{self.port}/postgres"

    def _call(self, tool: str, *arguments: str) -> None:
        command = [*self.as_user, str(self.home / tool), *arguments]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        )
        self._call(
            "pg_ctl",
            "-D",
            f"{self.folder}/data",
            "-w",
            "-l",
            f"{self.folder}/log",
            "-o",
            options,
            "start",
        )

    def stop(self) -> None:
        self._call("pg_ctl", "-D", f"{self.folder}/data", "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)
