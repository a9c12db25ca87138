"""The sweep YAML as frozen dataclasses, with the space it spans; its JSON Schema comes from them
too. Imports neither torch nor Optuna.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, ValidationError

from attnres_lab.errors import UserError, nearest
from attnres_lab.runs.secrets import check_address
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.shipped import find
from attnres_lab.sweep.launchers import DEFAULT, REGISTRY, LauncherConfig
from attnres_lab.sweep.launchers.base import Count, Positive, Strict
from attnres_lab.sweep.process import TRAIN
from attnres_lab.sweep.resources import ONE_DEVICE, Resources
from attnres_lab.sweep.scales import at_scale
from attnres_lab.sweep.space import Space, parse_space
from attnres_lab.sweep.tune import Tune
from attnres_lab.yamlfile import YamlFile

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
#: What ``result.json`` of a training run holds, beside ``depth/...`` and ``perf/...``.
RESULT = (
    *("val/loss", "val/bpb", "val/accuracy", "train/loss", "step", "tokens", "flops", "flops_6nd"),
    *("seconds", "device_seconds"),
    *("params", "params_total", "params_active"),
    *("peak_memory_bytes", "optim/lr", "optim/grad_norm"),
)
if TYPE_CHECKING:
    AnyLauncher = LauncherConfig
else:
    AnyLauncher = Annotated[
        Union[tuple(launcher.Config for launcher in REGISTRY.values())],  # noqa: UP007
        Field(discriminator="name"),
    ]


@dataclass(frozen=True)
class Objective(Strict):
    """A number of ``result.json`` and which way is better."""

    metric: str = "val/loss"
    direction: Literal["minimize", "maximize"] = "minimize"


@dataclass(frozen=True)
class Sampler(Strict):
    """Who proposes points: ``grid`` runs them all; else an Optuna sampler (random, tpe, gp, qmc,
    cmaes, nsgaii, ...) with its keyword options.
    """

    name: str = "grid"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pruner(Strict):
    """Who ends bad trials early: an Optuna pruner with its options, on training steps (median,
    hyperband, ...) or over seeds (wilcoxon).
    """

    name: str
    metric: str = "val/loss"
    """A metric of the logged rows."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Retry(Strict):
    """How often a trial is tried again within one ``sweep run``; a later run tries failed trials
    anyway.
    """

    infrastructure: Annotated[int, Field(ge=0)] = 3
    """Also trials that were killed."""
    out_of_memory: Annotated[int, Field(ge=0)] = 0
    backoff: Annotated[float, Field(ge=0)] = 1.0
    """Seconds before the first retry; doubled each time."""


@dataclass(frozen=True)
class Stop(Strict):
    """When to start no more trials; what is running ends by itself."""

    trials: Count | None = None
    device_hours: Positive | None = None
    flops: Positive | None = None
    no_improvement: Count | None = None
    """Finished points in a row that were no better than the best."""


@dataclass(frozen=True)
class Evaluation(Strict):
    """Benchmarks of each finished trial, as a part of it; their scores may be objectives."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """nano, paper, or names of lm_eval's tasks."""
    limit: Count | None = None
    """The first so many questions of each task."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; by default what the task says."""
    data: str | None = None
    """A folder with copies of the hub's data sets."""
    batch_size: Count = 16


@dataclass(frozen=True)
class SweepSpec(Strict):
    """A base run, a space, an objective."""

    name: Name
    base: str
    """The run YAML, relative to this file."""
    space: dict[str, Any]
    question: str = ""
    """What the sweep is to answer; opens the plan and the report."""
    verdict: bool = True
    """Whether it trains enough for one; false: its report compares no variants."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys laid over the base."""
    objective: Objective | Annotated[list[Objective], Field(min_length=1)] = Objective()
    sampler: Sampler = Sampler()
    pruner: Pruner | None = None
    tune: Tune | None = None
    trials: Count | None = None
    """Points to propose; not for grids, which have their own number."""
    known: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Tables of finished trials, as attnres sweep export writes them, beside or relative to this
    file: what is in there is not run again.
    """
    order: Literal["largest", "smallest"] = "largest"
    """Which trials start first: the largest, so that no device idles at the end, or the smallest,
    so that a sitting that ends early leaves whole cells.
    """
    launcher: AnyLauncher = DEFAULT
    resources: Resources = ONE_DEVICE
    retry: Retry = Retry()
    stop: Stop = Stop()
    eval: Evaluation | None = None
    storage: str | None = None
    """An Optuna RDB URL; by default a journal file in the sweep's folder."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] = TRAIN
    """What runs a trial: module:function, called with (config, folder)."""

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """One or several."""
        return tuple(self.objective) if isinstance(self.objective, list) else (self.objective,)

    @property
    def tables(self) -> tuple[str, ...]:
        """What is under ``known``."""
        return (self.known,) if isinstance(self.known, str) else tuple(self.known or ())

    @property
    def adaptive(self) -> bool:
        """Whether points are proposed, not enumerated."""
        return self.sampler.name != "grid"


@dataclass(frozen=True)
class SpecFile:
    """A spec with its space and the file they came from."""

    spec: SweepSpec
    space: Space
    file: YamlFile

    @property
    def folder(self) -> SweepFolder:
        """Where the sweep lives."""
        return SweepFolder.named(self.spec.name)


