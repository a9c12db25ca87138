"""Decoding: incremental equals full, chunks change nothing, and the command continues a prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import randomise_reads
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.config import RunConfig, to_yaml
from attnres_lab.data.tokenizer import END_BYTE
from attnres_lab.errors import UserError
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.model.generate import Reading, Sampling, generate, prefill
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig
from attnres_lab.training.checkpoint import load_model

VARIANTS = [BaselineConfig(), FullConfig(), BlockConfig(block_size=3), BlockConfig(num_blocks=1)]


def model_of(residual, **sizes):
    """In float64 with random queries, so that depth weights matter."""
    model = (
        Transformer(
            ModelConfig(
                vocab_size=256, dim=16, num_layers=4, num_heads=2, residual=residual, **sizes
            )
        )
        .double()
        .eval()
    )
    randomise_reads(model)
    return model


@pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
@pytest.mark.parametrize("chunk", [1, 3, 4, 64])
def test_reading_in_chunks_equals_the_full_forward(residual, chunk):
    """Logits of every position, whatever the pieces, to 1e-9 in float64."""
    model, tokens = model_of(residual, num_kv_heads=1), torch.arange(22).view(2, 11) * 7 % 256
    cache = model.cache()
    with torch.no_grad():
        whole = model(tokens)
        pieces = torch.cat([model(piece, cache) for piece in tokens.split(chunk, 1)], 1)
        torch.testing.assert_close(pieces, whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            prefill(model, tokens, model.cache(), Reading(chunk)),
            whole[:, -1],
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
def test_greedy_decoding_takes_the_argmax_of_the_full_forward(residual):
    model, tokens = model_of(residual), torch.tensor([[1, 2, 3], [200, 100, 50]])
    new = torch.tensor(list(generate(model, tokens.tolist(), 6))).T
    for _ in range(6):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    assert new.tolist() == tokens[:, 3:].tolist()


@pytest.mark.parametrize("residual", VARIANTS, ids=lambda r: r.label)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_among_others_gets_what_it_gets_alone(residual, temperature):
    """Prompts of different lengths, some that end early; a row's seed is its own."""
    model = model_of(residual)
    prompts = [[1, 2, 3, 4, 5, 6], [9], [7, 8, 9], [9]]

    def texts(prompts, seed):
        rows = [[] for _ in prompts]
        ended = lambda row, token: token % 7 == 0  # noqa: E731
        for step in generate(
            model, prompts, 9, Sampling(temperature, seed=seed), Reading(2), ended
        ):
            for row, token in zip(rows, step, strict=True):
                row += [] if token is None else [token]
        return rows

    together = texts(prompts, 5)
    assert together == [texts([prompt], 5 + row)[0] for row, prompt in enumerate(prompts)]
    assert any(len(row) < 9 for row in together)
    assert (together[1] == together[3]) == (temperature == 0)


def test_draws_follow_the_seed_and_a_low_temperature_is_greedy():
    model = model_of(FullConfig())

    def draw(temperature, seed):
        return list(generate(model, [[5, 6]], 8, Sampling(temperature, seed=seed)))

    assert draw(1.0, 1) == draw(1.0, 1) != draw(1.0, 2)
    assert draw(1e-4, 1) == draw(0.0, 2)


def test_draws_have_the_probabilities_of_the_softmax():
    """Pearson's chi-squared over 4000 draws of one token, 8 outcomes: below 29.9 in all but one of
    10 000 seeds.
    """
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=8, dim=8, num_layers=1, num_heads=1)).double()
    tokens = torch.tensor([[3, 4]])
    expected = (model(tokens)[0, -1].detach() / 2.0).softmax(-1) * 4000
    drawn = torch.tensor(next(generate(model, [[3, 4]] * 4000, 1, Sampling(2.0, seed=4))))
    assert float(((drawn.bincount(minlength=8) - expected) ** 2 / expected).sum()) < 29.9


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.5), (1, 1.0)])
def test_probabilities_are_those_of_transformers(top_k, top_p):
    warpers = pytest.importorskip("transformers").generation.logits_process
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(1))
    expected = warpers.TemperatureLogitsWarper(0.7)(None, logits)
    expected = warpers.TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = warpers.TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    ours = Sampling(0.7, top_k, top_p).probabilities(logits)
    torch.testing.assert_close(ours, expected.softmax(-1))


