"""Steps of a sweep's variants timed in turn, written beside it, and what a report makes of them."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers import write_run

from analysis.report import write_report
from attnres_lab.benchmarks import steps
from attnres_lab.benchmarks.timing import WARM, interleave
from attnres_lab.config import LoraConfig, OptimConfig, RunConfig, TrainConfig, load
from attnres_lab.errors import UserError
from attnres_lab.mixers import KDAConfig, MixersConfig, MoEConfig
from attnres_lab.model import ModelConfig
from attnres_lab.residual.attnres import FullConfig
from attnres_lab.runs.files import read_json, write_json
from attnres_lab.runs.sweep import SweepFolder
from attnres_lab.sweep.plan import Plan
from attnres_lab.sweep.spec import load_spec
from attnres_lab.training.environment import speed_key
from attnres_lab.training.module import LitTransformer
from attnres_lab.training.run import run

NAP = 0.02


def test_works_are_timed_in_turn() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> float:
        order.append(name)
        return seconds + len(order)

    times = interleave({"a": lambda: work("a", 0.0), "b": lambda: work("b", 0.0)}, 3)
    assert order == ["b", "a", "a", "b"] * 2 + ["b", "a"]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}
    assert min(map(min, times.values())) > 2 * WARM  # the first rounds are left out


def test_a_timed_step_is_the_step_that_training_takes(tmp_path: Path) -> None:
    """From the same weights and batch the same new weights as Lightning's loop makes: two
    micro-batches, clipped, one step of the optimiser.
    """
    torch.set_num_threads(1)
    changes = {"train.micro_batch_size": 2, "optim.clip": 0.1}
    path = write_run(tmp_path / "tiny.yaml", budget="1 steps", **changes)
    config = load(path)
    assert config.train.accumulate == 2
    made: list[LitTransformer] = []
    batch = steps._batch(config, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "LitTransformer", lambda c: made.append(LitTransformer(c)) or made[0])
        assert steps.step_of(config, torch.device("cpu"))() > 0
    other = LitTransformer(config)
    optimizer = other.make_optimizer()
    other.loss(torch.cat([batch, batch])).backward()
    other.clip(0.1)
    optimizer.step()
    for (name, ours), theirs in zip(
        made[0].model.named_parameters(), other.model.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_what_changes_a_step_has_a_key_of_its_own_and_the_default_keeps_its_key() -> None:
    """The literal is the key that speeds of the default were kept under before."""
    base = RunConfig()
    assert speed_key(base) == "baseline d64-L8 256 32 auto False 1 1 False"
    model: list[dict[str, Any]] = [
        {"vocab_size": 512},
        {"num_heads": 2},
        {"num_kv_heads": 2},
        {"mlp_dim": 99},
        {"qk_norm": True},
        {"tie_embeddings": True},
        {"mixers": MixersConfig(("kda",))},
        {"mixers": MixersConfig(("kda",), kda=KDAConfig(conv=2))},
        {"mlp": MoEConfig()},
        {"mlp": MoEConfig(experts=4)},
        {"residual": FullConfig()},
    ]
    optim: list[dict[str, Any]] = [{"name": "muon"}, {"lora": LoraConfig(rank=4)}]
    full = replace(base, model=ModelConfig(residual=FullConfig()))
    configs = [
        base,
        *(replace(base, model=ModelConfig(**change)) for change in model),
        *(replace(base, optim=OptimConfig(**change)) for change in optim),
        replace(full, optim=OptimConfig(query_optimizer="muon")),
        replace(full, optim=OptimConfig(freeze_trunk=True)),
        replace(base, train=TrainConfig(batch_size=64, micro_batch_size=32)),
        replace(base, train=TrainConfig(devices=2, batch_size=64)),
        replace(base, train=TrainConfig(devices=2, batch_size=64, strategy="fsdp")),
    ]
    assert len({speed_key(c) for c in configs}) == len(configs)
    assert speed_key(replace(base, seed=1, optim=OptimConfig(lr=1.0))) == speed_key(base)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SweepFolder:
    """Two variants and one learning rate more, a seed each."""
    home = tmp_path_factory.mktemp("steps")
    base = write_run(home / "base.yaml", budget="2 steps")
    file = home / "s.yaml"
    space = {"model.residual": ["baseline", "full"], "optim.lr": [0.001, 0.002]}
    file.write_text(yaml.safe_dump({"name": "s", "base": str(base), "space": space}))
    folder = SweepFolder(home / "runs" / "sweeps" / "s")
    trials = Plan(load_spec(file)).known()
    folder.path.mkdir(parents=True)
    folder.write_plan([t.entry for t in trials])
    for t in trials:
        run(t.config, folder.trial(t.entry.hash).path)
    return folder


def test_the_steps_of_a_sweep_are_written_beside_it(
    trained: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variant that sleeps is slower by its sleep; a learning rate is no other step."""
    plain = LitTransformer.loss

    def slow(self: LitTransformer, batch: torch.Tensor) -> torch.Tensor:
        time.sleep(NAP * (self.config.variant == "full"))
        return plain(self, batch)

    monkeypatch.setattr(LitTransformer, "loss", slow)
    rows = {row["variant"]: row for row in steps.measure(trained, 3)}
    assert set(rows) == {"baseline", "full"}
    assert rows["full"]["step_seconds"] > rows["baseline"]["step_seconds"] + 0.5 * NAP
    found = read_json(trained.path / "step_seconds.json") or {}
    assert found["rows"] == list(rows.values())
    assert sorted(h for row in found["rows"] for h in row["trials"]) == sorted(
        e.hash for e in trained.plan()
    )
    device = (read_json(trained.trial(trained.plan()[0].hash).environment) or {})["device"]
    assert (found["device"], found["repeats"]) == (device, 3)
    assert " 1.000" in "\n".join(steps.lines(found["rows"]))


