"""The task of images and its network: the same seams, its own batches, loss and metrics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_in_two_parts, same, weights
from image_files import squares, tiny_images
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analysis.report import write_report
from attnres_lab import ImageDataModule, ops
from attnres_lab.config import ImagesConfig, content_hash, load, parse_overrides, to_yaml
from attnres_lab.errors import UserError
from attnres_lab.mixers import AttentionConfig, KDAConfig, MixersConfig
from attnres_lab.mixers.rope import RopeConfig
from attnres_lab.model import ImageShape, ModelConfig, ViT
from attnres_lab.model.flops import image_params, image_training_flops
from attnres_lab.ops import naive, twophase
from attnres_lab.residual import BaselineConfig, ResidualConfig
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.runs.folder import read_json
from attnres_lab.training.run import run
from attnres_lab.training.task import make_task

OPEN = MixersConfig(attention=AttentionConfig(causal=False, rope=RopeConfig(fraction=0.0)))
SHAPE = ImageShape(size=12, channels=3, classes=5, patch=4)
RESIDUALS: list[ResidualConfig] = [FullConfig(), BlockConfig(block_size=3)]


def vit(residual: ResidualConfig, shape: ImageShape = SHAPE, norm_eps: float = 1e-6) -> ViT:
    config = ModelConfig(
        dim=16, num_layers=4, num_heads=2, mixers=OPEN, residual=residual, norm_eps=norm_eps
    )
    return ViT(config, shape, seed=3).double().eval()


def images(count: int = 3, shape: ImageShape = SHAPE) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(
        256, (count, shape.channels, shape.size, shape.size), generator=generator
    ).to(torch.uint8)


def shuffled(batch: Tensor, patch: int) -> Tensor:
    """The same patches in another place."""
    rows = batch.shape[2] // patch
    cells = [
        batch[:, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
        for r in range(rows)
        for c in range(rows)
    ]
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(1)).tolist()
    lines = [
        torch.cat([cells[i] for i in order[r * rows : (r + 1) * rows]], 3) for r in range(rows)
    ]
    return torch.cat(lines, 2)


def test_patches_are_cut_row_by_row() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    model = vit(BaselineConfig(), ImageShape(4, 1, 2, 2)).float()
    found = (model.patches(x) + 1) * 127.5
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    torch.testing.assert_close(found[0], torch.tensor(expected).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("residual", [BaselineConfig(), *RESIDUALS])
def test_without_positions_the_place_of_a_patch_does_not_matter(residual: ResidualConfig) -> None:
    x = images()
    bag = vit(residual, replace(SHAPE, positions=False))
    torch.testing.assert_close(bag(x), bag(shuffled(x, 4)), rtol=1e-9, atol=1e-9)
    placed = vit(residual)
    assert (placed(x) - placed(shuffled(x, 4))).abs().max() > 1e-3
    masked = replace(OPEN, attention=AttentionConfig(rope=RopeConfig(fraction=0.0)))
    config = replace(bag.config, mixers=masked)
    causal = ViT(config, replace(SHAPE, positions=False), seed=3).double()
    assert (causal(x) - causal(shuffled(x, 4))).abs().max() > 1e-3


@pytest.mark.parametrize("residual", RESIDUALS, ids=lambda r: r.label)
def test_attnres_starts_as_the_baseline(residual: ResidualConfig) -> None:
    expected = vit(BaselineConfig(), norm_eps=1e-30)(images())
    torch.testing.assert_close(vit(residual, norm_eps=1e-30)(images()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("residual", [BaselineConfig(), *RESIDUALS], ids=lambda r: r.label)
def test_parameters_and_training_flops_are_torchs(
    residual: ResidualConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the residual connection alone is trained."""
    monkeypatch.setattr(ops, "depth_attention", naive.depth_attention)
    monkeypatch.setattr(twophase, "serves", lambda *_: False)
    model = vit(residual).float()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images(2)).sum().backward()
    assert counter.get_total_flops() == 2 * image_training_flops(model.config, SHAPE)
    model.requires_grad_(False)
    model.residual.requires_grad_(True)
    model.embed.register_forward_hook(lambda *call: call[-1].requires_grad_())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images(2)).sum().backward()
    assert counter.get_total_flops() == 2 * image_training_flops(model.config, SHAPE, frozen=True)
    counted = image_params(model.config, SHAPE)
    assert counted.total == sum(p.numel() for p in model.parameters())
    outside = (model.embed.weight, model.positions, model.head.weight)
    assert counted.non_embedding == counted.total - sum(p.numel() for p in outside if p is not None)


def test_the_loss_of_a_double_network_keeps_its_digits(tmp_path: Path) -> None:
    task = make_task(tiny_images(tmp_path))
    pixels, labels = squares(8)
    batch = torch.tensor(pixels)[:, None], torch.tensor(labels).long()
    assert task.loss(task.network().double(), batch).dtype == torch.float64


def test_a_run_learns_and_reports_accuracy(tmp_path: Path) -> None:
    config = tiny_images(tmp_path, budget="40 steps")
    result = run(config, tmp_path / "run").metrics
    assert result["val/accuracy"] > 0.9
    assert result["val/loss"] < 0.7
    assert "val/bpb" not in result
    assert result["tokens"] == 40 * 16 * 4
    shape = config.task.image if isinstance(config.task, ImagesConfig) else SHAPE
    assert result["flops"] == pytest.approx(40 * 16 * image_training_flops(config.model, shape))
    environment = read_json(tmp_path / "run" / "environment.json") or {}
    manifest = read_json(tmp_path / "run" / "artifacts" / "data.json") or {}
    assert environment["data_fingerprint"] == manifest["fingerprint"]
    assert environment["params_total"] == config.params.total


