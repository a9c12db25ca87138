"""``run(config, folder)``: one training run, from wherever its folder stands to its result.
Composes, decides nothing.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.distributed import is_torchelastic_launched

from attnres_lab.config import RunConfig, content_hash, load, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.runs.failures import REMEDY, describe, of_exit, peer_gone
from attnres_lab.runs.folder import (
    DONE,
    RunFolder,
    Status,
    read_json,
    write_json,
)
from attnres_lab.runs.lock import mendable, only_one
from attnres_lab.training.callbacks import (
    DepthRecords,
    End,
    Rows,
    RunLog,
    final_numbers,
)
from attnres_lab.training.checkpoint import load_checkpoint, start_from
from attnres_lab.training.environment import write_environment
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.pipeline import LitPipeline
from attnres_lab.training.plugged import callbacks as named_callbacks
from attnres_lab.training.plugged import check_plugged, given
from attnres_lab.training.plugged import loggers as named_loggers
from attnres_lab.training.progress import Progress
from attnres_lab.training.ranks import PARENT, check_started, meet, start_ranks, take_place
from attnres_lab.training.task import make_task
from attnres_lab.training.trainer import accelerator, make_trainer, quiet
from attnres_lab.training.validation import Validation


@dataclass(frozen=True)
class RunResult:
    """How a run ended, and its final numbers (the keys of ``result.json``; empty unless it
    finished).
    """

    status: Status
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Extra:
    """What a caller adds to a run."""

    progress: bool = False
    callbacks: Sequence[pl.Callback] = ()
    logger: Any = None


def run(
    config: RunConfig,
    folder: Path | str,
    *,
    progress: bool = False,
    callbacks: Sequence[pl.Callback] = (),
    logger: Any = None,
) -> RunResult:
    """Train ``config`` in ``folder``: resume what was interrupted, return at once what is done.

    ``progress`` shows a bar. ``callbacks`` and ``logger`` (one, or a list) are Lightning's, for
    runs on one device; they see every validation, as do those that the config names.

    Raises UserError for bad data, a folder of another config, a corrupt checkpoint, a full disk, a
    callback that does not import, ranks that are missing, or a folder that another process trains
    in or that holds a converted model.
    """
    files = RunFolder(folder)
    check_plugged([config])
    check_started(config.train)
    with mendable(files.path):
        files.path.mkdir(parents=True, exist_ok=True)
        with only_one(files, shared="LOCAL_RANK" in os.environ):
            accelerator(config.train)  # before any rank starts
            if config.train.world > 1 and "attnres_lab.training.run" not in str(
                getattr(sys.modules["__main__"], "__spec__", None)
            ):
                return _run_ranks(config, files)
            return _run(config, files, Extra(progress, callbacks, logger))


def _run(config: RunConfig, files: RunFolder, extra: Extra) -> RunResult:
    _claim(config, files)
    status = files.status()
    result = read_json(files.result)
    if status.message == Status.CONVERTED:
        raise UserError(
            f"{files.path}: holds a converted model, which is not trained in place; train in "
            f"another folder, from a config with init_from: {files.path}"
        )
    # a finished run whose result is gone makes it again from its rows and its checkpoint
    if status.state in DONE and (result or status.state != "finished"):
        return RunResult(status, result or {})
    try:
        return _train(config, files, extra)
    except BaseException as error:
        failure, message = describe(error)
        if failure == "killed" and config.train.nodes > 1:
            failure, message = "infrastructure", "another node, or a process on it, is gone"
        with suppress(OSError):  # the disk may be what failed
            status = files.status()
            # who lost a peer does not know why; the peer may have said it
            if status.state != "failed" or not peer_gone(error):
                files.set_status("failed", failure=failure, message=message, step=status.step)
        if failure == "out_of_memory":
            raise UserError(f"{files.path}: out of memory; {REMEDY}") from error
        raise


def _train(config: RunConfig, files: RunFolder, extra: Extra) -> RunResult:
    torch.set_num_threads(config.train.threads)
    if config.train.nodes > 1 and not is_torchelastic_launched():  # torchrun has a store of its own
        meet(config.train, accelerator(config.train))
    data = make_task(config).data(progress=extra.progress)
    dataset = data.dataset
    log = RunLog(files, config)
    ours: list[pl.Callback] = [Rows(log), DepthRecords(log), Validation(log)]
    bar = [Progress(config)] if extra.progress else []
    added = [*named_callbacks(config), *extra.callbacks]
    loggers = [*named_loggers(config, files.path / "loggers"), *given(extra.logger)]
    # a checkpoint holds the state of those before ``End``, which writes it
    trainer = make_trainer(config, files, [*ours, *bar, *added, End(log)], loggers)
    module = (LitPipeline if config.train.strategy == "pipeline" else LitTransformer)(config)
    resume = _resume_point(config, log)
    if resume is None:
        start_from(config, module.model)
    if trainer.is_global_zero:
        write_environment(files, config, dataset, trainer.strategy.root_device)
        files.set_status("running", step=module.step)
    with quiet():
        trainer.fit(module, data, ckpt_path=resume, weights_only=True if resume else None)
        if log.state == "running" and log.validated != module.step:
            data.val_stride = 1
            trainer.validate(module, data, verbose=False)  # its row was lost
    return _conclude(log, module, trainer.is_global_zero)


def _resume_point(config: RunConfig, log: RunLog) -> str | None:
    """The checkpoint to go on from, if there is one, with the folder's rows cut to it and read:
    the final numbers come from the folder, whichever process wrote them.
    """
    files, step = log.folder, -1
    if files.checkpoint.exists():
        step = load_checkpoint(files.checkpoint, content_hash(config))["run"]["step"]
    files.truncate_metrics(step)
    for row in files.rows():
        log.add(row)
    if step > log.last.get("step", 0) + config.train.log_every:
        at = log.last.get("step", 0)
        print(f"{files.metrics}: rows from step {at} to {step} are lost", file=sys.stderr)
    return None if step < 0 else str(files.checkpoint)


def _conclude(log: RunLog, module: LitTransformer, writes: bool) -> RunResult:
    state = "finished" if log.state == "running" else log.state
    result = final_numbers(log, module)
    if (old := read_json(log.folder.result)) and old.get("step") == module.step:
        result |= old  # what was written once stands
    if writes:
        log.folder.still_there()
        if state in DONE:
            write_json(log.folder.result, result)
        message = "the loss is not finite" if state == "diverged" else ""
        log.folder.set_status(state, message=message, step=module.step)
    return RunResult(log.folder.status(), result)


def _claim(config: RunConfig, files: RunFolder) -> None:
    """Write the resolved config, or check that the folder is this config's."""
    if files.config.exists():
        found = content_hash(load(files.config))
        if found != content_hash(config):
            raise UserError(
                f"{files.path}: holds a run of another config ({found}, not "
                f"{content_hash(config)}); choose another name or delete it"
            )
    else:
        files.write_config(to_yaml(config))


