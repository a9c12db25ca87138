"""Tasks of lm_eval on our models. Needs the extra ``eval``."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attnres_lab.errors import UserError, nearest
from attnres_lab.evaluation.code import REFUSED
from attnres_lab.evaluation.paper import PAPER
from attnres_lab.evaluation.record import Answers, fingerprint
from attnres_lab.evaluation.scorer import Scorer

if TYPE_CHECKING:
    from attnres_lab.evaluation.run import Settings

NAMED = re.compile(r"^\s*(?:- )?(?:task|group|tag): *[\"']?([\w.-]+)", re.MULTILINE)
SEED = 1234  # of the choice of examples; lm_eval's own


def answers(scorer: Scorer, name: str, settings: Settings) -> list[Answers]:
    """The scores of a task or group of lm_eval, by task and metric. Raises UserError."""
    from lm_eval.evaluator import evaluate

    from attnres_lab.evaluation.hub import local
    from attnres_lab.evaluation.lm import AttnResLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    root = Path(settings.data) if settings.data else None
    if root and not root.is_dir():
        raise UserError(f"--data: {root}: no such folder")
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # some tasks shuffle choices
        seed(SEED)
    with local(root, allow_code=settings.allow_code):
        loaded = _load(name)
        for task in loaded["tasks"].values():
            if task.get_config("unsafe_code") and not settings.allow_code:
                raise UserError(REFUSED)
            own = task.get_config("num_fewshot")
            task.set_config("num_fewshot", (own or 0) if settings.shots is None else settings.shots)
            task.set_fewshot_seed(seed=SEED)
        result = evaluate(
            lm=AttnResLM(scorer),
            task_dict=loaded,
            limit=settings.limit,
            bootstrap_iters=100,  # means have their exact error
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
            confirm_run_unsafe_code=settings.allow_code,
        )
    return list(_collect(name, loaded, result))


def check(names: Iterable[str]) -> None:
    """Raises UserError where lm_eval is not installed, and for a name that stands in none of its
    files: before a model is loaded, and without parsing them, which takes twenty times as long.
    """
    if not (wanted := sorted(names)):
        return
    if (spec := find_spec("lm_eval")) is None:
        raise UserError(
            f"{wanted[0]}: lm_eval is not installed; pip install 'attnres-lab[eval]', or use nano"
        )
    if not (unsure := [n for n in wanted if n not in {suite.task for suite in PAPER}]):
        return
    home = Path(str(spec.origin)).parent / "tasks"
    # what a YAML includes may have any ending, or none
    skipped = (".py", ".pyc", ".md", ".sh", ".json")
    files = (p for p in home.rglob("*") if p.suffix not in skipped and p.is_file())
    text = "\n".join(path.read_text(errors="replace") for path in files)
    for name in unsure:
        if not re.search(rf"\b{re.escape(name)}\b", text):
            raise _unknown(name, NAMED.findall(text))


def runs_code(names: Iterable[str]) -> str:
    """The first of ``names`` that has programs run which the model wrote; empty where none has."""
    return next((name for name in names if re.match("paper$|humaneval|mbpp", name)), "")


def _unknown(name: str, known: Iterable[str]) -> UserError:
    found = nearest(name, [*known, "nano", "paper"])
    return UserError(f"--tasks: lm_eval has no task '{name}'{found}")


def _load(name: str) -> Any:
    manager = _manager(name)
    if name not in manager.all_tasks:
        manager = _manager("")
    if name not in manager.all_tasks:
        raise _unknown(name, manager.all_tasks)
    try:
        return manager.load([name])
    except ConnectionError as error:
        raise UserError(
            f"{name}: its data set is on the hub, which does not answer; give a folder with a copy "
            f"as --data ({str(error).splitlines()[0]})"
        ) from None


@lru_cache(maxsize=16)
def _manager(name: str) -> Any:
    """Of all tasks, which takes ten seconds, or of the folder that ``name`` begins with."""
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    folders = {suite.task: suite.folder for suite in PAPER}
    own = [path.name for path in home.iterdir() if path.is_dir() and name.startswith(path.name)]
    folder = folders.get(name) or max(own, key=len, default="")
    if not folder:
        return lm_eval.tasks.TaskManager()
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=str(home / folder))


def _collect(name: str, loaded: Any, result: Any) -> Iterable[Answers]:
    """Of a group that lm_eval sums up its sums, else those of each task."""
    summed = name in loaded["groups"] and any("," in key for key in result["results"].get(name, {}))
    for task in [name] if summed else list(loaded["tasks"]):
        leaves = [t.task_name for t in loaded["groups"][name].get_all_tasks()] if summed else [task]
        for key, value in result["results"][task].items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            samples = [
                (leaf, sample)
                for leaf in leaves
                for sample in result["samples"][leaf]
                if sample["filter"] == kind
            ]
            error = result["results"][task].get(f"{metric}_stderr,{kind}")
            label = metric if kind == "none" else f"{metric}.{kind}"
            yield Answers(
                f"eval/{task}/{label}",
                float(value),
                float(error) if isinstance(error, int | float) else float("nan"),
                fingerprint(f"{leaf}/{s['doc_id']}/{s['prompt_hash']}" for leaf, s in samples),
                _scores(samples, metric),
            )


def _scores(samples: Sequence[tuple[str, Any]], metric: str) -> tuple[float, ...]:
    """Of each question; empty for a metric that questions do not have of their own."""
    values = [sample.get(metric) for _, sample in samples]
    if not all(isinstance(value, bool | int | float | np.number) for value in values):
        return ()
    return tuple(float(value) for value in values)