_ADAPTER = TypeAdapter(SweepSpec)
#: What a text that its pattern refuses should have been, by key.
FORMS = {
    "name": "is no name: letters, digits, '.', '_' and '-', at most 100, a letter or digit first",
    "function": "is not written module:function",
    "from": "is not written as: 3 smallest sizes",
    "share": "is not written name:number in a device, for example shard:4 or mps:100",
}
FORM = "may hold letters, digits and . _ : , @ % + = / - only, a letter or digit first"
#: What pydantic puts into a place beside the file's own keys: which member of a union was tried.
HIDDEN = (*REGISTRY, "Objective", "list[Objective]")


def load_spec(path: Path | str, scale: str | None = None) -> SpecFile:
    """The sweep that the file ``path`` describes (or the one so called: ``quickstart``, from any
    folder), a study of several scales at ``scale``. Raises UserError with file, line, key and the
    nearest valid name.
    """
    file = at_scale(YamlFile(find(path, "sweeps")), scale)
    data = dict(file.data)
    if "space" not in data and {"model", "budget", "train"} & set(data):
        raise UserError(f"{file.path}: this is a run file; use attnres train")
    if isinstance(data.get("launcher"), dict):
        data["launcher"] = {"name": DEFAULT.name, **data["launcher"]}
    try:
        spec = _ADAPTER.validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(_line(file, error)) from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{file.path}: {error}") from None
    _check(spec, file)
    return SpecFile(spec, parse_space(spec.space, file, adaptive=spec.adaptive), file)


def _check(spec: SweepSpec, file: YamlFile) -> None:
    """Raises UserError for parts that do not fit together."""
    if spec.adaptive != (spec.trials is not None):
        remedy = (
            "give the number of points to propose"
            if spec.adaptive
            else "a grid has its own number of trials; leave it out"
        )
        raise UserError(f"{file.where('trials')}: trials: {remedy}")
    if spec.storage:
        check_address(f"{file.where('storage')}: storage", spec.storage)
    for metric in (o.metric for o in spec.objectives if spec.function == TRAIN):
        scored = ("depth/", "perf/", *(("eval/",) if spec.eval else ()))
        if metric not in RESULT and not metric.startswith(scored):
            raise UserError(
                f"{file.where('objective')}: objective.metric: no result of a run is called "
                f"'{metric}'{nearest(metric, RESULT)}"
            )
    if spec.eval and spec.function != TRAIN:
        raise UserError(
            f"{file.where('eval')}: eval: it needs a model that was trained; leave it out, or "
            "function"
        )
    refusal = spec.tune and spec.tune.refusal(
        adaptive=spec.adaptive, objectives=len(spec.objectives)
    )
    if refusal:
        raise UserError(f"{file.where(refusal[0])}: {': '.join(refusal)}")
    if wrong := _misplaced(spec):
        raise UserError(f"{file.where(wrong.partition(':')[0])}: {wrong}")


def _misplaced(spec: SweepSpec) -> str:
    """Why trials cannot have these resources, after the key; empty where they can."""
    if wrong := spec.resources.refusal():
        return wrong
    if spec.resources.nodes > 1 and spec.function != TRAIN:
        return "resources.nodes: several are for training only; leave it out, or function"
    return REGISTRY[spec.launcher.name].refusal(spec.launcher, spec.resources)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the sweep YAML, for editors."""
    schema = _ADAPTER.json_schema()
    schema["properties"]["scales"] = {
        "type": "object",
        "description": "What differs at each scale; what is shared is in scales.yaml.",
        "additionalProperties": {"type": "object"},
    }
    schema["required"].remove("base")  # a study has one at each scale
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "attnres-lab sweep",
        **schema,
        "anyOf": [{"required": ["base"]}, {"required": ["scales"]}],
    }


def _line(file: YamlFile, error: ValidationError) -> str:
    """The first problem as one line: unknown keys first, for they explain the rest."""
    problem = min(
        error.errors(include_url=False),
        key=lambda e: (e["type"] != "unexpected_keyword_argument", -len(e["loc"])),
    )
    kind, given, message = (
        problem["type"],
        problem["input"],
        problem["msg"].replace("Input should", "should"),
    )
    keys = [str(part) for part in problem["loc"] if part not in HIDDEN]
    if kind == "unexpected_keyword_argument":
        parts = (*Strict.__subclasses__(), *(launcher.Config for launcher in REGISTRY.values()))
        names = {f.name for part in parts for f in fields(part)}
        names = names - {"smallest"} | {"from"}  # a word that Python keeps to itself
        message = f"unknown key{nearest(keys[-1], names)}"
    elif kind == "missing":
        message = "missing"
    elif kind == "union_tag_invalid":
        tags = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        tag = problem["ctx"]["tag"]
        message = f"no {keys[-1]} is called '{tag}'{nearest(tag, tags)}"
    elif kind == "string_pattern_mismatch":
        message = f"{given!r} {FORMS.get(keys[-1], FORM)}"
    elif not isinstance(given, dict):
        message += f", got {given!r}"
    dotted = ".".join(keys)
    return f"{file.where(dotted)}: {dotted or file.path.name}: {message}"
