"""Text to tokens and back, as a trained model wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnres_lab.data.tokenizer import END_BYTE, END_TOKENS
from attnres_lab.errors import UserError


@dataclass(frozen=True)
class Codec:
    """``encode`` text and ``decode`` tokens; ``end`` is the token that ends a document and
    ``prefix`` the one that text without a context is conditioned on. ``chat`` writes messages
    (``{"role", "content"}``) as the prompt for an answer, where the model has a chat template.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    end: int
    prefix: int
    chat: Callable[[list[dict[str, Any]]], str] | None = None


def load_codec(tokenizer: str) -> Codec:
    """The codec of ``data.tokenizer``: UTF-8 bytes, or a tokenizers JSON file. Raises UserError."""
    if tokenizer == "bytes":
        return Codec(
            lambda text: list(text.encode()),
            lambda tokens: bytes(tokens).decode(errors="replace"),
            END_BYTE,
            END_BYTE,
        )
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_file(str(Path(tokenizer).expanduser()))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"data.tokenizer: {tokenizer}: not a tokenizers JSON file ({error})"
        ) from None
    known = [found for token in END_TOKENS if (found := model.token_to_id(token)) is not None]
    end = (known or model.encode("\n\n", add_special_tokens=False).ids)[0]
    return Codec(
        lambda text: model.encode(text, add_special_tokens=False).ids,
        lambda tokens: model.decode(list(tokens)),
        end,
        end,
    )
