"""``attnres generate``: text from a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attnres_lab.errors import UserError

if TYPE_CHECKING:
    from attnres_lab.config import RunConfig
    from attnres_lab.model import Transformer


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(generate)


def generate(
    checkpoint: Path = typer.Argument(help="A checkpoint, or the folder of a run."),
    prompt: str = typer.Option(..., help="Text to continue."),
    max_new_tokens: int = typer.Option(200, min=1),
    temperature: float = typer.Option(0.0, min=0.0, help="0: always the most likely token."),
    seed: int = typer.Option(0, help="Of the draws, with a temperature."),
    chunk: int = typer.Option(512, min=1, help="Tokens of the prompt that are read at once."),
) -> None:
    """Continue a prompt with a trained model, on the GPU where there is one."""
    import torch

    from attnres_lab.model import generate as decoding

    model, config = load_model(checkpoint)
    encode, decode = codec(config.data.tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = encode(prompt)
    if not tokens:
        raise UserError("--prompt: it is empty; give at least one character")
    if max(tokens) >= model.config.vocab_size:
        raise UserError(
            f"--prompt: token {max(tokens)} is outside the model's vocabulary of "
            f"{model.config.vocab_size}"
        )
    draws = torch.Generator(device).manual_seed(seed)
    start = torch.tensor([tokens], device=device)
    new = [
        int(token)
        for token in decoding.generate(
            model.to(device), start, max_new_tokens, temperature, chunk, draws
        )
    ]
    print(prompt + decode(new))


def load_model(path: Path) -> tuple[Transformer, RunConfig]:
    """The model and config of a checkpoint: tensors and plain values only, no code is run. Raises
    UserError.
    """
    import tempfile

    import torch

    from attnres_lab.config import load
    from attnres_lab.model import Transformer

    path = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    try:
        content: dict[str, Any] = torch.load(
            io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True
        )
        text, weights = content["config"], content.get("model") or content["state_dict"]
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a checkpoint or the folder of a run"
        ) from None
    # torch.load raises half a dozen types on files that are no checkpoint
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of a training run ({type(error).__name__})"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text)
        config = load(file)
    if config.task.name != "language":
        raise UserError(f"{path}: a model of task.name: {config.task.name} writes no text")
    model = Transformer(config.model)
    try:
        model.load_state_dict({key.removeprefix("model."): value for key, value in weights.items()})
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit the config in the checkpoint "
            f"({str(error).splitlines()[0]})"
        ) from None
    return model.eval(), config


def codec(tokenizer: str) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    """Text to tokens and back: UTF-8 bytes, or a tokenizers JSON file. Raises UserError."""
    if tokenizer == "bytes":
        return lambda text: list(text.encode()), lambda tokens: bytes(tokens).decode(
            errors="replace"
        )
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_file(str(Path(tokenizer).expanduser()))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"data.tokenizer: {tokenizer}: not a tokenizers JSON file ({error})"
        ) from None
    return lambda text: model.encode(text, add_special_tokens=False).ids, model.decode