def test_the_accuracy_is_that_of_all_images_whatever_the_batch(tmp_path: Path) -> None:
    """32 images in batches of 5: the last one is smaller."""
    sizes = {"train.batch_size": 5, "budget": "3 steps"}
    config = tiny_images(tmp_path, **sizes)
    result = run(config, tmp_path / "run").metrics
    model = ViT(config.model, config.task.image)  # type: ignore[attr-defined]
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    model.load_state_dict({k.removeprefix("model."): v for k, v in saved["state_dict"].items()})
    x, y = squares(32, seed=1)
    with torch.no_grad():
        logits = model(torch.tensor(x)[:, None])
    right = (logits.argmax(1) == torch.tensor(y)).double().mean()
    assert result["val/accuracy"] == pytest.approx(float(right), abs=1e-12)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y).long())
    assert result["val/loss"] == pytest.approx(float(loss), abs=1e-6)


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_images(tmp_path, **{"model.residual.name": "full", "train.micro_batch_size": 4})
    whole = run(config, tmp_path / "whole").metrics
    parts = run_in_two_parts(config, tmp_path / "parts")[1].metrics
    assert parts["val/loss"] == whole["val/loss"]
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_batches_follow_from_seed_and_step_and_an_epoch_has_every_image(tmp_path: Path) -> None:
    data = ImageDataModule(tiny_images(tmp_path))
    epoch = torch.cat([x for step in range(4) for x, _ in data.train_batch(step, slice(None))])
    expected, _ = squares(64)
    assert np.array_equal(
        sorted(epoch.flatten(1).tolist()), sorted(expected.reshape(64, -1).tolist())
    )
    (whole,) = data.train_batch(2, slice(None))
    parts = [next(data.train_batch(2, slice(rank, None, 2))) for rank in range(2)]
    assert torch.equal(whole[0][1::2], parts[1][0])
    assert torch.equal(whole[1][0::2], parts[0][1])


BAD = [
    ("task.image.patch=3", "task.image.patch: 3 does not divide task.image.size = 8"),
    ("task.image.classes=0", "task.image.classes: 0 is not positive"),
    ("task.image.siz=8", "task.image.siz: unknown key, did you mean 'size'?"),
    ("task.name=image", "task.name: unknown task 'image', did you mean 'images'?"),
    ("task.source={name: folder, path: null}", "task.source.path: task.source.name: folder needs"),
    ("task.source.name=huggingface", "task.source.dataset: task.source.name: huggingface needs"),
    ("task.source={name: idx, splits: [train]}", "task.source.splits: two are expected"),
    ("model.mixers.attention.causal=true", "model.mixers.attention.causal: true hides"),
    ("model.mixers.attention.window=2", "model.mixers.attention.window: it looks back only"),
    ("model.tie_embeddings=true", "model.tie_embeddings: a network for images has no"),
    ("task=language", "model.mixers.attention.causal: false lets a token see the next one"),
    ("model.num_heads=3", "model.num_heads: 3 heads do not divide model.dim = 16"),
    ("model.mixers.pattern=[kda, kda, kda]", "3 entries do not divide model.num_layers = 2"),
    ("model.mlp={name: moe, experts: 2, top_k: 3}", "model.mlp.top_k: 3 is more than"),
]


@pytest.mark.parametrize(("word", "message"), BAD, ids=[word for word, _ in BAD])
def test_bad_input_gets_one_line_with_key_and_remedy(
    word: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        tiny_images(tmp_path, **parse_overrides([word]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_resolved_form_loads_to_the_same(tmp_path: Path) -> None:
    config = tiny_images(tmp_path)
    (tmp_path / "resolved.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "resolved.yaml") == config
    other = tiny_images(tmp_path, **{"task.image.positions": False})
    assert content_hash(other) != content_hash(config)


def test_other_mixers_serve_images_too(tmp_path: Path) -> None:
    """KDA scans the patches in one direction."""
    kda = MixersConfig(("kda",), kda=KDAConfig(head_dim=8))
    config = tiny_images(tmp_path)
    model = ViT(replace(config.model, mixers=kda), SHAPE)
    assert model(images()).shape == (3, SHAPE.classes)


def test_a_model_of_images_writes_no_text(tmp_path: Path) -> None:
    from attnres_lab.training.checkpoint import load_model

    run(tiny_images(tmp_path, budget="1 steps"), tmp_path / "run")
    with pytest.raises(UserError, match=r"a model of task\.name: images writes no text"):
        load_model(tmp_path / "run")


def test_a_report_shows_loss_and_accuracy(tmp_path: Path) -> None:
    """A gain is one of any loss: here of a power law with 1.3 times the compute for Full."""
    import pandas as pd

    rows = [
        {
            "variant": variant,
            "size": f"d{n}",
            "seed": seed,
            "flops": c,
            "val/loss": 0.9 * (c * gain / 1e11) ** -0.2 * (1 + 0.001 * seed),
            "val/accuracy": 0.8 + 0.001 * n,
        }
        for n, c in ((16, 1e11), (24, 2e11), (32, 4e11))
        for variant, gain in (("baseline", 1.0), ("full", 1.3))
        for seed in (0, 1, 2)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "images.csv", index=False)
    report = write_report(str(tmp_path / "images.csv"), tmp_path / "report")
    text = report.markdown.read_text()
    assert "1.3" in report.verdict
    assert "## Accuracy" in text
    assert "0.8320" in text.split("## Accuracy")[1]
