"""A sweep file says what it means, or is refused with place, key and remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attnres_lab.config import Budget
from attnres_lab.errors import UserError
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.space import Space, parse_space
from attnres_lab.sweep.spec import json_schema, load_spec
from attnres_lab.yamlfile import YamlFile
from tests.sweep.conftest import Lab

SCHEMA = YamlFile(Path(__file__).parents[2] / "sweeps" / "schema.json")
HEAD = "name: s\nbase: base.yaml\n"
SPACE = "space: {seed: [0, 1]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + SPACE + "objektive: {}\n", ":4: objektive: unknown key, did you mean 'objective'?"),
        (
            HEAD + SPACE + "objective: {metrik: a}\n",
            ":4: objective.metrik: unknown key, did you mean 'metric'?",
        ),
        (
            HEAD + SPACE + "objective:\n- metric: a\n  direction: min\n",
            "'minimize' or 'maximize', got 'min'",
        ),
        (
            HEAD + SPACE + "launcher: {workers: 0}\n",
            ":4: launcher.workers: should be greater than or equal to 1, got 0",
        ),
        (
            HEAD + SPACE + "launcher: {workers: '2'}\n",
            ":4: launcher.workers: should be a valid integer, got '2'",
        ),
        (
            HEAD + SPACE + "launcher: {name: slrm}\n",
            ":4: launcher: no launcher is called 'slrm', did you mean 'slurm'?",
        ),
        (
            HEAD + SPACE + "launcher:\n  name: slurm\n  partition: 'a; rm -rf x'\n",
            ":6: launcher.partition: 'a; rm -rf x' may hold letters, digits and",
        ),
        (
            HEAD + SPACE + "launcher:\n  name: slurm\n  gres: $(id)\n",
            ":6: launcher.gres: '$(id)' may hold letters, digits and",
        ),
        (HEAD + SPACE + "sampler: {name: tpe}\n", "trials: give the number of points to propose"),
        (HEAD + SPACE + "trials: 3\n", ":4: trials: a grid has its own number"),
        (
            HEAD + SPACE + "function: os.system\n",
            ":4: function: 'os.system' is not written module:function",
        ),
        (
            "name: ../../etc\nbase: base.yaml\n" + SPACE,
            ":1: name: '../../etc' is no name: letters, digits",
        ),
        ("name: a/b\nbase: base.yaml\n" + SPACE, ":1: name: 'a/b' is no name: letters, digits"),
        ("base: base.yaml\n" + SPACE, "name: missing"),
        (HEAD + "space: [1]\n", ":3: space: should be"),
        (HEAD + "space: {}\n", ":3: space: empty"),
        (
            "name: s\nbase: no.yaml\n" + SPACE,
            ":2: base: no.yaml: no such file, and no experiment is called so",
        ),
        (HEAD + "space: {optim.lr: []}\n", ":3: space.optim.lr: an empty list"),
        (HEAD + "space: {optim.lr: null}\n", ":3: space.optim.lr: empty; give a value or a list"),
        (HEAD + "space: {optim.lr: [.nan]}\n", ":3: optim.lr: should be a finite number, got nan"),
        (HEAD + SPACE + "stop: {flops: .nan}\n", ":4: stop.flops: should be a finite number"),
        (HEAD + SPACE + "stop: {flops: .inf}\n", ":4: stop.flops: should be a finite number"),
        (HEAD + SPACE + "storage: !!binary aGk=\n", ":4: tags (!!binary) are not supported"),
        (HEAD + "space: {seed: -1}\n", ":3: space.seed: seeds are whole numbers"),
        (
            HEAD + "space: {model.residual.num_blocks: [1, 2]}\n",
            ":3: model.residual.num_blocks: unknown key of baseline; set model.residual.name: ",
        ),
        (
            HEAD + "space: {optim.lr: {log: [1e-4, 1e-2]}}\n",
            ":3: space.optim.lr: a grid needs an end",
        ),
        (HEAD + "space: {optim.lr: {log: [0, 1, 3]}}\n", "low > 0"),
        (HEAD + "space: {optim.lr: {range: [2, 1, 1]}}\n", "low < high"),
        (HEAD + "space: {optim.lr: [1e-3, 1e-3]}\n", "the same value is given twice"),
        (
            HEAD + "space:\n  model.dim: [32]\n  size: {a: {model.dim: 64}}\n",
            ":5: space.size: sets model.dim, and so does 'model.dim'",
        ),
        (HEAD + "space: {seed: [0, 1.5]}\n", ":3: space.seed: seeds are whole numbers"),
        (
            HEAD + "space:\n  seed: [0]\n  optim.lrr: [1, 2]\n",
            ":5: optim.lrr: unknown key, did you mean 'lr'?",
        ),
        (
            HEAD + "space:\n  size:\n    s: {model.dim: 30}\n  model.num_heads: [4]\n",
            "model.num_heads: 4 heads do not divide model.dim = 30",
        ),
        (
            HEAD + SPACE + "overrides: {model.dmi: 3}\n",
            ":4: model.dmi: unknown key, did you mean 'dim'?",
        ),
        (HEAD + "space: {train.devices: [1, 2]}\n", "resources.devices"),
        (HEAD + SPACE + "resources: {devices: -1}\n", ":4: resources.devices: should be greater"),
        (
            HEAD + SPACE + "resources: {devices: 1.5}\n",
            ":4: resources.devices: 1.5 is neither a share of one device nor a number of whole",
        ),
        (
            HEAD + SPACE + "resources: {devices: '1/4'}\n",
            ":4: resources.devices: should be a valid",
        ),
        (
            HEAD + SPACE + "resources: {devices: 0.25}\noverrides: {train.strategy: ddp}\n",
            ":4: resources.devices: 0.25 of a device is for one process, and the run has "
            "train.strategy: ddp over 1; give whole devices",
        ),
        (
            HEAD + SPACE + "resources: {devices: 0.5}\noverrides: {train.devices: 2}\n",
            ":4: resources.devices: 0.5 of a device is for one process",
        ),
        (
            HEAD + SPACE + "launcher: {name: ray}\nresources:\n  nodes: 2\n  devices: 0.5\n",
            ":6: resources.nodes: 2 nodes with a share of a device each; give a whole number",
        ),
        (
            HEAD + SPACE + "resources: {nodes: 2}\n",
            ":4: resources.nodes: local trials stay on one node; take launcher.name: slurm or ray",
        ),
        (HEAD + SPACE + "resources: {nodes: 0}\n", ":4: resources.nodes: should be greater than"),
        (
            HEAD + SPACE + "launcher: {name: slurm}\nresources: {nodes: 2, devices: 4}\n",
            ":5: resources.nodes: 2 nodes of 4 processes each, but the run has train.nodes = 1, "
            "train.devices = 1; set overrides: {train.nodes: 2, train.devices: 4}",
        ),
        (
            HEAD + SPACE + "overrides: {train.nodes: 2}\n",
            "resources.nodes: the run wants train.nodes = 2; give as many",
        ),
        (
            HEAD + SPACE + "launcher: {name: ray}\nfunction: os:getcwd\nresources: {nodes: 2}\n",
            ":6: resources.nodes: several are for training only; leave it out, or function",
        ),
        (
            HEAD + SPACE + "launcher: {name: slurm}\nresources: {devices: 0.25}\n",
            ":5: resources.devices: 0.25 needs a cluster that shares GPUs; set launcher.share",
        ),
        (
            HEAD + SPACE + "launcher: {name: slurm, share: shard}\n",
            ":4: launcher.share: 'shard' is not written name:number in a device, for example",
        ),
        (HEAD + SPACE + "a: &a [x]\nb: [*a, *a]\n", "anchors and aliases are not supported"),
        (HEAD + SPACE + "a: " + "[" * 5000 + "]" * 5000 + "\n", ": nested deeper than 50 levels"),
        (
            HEAD + SPACE + "overrides: {name: ../../etc}\n",
            ":4: name: '../../etc' may hold letters, digits, '.', '_' and '-' only",
        ),
        (HEAD + SPACE + "overrides: {name: $(reboot)}\n", ":4: name: '$(reboot)' may hold letters"),
        (HEAD + "space: {name: [a, '`id`']}\n", ":3: name: '`id`' may hold letters"),
        (
            HEAD + SPACE + "sampler: {name: gridd}\ntrials: 2\n",
            "sampler.name: unknown sampler 'gridd'",
        ),
        (
            HEAD + SPACE + "sampler: {name: tpe, options: {n_startup: 2}}\ntrials: 2\n",
            "sampler.options: ",
        ),
        (
            HEAD + SPACE + "pruner: {name: medain}\n",
            "pruner.name: unknown pruner 'medain', did you mean 'median'?",
        ),
    ],
)
def test_bad_input_is_one_line_with_place_key_and_remedy(lab: Lab, text: str, message: str) -> None:
    path = lab.sweep(text)
    with pytest.raises(UserError) as error:
        lab.run(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(lab.path.glob("runs/sweeps/*/trials"))


def test_a_huge_grid_is_refused_before_it_is_enumerated(lab: Lab) -> None:
    path = lab.sweep(
        space={
            f"optim.{k}": {"range": [1, 1000]}
            for k in ("lr", "clip", "weight_decay", "residual_lr_mult")
        }
    )
    with pytest.raises(
        UserError, match="1000000000000 trials, more than 10000; make it smaller, or say --large"
    ):
        lab.run(path)


def test_the_schema_accepts_what_is_accepted_and_refuses_unknown_keys(lab: Lab) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(lab.sweep().read_text()), schema)
    for path in set(SCHEMA.path.parent.glob("*.yaml")) - {SCHEMA.path.parent / "scales.yaml"}:
        jsonschema.validate(YamlFile(path).data, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "s", "base": "b", "space": {}, "worker": 3}, schema)


def test_the_stored_schema_is_the_current_one() -> None:
    assert json.loads(SCHEMA.path.read_text()) == json_schema()


def space(raw: dict[str, Any], tmp_path: Path, *, adaptive: bool = False) -> Space:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"space": raw}, sort_keys=False))
    return parse_space(raw, YamlFile(path), adaptive=adaptive)


def test_ranges_and_log_ranges_include_both_ends(tmp_path: Path) -> None:
    axes = space(
        {"a.x": {"range": [1, 7, 3]}, "a.y": {"log": [1e-4, 1e-1, 4]}, "a.z": {"log": [1, 8, 4]}},
        tmp_path,
    ).axes
    values = [[c.label for c in axis.values] for axis in axes]  # type: ignore[union-attr]
    assert values[0] == [1, 4, 7]
    assert values[1] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert values[2] == [1, 2, 4, 8]


def test_a_conditional_mapping_replaces_its_section_and_brings_its_own_axes(tmp_path: Path) -> None:
    points = list(
        space(
            {"model.residual": [{"name": "baseline"}, {"name": "block", "num_blocks": [2, 4]}]},
            tmp_path,
        ).points()
    )
    assert [p.overrides for p in points] == [
        {"model.residual": {"name": "baseline"}},
        {"model.residual": {"name": "block"}, "model.residual.num_blocks": 2},
        {"model.residual": {"name": "block"}, "model.residual.num_blocks": 4},
    ]


def test_a_scalar_a_list_of_one_and_a_plain_name_are_one_plan(lab: Lab) -> None:
    def plan(**space: Any) -> list[Any]:
        return [trial.entry for trial in Plan(load_spec(lab.sweep(space=space))).known()]

    assert plan(seed=3) == plan(seed=[3])
    assert plan(**{"optim.lr": 1e-3}) == plan(**{"optim.lr": [1e-3]})
    one, listed = ([{"name": "block", "num_blocks": n}] for n in (2, [2]))
    assert plan(**{"model.residual": one}) == plan(**{"model.residual": listed})
    named = [{"name": "baseline"}, {"name": "full"}]
    assert plan(**{"model.residual": ["baseline", "full"]}) == plan(**{"model.residual": named})


def test_a_budget_replaces_the_base_runs_budget(lab: Lab) -> None:
    trials = Plan(load_spec(lab.sweep(space={"budget": ["1e11 flops", "1e12 flops"]}))).known()
    assert [t.config.budget for t in trials] == [Budget(1e11, "flops"), Budget(1e12, "flops")]
    assert [t.entry.flops for t in trials] == pytest.approx([1e11, 1e12], rel=0.01)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_a_grid_has_as_many_points_as_the_product_of_its_axes(lengths: list[int]) -> None:
    raw = {f"a.k{i}": list(range(n)) for i, n in enumerate(lengths)}
    found = parse_space(raw, SCHEMA, adaptive=False)
    points = list(found.points())
    assert len(points) == found.size() == math.prod(lengths)
    assert len({json.dumps(p.overrides) for p in points}) == len(points)


def test_each_size_may_have_seeds_of_its_own(lab: Lab) -> None:
    """All variants of a size share them, no two sizes do, and a size that is added changes no
    trial of the others.
    """

    def seeds(*dims: int) -> dict[tuple[str, str], set[int]]:
        space = {
            "model.dim": list(dims),
            "model.residual": ["baseline", "full"],
            "seed": {"each": 3},
        }
        found: dict[tuple[str, str], set[int]] = {}
        for trial in Plan(load_spec(lab.sweep(space=space))).known():
            key = (trial.entry.size, trial.entry.variant)
            found.setdefault(key, set()).add(trial.entry.seed)
        return found

    two, three = seeds(16, 32), seeds(16, 32, 48)
    sizes = sorted({size for size, _ in three})
    assert all(len(found) == 3 for found in three.values())
    assert all(three[size, "baseline"] == three[size, "full"] for size in sizes)
    assert len(set().union(*three.values())) == 9
    assert two.items() <= three.items()


def test_seeds_of_each_size_are_counted(lab: Lab) -> None:
    path = lab.sweep(space={"model.dim": [16, 32], "seed": {"each": 0}})
    with pytest.raises(UserError, match=r"space\.seed: each takes a whole number of seeds from 1"):
        Plan(load_spec(path))