def test_steps_are_timed_where_the_trials_ran_and_when_they_have_ended(
    trained: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "cpu_name", lambda: "another machine")
    with pytest.raises(UserError, match=r"its trials ran on .*, this is another machine; measure"):
        steps.measure(trained, 2)
    with trained.coordinate(), pytest.raises(UserError, match="runs it; measure when it has ended"):
        steps.measure(trained, 2)
    with pytest.raises(UserError, match="no finished trial"):
        steps.measure(SweepFolder(tmp_path / "none"), 2)


def made(folder: Path) -> Path:
    """Runs of which a variant is worth 1.3 in FLOPs, and by the clock took three times as long."""
    draw, rows = np.random.default_rng(0), []
    for size, flops in enumerate(np.geomspace(1e12, 3e13, 5)):
        for variant, worth, clock in (("baseline", 1.0, 1.0), ("full", 1.3, 3.0)):
            for seed in range(3):
                noise = np.exp(draw.normal(0, 1e-4))
                rows.append(
                    {
                        "variant": variant,
                        "size": f"d{size}",
                        "seed": seed,
                        "status": "finished",
                        "trial": f"{variant}{size}{seed}",
                        "val/loss": 20 * (flops * worth) ** -0.06 * noise,
                        "flops": flops,
                        "tokens": flops / 1e6,
                        "seconds": flops / 1e9 * clock,
                        "device_seconds": flops / 1e9 * clock,
                    }
                )
    pd.DataFrame(rows).to_csv(folder / "s.csv", index=False)
    prices = [
        {
            "step_seconds": factor,
            "tokens_per_step": 1e3,
            "trials": [r["trial"] for r in rows if r["variant"] == v],
        }
        for v, factor in (("baseline", 1.0), ("full", 1.25))
    ]
    about = {"device": "a quiet CPU", "date": "2026-11-30", "repeats": 20}
    write_json(folder / "step_seconds.json", {**about, "rows": prices})
    return folder / "s.csv"


def test_a_report_prices_seconds_by_the_timed_steps_and_says_whose_they_are(
    tmp_path: Path,
) -> None:
    """1.3 in FLOPs is 1.3 / 1.25 in seconds; by clocks that ran beside others 1.3 / 3."""
    table = made(tmp_path)
    timed = write_report(table, tmp_path / "timed", folder=tmp_path).verdict
    gain = re.search(r"In training time, not FLOP, the gain is: full (\S+) \(", timed)
    assert gain
    assert float(gain[1]) == pytest.approx(1.3 / 1.25, abs=0.02)
    source = "(each variant's step timed in turn with the others' on a quiet CPU, 2026-11-30, "
    assert source in timed
    (tmp_path / "step_seconds.json").unlink()
    report = write_report(table, tmp_path / "clocks", folder=tmp_path)
    gain = re.search(r"In training time, not FLOP, the gain is: full (\S+) \(", report.verdict)
    assert gain
    assert float(gain[1]) == pytest.approx(1.3 / 3, abs=0.02)
    assert "by the clocks of trials that shared a machine or may have" in report.verdict


def test_timed_steps_that_lack_a_run_price_nothing(tmp_path: Path) -> None:
    table = made(tmp_path)
    prices = read_json(tmp_path / "step_seconds.json") or {}
    prices["rows"][1]["trials"].pop()
    write_json(tmp_path / "step_seconds.json", prices)
    report = write_report(table, tmp_path / "out", folder=tmp_path)
    assert "by the clocks of trials that shared a machine" in report.verdict
