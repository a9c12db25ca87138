"""Text to token numbers: UTF-8 bytes, or any ``tokenizers`` JSON file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attnres_lab.errors import UserError

#: Ends a document of bytes; no UTF-8 text contains it.
END_BYTE = 0xFF
#: Ends a document of a JSON tokenizer: the first of these that its vocabulary holds, else the
#: tokens of a blank line.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


@dataclass(frozen=True)
class Tokenizer:
    """``encode`` maps documents, as UTF-8, to one token array each, the end of document
    included.
    """

    vocab_size: int
    dtype: str
    encode: Callable[[Sequence[bytes]], list[np.ndarray]]


def tokenizer_content(name: str) -> str:
    """``bytes``, or the SHA-256 of the tokenizer file's content. Raises UserError for a missing
    file.
    """
    if name == "bytes":
        return name
    try:
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"data.tokenizer: {name}: {error.strerror}; give 'bytes' or the path of a tokenizers "
            "JSON file"
        ) from None


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``. Raises UserError for a file that is none."""
    if name == "bytes":
        end = bytes([END_BYTE])
        return Tokenizer(
            256, "|u1", lambda texts: [np.frombuffer(text + end, np.uint8) for text in texts]
        )
    import tokenizers

    try:
        model = tokenizers.Tokenizer.from_file(str(Path(name).expanduser()))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"data.tokenizer: {name}: not a tokenizers JSON file ({error})") from None
    model.no_truncation()
    model.no_padding()
    if not (vocabulary := model.get_vocab()):
        raise UserError(f"data.tokenizer: {name}: its vocabulary is empty; train it first")
    vocab_size = max(vocabulary.values()) + 1
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    known = [vocabulary[token] for token in END_TOKENS if token in vocabulary]
    end_ids = known[:1] or model.encode("\n\n", add_special_tokens=False).ids

    def encode(texts: Sequence[bytes]) -> list[np.ndarray]:
        encodings = model.encode_batch_fast(
            [text.decode() for text in texts], add_special_tokens=False
        )
        return [np.array(encoding.ids + end_ids, dtype) for encoding in encodings]

    return Tokenizer(vocab_size, dtype, encode)
