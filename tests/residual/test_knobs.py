"""The knobs of the residual parameters can be swept one by one and together, and are in a run's
record: environment, table of folders, MLflow parameters.
"""

import itertools

import pytest
import torch
import yaml
from conformance import build, check_trunk_weights_are_shared
from helpers import tiny, write_run

from attnres_lab.config import flatten
from attnres_lab.model import transformer as model_module
from attnres_lab.residual.attnres import AttnRes, FullConfig
from attnres_lab.runs.files import read_json
from attnres_lab.runs.table import table
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.tracking.names import to_params
from attnres_lab.training.run import run

#: Two values of each, the default first.
KNOBS = {
    "model.residual.query_std": [0.0, 0.02],
    "optim.query_weight_decay": [0.0, 0.1],
    "optim.query_optimizer": ["adamw", "muon"],
    "optim.query_master": [True, False],
    "optim.residual_lr_mult": [1.0, 0.25],
    "optim.residual_clip": [None, 1.0],
}


def test_every_knob_is_an_axis_of_a_sweep(tmp_path):
    """Every combination is a run of its own, and its config says which."""
    base = write_run(tmp_path / "base.yaml", **{"model.residual": "full"})
    space = {key: values for key, values in KNOBS.items() if key != "optim.residual_clip"}
    space["optim.residual_clip"] = [0.5, 1.0]
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "knobs", "base": str(base), "space": space}, sort_keys=False)
    )
    trials = Plan(load_spec(tmp_path / "sweep.yaml")).known()
    got = {tuple(flatten(trial.config)[key] for key in space) for trial in trials}
    assert got == set(itertools.product(*space.values()))
    assert len({t.entry.hash for t in trials}) == 2 ** len(KNOBS)


@pytest.mark.parametrize("which", [0, 1], ids=["defaults", "all"])
def test_the_record_of_a_run_has_every_knob(tmp_path, which):
    chosen = {key: values[which] for key, values in KNOBS.items()}
    config = tiny(tmp_path, **{"model.residual": {"name": "full"}, "budget": "2 steps"}, **chosen)
    folder = tmp_path / "run"
    assert run(config, folder).status.state == "finished"
    (row,) = table([folder])
    recorded = (read_json(folder / "environment.json") or {})["config"]
    logged = to_params(recorded)
    for key, value in chosen.items():
        assert row[f"config/{key}"] == recorded[key] == value
        assert key in logged
    assert row["variant"] == ("full-q0.02" if which else "full")


def test_queries_drawn_by_the_trunks_generator_are_caught(monkeypatch):
    proper = model_module.init_weights
    check_trunk_weights_are_shared(FullConfig(query_std=0.02))

    def planted(model, seed):
        proper(model, seed)
        generator = torch.Generator().manual_seed(seed)
        model.residual.draw(generator)  # and then the trunk, from what is left
        for sublayer in model.mixers():
            sublayer.init_weights(generator, model.config.num_sublayers)

    monkeypatch.setattr(model_module, "init_weights", planted)
    with pytest.raises(AssertionError):
        check_trunk_weights_are_shared(FullConfig(query_std=0.02))


def test_queries_drawn_at_construction_are_caught(monkeypatch):
    init = AttnRes.__init__

    def planted(self, *args):
        init(self, *args)
        torch.nn.init.normal_(self.pseudo_query)

    monkeypatch.setattr(AttnRes, "__init__", planted)
    with pytest.raises(AssertionError, match="random numbers"):
        check_trunk_weights_are_shared(FullConfig())


@pytest.mark.parametrize("seed", [0, 11])
def test_a_seed_gives_all_variants_one_trunk(seed):
    """Through the model itself, whatever the options; another seed gives another trunk."""
    from cases import CASES

    from attnres_lab.model import ModelConfig, Transformer

    def trunk(residual, seed=seed):
        state = Transformer(ModelConfig(11, 16, 6, 2, residual=residual), seed).state_dict()
        return {key: value for key, value in state.items() if not key.startswith("residual.")}

    first = trunk(CASES[0])
    for config in CASES[1:]:
        other = trunk(config)
        assert other.keys() == first.keys()
        assert all(torch.equal(other[key], first[key]) for key in first), config.label
    changed = trunk(CASES[0], seed + 1)
    drawn = [key for key in first if first[key].unique().numel() > 1]
    assert drawn
    assert not any(torch.equal(changed[key], first[key]) for key in drawn)
    assert build(CASES[0]).config.residual == CASES[0]
