"""Text to tokens and back, as a trained model wants it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from attnres_lab.data.tokenizer import END_BYTE, END_TOKENS
from attnres_lab.errors import UserError

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Codec:
    """``encode`` text and ``decode`` tokens; ``end`` is the token that ends a document, ``prefix``
    the one that a text without a context is conditioned on, and ``start`` are those that every text
    begins with. ``chat`` writes messages (``{"role", "content"}``) as the prompt for an answer,
    where the model has a chat template.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    end: int
    prefix: int
    start: tuple[int, ...] = ()
    chat: Callable[[Messages], str] | None = None


def load_codec(tokenizer: str) -> Codec:
    """The codec of ``data.tokenizer``: UTF-8 bytes, or a tokenizers JSON file, with what a
    ``tokenizer_config.json`` of transformers beside it says of special tokens and a chat template.
    Raises UserError.
    """
    if tokenizer == "bytes":
        return Codec(
            lambda text: list(text.encode()),
            lambda tokens: bytes(tokens).decode(errors="replace"),
            END_BYTE,
            END_BYTE,
        )
    import tokenizers

    path = Path(tokenizer).expanduser()
    try:
        model = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(
            f"data.tokenizer: {tokenizer}: not a tokenizers JSON file ({error})"
        ) from None

    def encode(text: str) -> list[int]:
        return model.encode(text, add_special_tokens=False).ids

    said = _said(path.parent)
    known = [model.token_to_id(token) for token in (said.get("eos"), *END_TOKENS) if token]
    end = [token for token in known if token is not None] or encode("\n\n")
    first = model.token_to_id(said["bos"]) if "bos" in said else None
    whole, plain = model.encode("a").ids, encode("a")
    return Codec(
        encode,
        lambda tokens: model.decode(list(tokens)),
        end[0],
        end[0] if first is None else first,
        tuple(whole[: whole.index(plain[0])]) if plain and plain[0] in whole else (),
        _chat(path.parent) if "chat" in said else None,
    )


def _said(folder: Path) -> dict[str, str]:
    """``eos``, ``bos`` and ``chat`` as far as transformers' files in the folder say them."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise UserError(f"{folder / 'tokenizer_config.json'}: not JSON") from None
    found = {}
    for kind in ("eos", "bos"):
        token = config.get(f"{kind}_token")
        if token := token.get("content") if isinstance(token, dict) else token:
            found[kind] = token
    if (folder / "chat_template.jinja").is_file() or config.get("chat_template"):
        found["chat"] = "yes"
    return found


def _chat(folder: Path) -> Callable[[Messages], str]:
    """The chat template in a folder of transformers (the extra ``hf``)."""

    @lru_cache
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def chat(messages: Messages) -> str:
        text: str = tokenizer().apply_chat_template(
            messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
        )
        return text

    return chat
