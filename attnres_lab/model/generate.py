"""Decoding with a cache; depth attention runs as in training, on one token at a time.
Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnres_lab.model.transformer import Cache, Transformer


def prefill(model: Transformer, tokens_BT: Tensor, cache: Cache, chunk: int) -> Tensor:
    """Logits [B, V] after the prompt, fed in chunks: the rows of depth attention are then never
    longer than ``chunk`` tokens.
    """
    for piece_BT in torch.split(tokens_BT, chunk, 1):
        logits_BTV = model(piece_BT, cache)
    return logits_BTV[:, -1]  # type: ignore[no-any-return]


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt_BT: Tensor,
    count: int,
    temperature: float = 0.0,
    chunk: int = 512,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield ``count`` times the next token of each sequence, [B]: the likeliest, or with a
    temperature a draw from softmax(logits / temperature).

    Raises ValueError for an empty prompt.
    """
    if not prompt_BT.shape[1]:
        raise ValueError("generate: the prompt is empty; give at least one token")
    cache = model.cache()
    logits_BV = prefill(model, prompt_BT, cache, chunk)
    for left in range(count, 0, -1):
        if temperature > 0:
            token_B = torch.multinomial(
                (logits_BV.float() / temperature).softmax(-1), 1, generator=generator
            )[:, 0]
        else:
            token_B = logits_BV.argmax(-1)
        yield token_B
        if left > 1:
            logits_BV = model(token_B[:, None], cache)[:, -1]
