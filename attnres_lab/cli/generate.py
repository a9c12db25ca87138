"""``attnres generate``: text from a checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attnres_lab.errors import UserError

if TYPE_CHECKING:
    from attnres_lab.data.codec import Codec


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(generate)


def generate(  # noqa: PLR0913
    checkpoint: Path = typer.Argument(help="A run (a folder, a hash, a name), or a checkpoint."),
    prompt: list[str] = typer.Option([], help="Text to continue; several are continued together."),
    prompts: Path | None = typer.Option(None, help="A file with a prompt on each line."),
    max_new_tokens: int = typer.Option(200, min=1, help="At most so many are written."),
    temperature: float = typer.Option(0.0, min=0.0, help="0: always the most likely token."),
    top_k: int = typer.Option(0, min=0, help="Draw from so many likeliest tokens; 0: all."),
    top_p: float = typer.Option(1.0, min=0.0, max=1.0, help="Draw from those that sum to it."),
    seed: int = typer.Option(0, min=0, help="Of the draws, with a temperature."),
    prefill_chunk: int = typer.Option(512, min=1, help="Tokens of a prompt read at once."),
    chat: bool = typer.Option(False, "--chat", help="Prompts are messages to a chat model."),
) -> None:
    """Continue prompts with a trained model, on the GPU where there is one. A single one is
    written as it grows. Under torchrun the processes share each chunk of a prompt out.
    """
    import torch

    from attnres_lab.data.codec import load_codec
    from attnres_lab.model.generate import Reading, Sampling
    from attnres_lab.model.generate import generate as decoding
    from attnres_lab.training.checkpoint import load_model

    if not temperature and (top_k or top_p < 1):
        raise UserError(
            "--temperature: it is 0, so nothing is drawn; give one with --top-k, --top-p"
        )
    if not (texts := [*prompt, *_lines(prompts)]):
        raise UserError("--prompt: none is given; give one or several, or a file with --prompts")
    model, config = load_model(checkpoint)
    codec = load_codec(config.data.tokenizer)
    tokens = [_encode(text, codec, model.config.vocab_size, chat) for text in texts]
    with _together() as (group, writes):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        try:
            reading = Reading(prefill_chunk, group)
        except ValueError as error:
            raise UserError(f"--prefill-{error}") from None
        steps = decoding(
            model,
            tokens,
            max_new_tokens,
            Sampling(temperature, top_k, top_p, seed),
            reading,
            lambda row, token: token == codec.end,
        )
        with redirect_stdout(sys.stdout if writes else None):
            _write(texts, steps, codec, chat)


@contextmanager
def _together() -> Iterator[tuple[Any, bool]]:
    """The group of processes that torchrun has started (None: there is this one), and whether this
    one writes.
    """
    import torch
    from torch import distributed

    if not distributed.is_torchelastic_launched():
        yield None, True
        return
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield distributed.group.WORLD, distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


def _write(
    texts: Sequence[str], steps: Iterable[list[int | None]], codec: Codec, chat: bool
) -> None:
    """The prompts with their continuations; a single one as it grows."""
    rows: list[list[int]] = [[] for _ in texts]
    shown, written = len(texts) == 1, ""
    if shown:
        print(texts[0], end="\n" if chat else "", flush=True)
    for step in steps:
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None or token == codec.end else [token]
        if shown:
            text = codec.decode(rows[0])
            if not text.endswith("\ufffd"):  # the next token may complete the character
                print(text[len(written) :], end="", flush=True)
                written = text
    if shown:
        print(codec.decode(rows[0])[len(written) :])
        return
    for text, row in zip(texts, rows, strict=True):
        print(f"{text}{chr(10) if chat else ''}{codec.decode(row)}\n{'-' * 40}")


def _lines(path: Path | None) -> Iterable[str]:
    """The prompts of a file. Raises UserError."""
    if path is None:
        return []
    try:
        return [line for line in path.read_text().splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts: {path}: {getattr(error, 'strerror', error)}") from None


def _encode(text: str, codec: Codec, vocab_size: int, chat: bool) -> list[int]:
    """Raises UserError for a prompt that the model cannot read."""
    if not text:
        raise UserError("--prompt: it is empty; give at least one character")
    if chat:
        if codec.chat is None:
            raise UserError("--chat: the run's tokenizer has no chat template; leave --chat out")
        text = codec.chat([{"role": "user", "content": text}])
    tokens = codec.encode(text)
    if tokens[: len(codec.start)] != list(codec.start):
        tokens = [*codec.start, *tokens]
    if max(tokens) >= vocab_size:
        raise UserError(
            f"--prompt: token {max(tokens)} is outside the model's vocabulary of {vocab_size}"
        )
    return tokens
