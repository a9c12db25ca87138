"""``attnres generate``: text from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from attnres_lab.errors import UserError


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
    from attnres_lab.training.checkpoint import load_model

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
