"""``evaluate(folder, settings)``: a finished run's scores, made once and written beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attnres_lab.config import RunConfig
from attnres_lab.data import prepare
from attnres_lab.data.codec import load_codec
from attnres_lab.errors import UserError
from attnres_lab.evaluation import nano, record
from attnres_lab.evaluation.paper import PAPER
from attnres_lab.evaluation.record import Answers
from attnres_lab.evaluation.scorer import Scorer
from attnres_lab.runs.folder import RunFolder, Status, read_json
from attnres_lab.runs.lock import only_one
from attnres_lab.training.checkpoint import load_model


@dataclass(frozen=True)
class Settings:
    """``tasks`` are ``nano``, ``paper`` and lm_eval's names. What a score depends on stands first,
    and is written beside it.
    """

    tasks: tuple[str, ...]
    limit: int | None = None  # questions of each task, the first ones; None: all
    shots: int | None = None  # None: what the task says
    chat: bool = False  # prompts as messages, by the tokenizer's chat template
    max_length: int | None = None  # tokens; None: the run's data.seq_len
    data: str | None = None  # a folder with copies of the hub's data sets
    batch_size: int = 16
    allow_code: bool = False  # run programs that the model wrote

    @classmethod
    def asked(cls, request: Mapping[str, Any]) -> Settings:
        """As a sweep asks for them in the folder of a trial."""
        return cls(**{**request, "tasks": tuple(request["tasks"])})

    @property
    def wanted(self) -> dict[str, dict[str, Any]]:
        """By task what its score depends on; ``paper`` as its ten tasks with their shots."""
        shared = {key: asdict(self)[key] for key in ("limit", "shots", "chat", "max_length")}
        found = {}
        for task in self.tasks:
            if task != "paper":
                found[task] = shared
                continue
            for suite in PAPER:
                shots = suite.shots if self.shots is None else self.shots
                found[suite.task] = shared | {"shots": shots}
        return found


def evaluate(folder: Path, settings: Settings, *, again: bool = False) -> dict[str, float]:
    """The scores that the run does not have yet under these settings, or, with ``again``, all, by
    the keys of ``result.json``; each task is written as soon as it is done.

    Raises UserError for a run that has not finished, was imported or has lost its result, a model
    of images, other settings than those of the run's sweep, tasks that are not there, and data that
    are not.
    """
    files = RunFolder(folder)
    if (status := files.status()).state != "finished":
        raise UserError(f"{folder}: the run is {status.state}; only finished runs are evaluated")
    if status.imported:
        raise UserError(f"{folder}: imported from {status.imported}, and so without a model")
    with only_one(files):
        # with scores alone in its place nobody would see that the others are gone
        if not read_json(files.result) and status.message != Status.CONVERTED:
            raise UserError(
                f"{folder}: its result was lost; run it again, which makes it from its rows and "
                "its checkpoint, then evaluate"
            )
        wanted = {
            task: of
            for task, of in settings.wanted.items()
            if again or record.missing(files, task, of)
        }
        if not wanted:
            return {}
        _agree(files, wanted)
        if theirs := wanted.keys() - {"nano"}:
            from attnres_lab.evaluation.harness import check

            check(theirs)
        scorer, config = load_scorer(folder, settings)
        values: dict[str, float] = {}
        for task, of in wanted.items():
            answers = _answers(scorer, config, task, replace(settings, shots=of["shots"]))
            values |= record.write(files, task, of, answers)
        return values


def _agree(files: RunFolder, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where the run is a trial of which its sweep asks a task under other
    settings: one file holds a task's scores, and the sweep would make its own again.
    """
    if not (request := read_json(files.wanted)):
        return
    for task, of in Settings.asked(request).wanted.items():
        given = wanted.get(task, of)
        if other := {key: value for key, value in of.items() if value != given[key]}:
            theirs = ", ".join(f"{key}: {json.dumps(value)}" for key, value in other.items())
            raise UserError(
                f"{files.wanted}: the sweep scores {task} with {theirs}, and would do so again "
                "after other settings; give the same, or delete this file where it no longer does"
            )


def load_scorer(folder: Path, settings: Settings) -> tuple[Scorer, RunConfig]:
    """The run's model on the GPU, where there is one, and its config."""
    model, config = load_model(folder)
    codec = load_codec(config.data.tokenizer)
    if settings.chat and codec.chat is None:
        raise UserError(f"{folder}: chat: the run's tokenizer has no chat template; leave it out")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    length = settings.max_length or config.data.seq_len
    return Scorer(model.to(device), codec, length, settings.batch_size), config


def _answers(scorer: Scorer, config: RunConfig, task: str, settings: Settings) -> list[Answers]:
    if task != "nano":
        from attnres_lab.evaluation.harness import answers

        return answers(scorer, task, settings)
    asked = nano.questions(prepare(config.data), scorer.codec, scorer.max_length, settings.limit)
    if not asked:
        raise UserError(
            f"nano: the validation text of {config.run_name} is too short for any question"
        )
    return [nano.answer(scorer, name, several) for name, several in asked.items()]