def save(path, layout):
    config = RunConfig(
        model=ModelConfig(dim=16, num_layers=2, num_heads=2, residual=BlockConfig(block_size=3))
    )
    model = Transformer(config.model, seed=4)
    weights = model.state_dict()
    content = (
        {"model": weights}
        if layout == "plain"
        else {"state_dict": {f"model.{key}": value for key, value in weights.items()}}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"config": to_yaml(config), **content}, path)
    return model


@pytest.mark.parametrize("layout", ["plain", "lightning"])
def test_the_command_continues_the_prompt_from_either_layout_of_checkpoint(tmp_path, layout):
    model = save(tmp_path / "checkpoints" / "last.ckpt", layout)
    tokens = list("def é".encode())
    expected = bytes(token for (token,) in generate(model, [tokens], 12))
    expected = expected.split(bytes([END_BYTE]))[0].decode(errors="replace")
    for place in (tmp_path, tmp_path / "checkpoints" / "last.ckpt"):
        result = CliRunner().invoke(
            app,
            [
                "generate",
                str(place),
                "--prompt",
                "def é",
                "--max-new-tokens",
                "12",
                "--prefill-chunk",
                "2",
            ],
        )
        assert result.exit_code == 0
        assert result.stdout == "def é" + expected + "\n"


def test_prompts_from_a_file_are_continued_beside_those_of_the_command_line(tmp_path):
    save(tmp_path / "good.ckpt", "plain")
    (tmp_path / "more.txt").write_text("two\n\nthree three\n")
    common = ["generate", str(tmp_path / "good.ckpt"), "--max-new-tokens", "9"]

    def text(*words):
        return CliRunner().invoke(app, [*common, *words], catch_exceptions=False).stdout

    alone = [text("--prompt", prompt) for prompt in ("one", "two", "three three")]
    together = text("--prompt", "one", "--prompts", str(tmp_path / "more.txt"))
    assert together == "".join(f"{part}{'-' * 40}\n" for part in alone)


def test_a_run_goes_by_its_name_as_in_the_other_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    run = tmp_path / "sweeps" / "s" / "trials" / "3f2a00000000"
    model = save(run / "checkpoints" / "last.ckpt", "plain")
    (run / "status.json").write_text('{"state": "finished"}')
    for name in ("3f2a", "sweeps/s/trials/3f2a00000000"):
        found, _ = load_model(Path(name))
        torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)
    with pytest.raises(UserError, match=r"4b: no run folder, and no run is called so"):
        load_model(Path("4b"))


def test_a_config_that_cannot_be_read_is_named_by_its_checkpoint(tmp_path):
    """A variant of a package that is not installed here, for example."""
    save(file := tmp_path / "one.ckpt", "plain")
    content = torch.load(file, weights_only=True)
    content["config"] = content["config"].replace("name: block", "name: theirs")
    torch.save(content, file)
    with pytest.raises(UserError) as error:
        load_model(file)
    assert str(error.value).startswith(f"{file}: its config:")
    assert "unknown variant 'theirs'" in str(error.value)


def test_bad_input_gets_one_line(tmp_path):
    with pytest.raises(UserError, match=r"missing\.ckpt: No such file"):
        load_model(tmp_path / "missing.ckpt")
    (tmp_path / "noise").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="noise: not a checkpoint of a training run"):
        load_model(tmp_path / "noise")
    save(tmp_path / "good.ckpt", "plain")
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    content["model"]["norm.weight"] = torch.ones(3)
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt: the weights do not fit"):
        load_model(tmp_path / "other.ckpt")
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "good.ckpt"), "--prompt", ""])
    assert isinstance(result.exception, UserError)
    for words, message in (
        (["--prompt", "a", "--chat"], "--chat: the run's tokenizer has no chat template"),
        (["--prompt", "a", "--top-k", "3"], "--temperature: it is 0, so nothing is drawn"),
        (["--prompts", str(tmp_path / "none.txt")], "none.txt: No such file or directory"),
        ([], "--prompt: none is given"),
    ):
        result = CliRunner().invoke(app, ["generate", str(tmp_path / "good.ckpt"), *words])
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(generate(model_of(FullConfig()), [[]], 1))