def _run_ranks(config: RunConfig, files: RunFolder) -> RunResult:
    """Several devices: processes of their own, each of which is this run and nothing else; on one
    node Lightning starts them by repeating the command line.
    """
    _claim(config, files)
    code = start_ranks(config.train, files.path)
    status = files.status()
    state, failure, _ = of_exit(status, None, "", asked=False)
    if code and state != status.state:
        failure = "infrastructure" if config.train.nodes > 1 else failure
        message = f"a rank ended with code {code}"
        files.set_status(state, failure=failure, message=message, step=status.step)
    if files.status().state == "failed":
        raise UserError(f"{files.path}: {files.status().message}")
    return RunResult(files.status(), read_json(files.result) or {})


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: a rank left alone would train on in
    a folder that nobody holds. Linux only.

    A parent that died while this process was still importing has sent no signal: then end at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            sys.exit("the process that started this rank is gone")
        os.environ[PARENT] = str(os.getpid())  # for the ranks that Lightning starts from here


def _rank() -> None:
    """One rank, by itself: a user's error is the line that the others end with, too; who lost a
    peer has no more to tell than that.
    """
    _end_with_parent()
    take_place()
    folder = Path(sys.argv[1])
    try:
        run(load(RunFolder(folder).config), folder, progress=sys.stderr.isatty())
    except Exception as error:
        if not isinstance(error, UserError) and not peer_gone(error):
            raise
        sys.exit(f"rank {os.environ.get('LOCAL_RANK', 0)}: {describe(error)[1]}")


if __name__ == "__main__":
    _rank()
