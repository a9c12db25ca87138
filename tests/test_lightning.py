"""The module and its data under a stock Trainer, as a Lightning user would use them."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from helpers import tiny
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from attnres_lab import CorpusDataModule, LitTransformer, run
from attnres_lab.config import RunConfig, TrainConfig
from attnres_lab.errors import UserError
from attnres_lab.training.trainer import in_bf16


@pytest.fixture(autouse=True)
def _lightnings_advice() -> None:
    """Lightning advises on loaders with workers; ours are index arithmetic."""
    warnings.filterwarnings("ignore", module="pytorch_lightning.*")
    warnings.filterwarnings("ignore", module="lightning_fabric.*")


def test_the_package_imports_nothing_until_something_of_it_is_used() -> None:
    code = (
        "import sys, attnres_lab\n"
        "assert not {'torch', 'pytorch_lightning', 'omegaconf'} & set(sys.modules)\n"
        "attnres_lab.load('tiny')\n"
        "assert 'pytorch_lightning' not in sys.modules\n"
        "print(*(getattr(attnres_lab, name).__name__ for name in attnres_lab.__all__))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        *("CorpusDataModule", "ImageDataModule", "LitTransformer", "load", "run"),
    ]


def trainer(folder: Path, **options: object) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"enable_checkpointing": False, "max_epochs": 1, **quiet, **options}
    return pl.Trainer(accelerator="cpu", devices=1, default_root_dir=str(folder), **options)


def fitted(config: RunConfig, folder: Path, **options: object) -> tuple[pl.Trainer, LitTransformer]:
    torch.set_num_threads(1)
    t, module = trainer(folder, **options), LitTransformer(config)
    t.fit(module, CorpusDataModule(config))
    return t, module


def test_a_stock_trainer_learns_what_run_learns(tmp_path: Path) -> None:
    """Same weights, same validation loss: the callbacks of a run only watch."""
    config = tiny(tmp_path)
    t, module = fitted(config, tmp_path, num_sanity_val_steps=0)
    ours = run(config, tmp_path / "run")
    assert module.step == config.steps
    assert ours.metrics["val/loss"] == module.validation["val/loss"]
    assert ours.metrics["val/bpb"] == module.validation["val/bpb"]
    assert float(t.callback_metrics["val/loss"]) == pytest.approx(ours.metrics["val/loss"])
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(saved["state_dict"][name], value, rtol=0, atol=0)


def test_early_stopping_and_the_best_checkpoint_watch_the_validation_loss(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    best = ModelCheckpoint(tmp_path / "best", monitor="val/loss")
    stop = EarlyStopping(monitor="val/loss", patience=1, min_delta=100.0)
    options = {"val_check_interval": 2, "check_val_every_n_epoch": None}
    _, module = fitted(
        config, tmp_path, callbacks=[best, stop], enable_checkpointing=True, **options
    )
    assert module.step == 4  # the second validation is no better by 100 nats
    assert Path(best.best_model_path).exists()
    loaded = LitTransformer.load_from_checkpoint(best.best_model_path, config=config)
    weights = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())


def test_a_logger_of_lightnings_gets_the_losses(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "csv")
    fitted(tiny(tmp_path), tmp_path, logger=logger, log_every_n_steps=1)
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert {"train/loss", "val/loss", "val/bpb"} <= set(header.split(","))
    assert len(lines) >= 8


def test_a_logger_and_callbacks_may_be_given_to_run(tmp_path: Path) -> None:
    """They see the validations of the run's own schedule."""

    class Losses(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            self.seen.append(float(trainer.callback_metrics["val/loss"]))

    config = tiny(tmp_path, **{"train.val_every": 4, "budget": "8 steps"})
    losses, logger = Losses(), CSVLogger(tmp_path / "csv")
    result = run(config, tmp_path / "run", callbacks=[losses], logger=logger)
    assert len(losses.seen) == 2
    assert losses.seen[-1] == pytest.approx(result.metrics["val/loss"])
    assert "val/loss" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_fast_dev_run_takes_one_step(tmp_path: Path) -> None:
    _, module = fitted(tiny(tmp_path), tmp_path, fast_dev_run=True)
    assert module.step == 1
    assert module.validation["val/loss"] > 0


def test_validation_may_be_limited(tmp_path: Path) -> None:
    config = tiny(tmp_path, **{"train.micro_batch_size": 2})
    t = trainer(tmp_path, limit_val_batches=1)
    module, data = LitTransformer(config), CorpusDataModule(config)
    t.validate(module, data, verbose=False)
    first = next(iter(data.val_dataloader()))
    with torch.no_grad():
        assert module.validation["val/loss"] == float(module.loss(first))


def test_a_damaged_corpus_is_refused_by_any_trainer(tmp_path: Path) -> None:
    """One bit of one validation token is another loss."""
    config = tiny(tmp_path)
    corpus = CorpusDataModule(config).dataset
    shard = next(corpus.folder.glob("*.val.bin"))
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match="checksum differs"):
        trainer(tmp_path).validate(LitTransformer(config), CorpusDataModule(config))


@pytest.mark.parametrize("native", [True, False])
def test_products_are_bf16_where_asked_for_or_on_a_gpu_that_has_it(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch counts a GPU that emulates it unless told not to."""

    def supported(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert in_bf16(TrainConfig(), "cuda") is native
    assert not in_bf16(TrainConfig(), "cpu")
    assert in_bf16(TrainConfig(precision="bf16"), "cpu")
    assert not in_bf16(TrainConfig(precision="fp32"), "cuda")


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    """Of two micro-batches, as of the batch they are parts of, to rounding."""
    whole, halves = tiny(tmp_path), tiny(tmp_path, **{"train.micro_batch_size": 2})
    assert halves.train.accumulate == 2
    _, one = fitted(whole, tmp_path)
    _, two = fitted(halves, tmp_path, accumulate_grad_batches=2)
    assert one.step == two.step
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_trainers_clip_value_goes_before_the_configs(tmp_path: Path) -> None:
    """With gradients cut to almost nothing plain descent would stand still; the norm before the cut
    is what is logged.
    """
    config = tiny(tmp_path)
    clipped: list[float] = []

    class Cut(LitTransformer):
        def configure_gradient_clipping(self, *args: object, **kwargs: object) -> None:
            super().configure_gradient_clipping(*args, **kwargs)
            grads = [p.grad.norm() for p in self.parameters() if p.grad is not None]
            clipped.append(float(torch.stack(grads).norm()))

    t = trainer(tmp_path, gradient_clip_val=1e-3)
    t.fit(Cut(config), CorpusDataModule(config))
    assert max(clipped) == pytest.approx(1e-3, rel=1e-2)
