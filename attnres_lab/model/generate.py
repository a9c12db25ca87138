"""Decoding with a cache; depth attention runs as in training, on one token at a time.
Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from attnres_lab.model.shards import Shards
from attnres_lab.model.transformer import Cache, Transformer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the likeliest, or with a temperature a draw from softmax(logits
    / temperature), of the ``top_k`` likeliest tokens (0: all) those that are needed for a
    probability of ``top_p`` (arXiv 1904.09751).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """Of each token, [B, V], in fp32."""
        p_BV, order_BV = (logits_BV.float() / self.temperature).softmax(-1).sort(-1, True)
        if self.top_k:
            p_BV[:, self.top_k :] = 0
            p_BV = p_BV / p_BV.sum(-1, keepdim=True)
        p_BV = p_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= self.top_p, 0)
        return torch.zeros_like(p_BV).scatter(-1, order_BV, p_BV / p_BV.sum(-1, keepdim=True))

    def choose(self, logits_BV: Tensor, draws: Sequence[torch.Generator]) -> list[int]:
        """A token of each row; each row draws from a generator of its own."""
        if self.temperature == 0:
            return logits_BV.argmax(-1).tolist()
        below_BV = self.probabilities(logits_BV).double().cumsum(-1)
        u_B1 = torch.stack([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws])
        above = below_BV > u_B1.to(below_BV.device) * below_BV[:, -1:]
        return above.int().argmax(-1).tolist()


GREEDY = Sampling()


@dataclass(frozen=True)
class Reading:
    """How a prompt is read: in pieces of ``chunk`` tokens, and each piece by all processes of
    ``group`` (None: by this one), which read a share of it each.
    """

    chunk: int = 512
    group: Any = None

    def __post_init__(self) -> None:
        """Raises ValueError with the remedy."""
        ranks = distributed.get_world_size(self.group) if self.group is not None else 1
        if self.chunk < 1 or self.chunk % ranks:
            raise ValueError(
                f"chunk: {self.chunk} tokens cannot be shared out over {ranks} processes; give a "
                f"multiple of {ranks}"
            )


@torch.no_grad()
def prefill(
    model: Transformer, tokens_BT: Tensor, cache: Cache, reading: Reading = Reading()
) -> Tensor:
    """Logits [B, V] after the prompt, which goes into ``cache``. The sources of depth attention
    are those of a piece, and with a group of this process's share of it; every process of the
    group calls this with the same tokens, and has the logits and the whole cache in the end.
    """
    for piece_BT in torch.split(tokens_BT, reading.chunk, 1):
        h_BD = _read(model, piece_BT, cache, reading.group)
    logits_BV: Tensor = model.head(h_BD)
    return logits_BV


def _read(model: Transformer, piece_BT: Tensor, cache: Cache, group: Any) -> Tensor:
    """What the head reads, [B, D], after the last token of a piece. A rest that is too short for
    a share each is read by every process.
    """
    share = piece_BT.shape[1] // (distributed.get_world_size(group) if group is not None else 1)
    if group is None or not share:
        return model.through(model.enter(piece_BT), cache)[:, -1]
    shards = Shards(group, share)
    own_BT = piece_BT[:, shards.first : shards.first + share]
    with cache.shared(shards):
        h_BD = model.through(model.enter(own_BT), cache)[:, -1]
    rest_BT = piece_BT[:, share * shards.size :]
    return _read(model, rest_BT, cache, None) if rest_BT.numel() else shards.from_last(h_BD)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    count: int,
    sampling: Sampling = GREEDY,
    reading: Reading = Reading(),
    finished: Callable[[int, int], bool] = lambda row, token: False,
) -> Iterator[list[int | None]]:
    """Yield at each step the next token of each prompt, at most ``count`` of each; None where a
    prompt has none: it is still being read, or ``finished(row, token)`` has ended it.

    All rows stand at the same position, so nothing is padded and any kind of sublayer can keep its
    state: the prompts are read together as far as the shortest reaches, and from there on a longer
    one goes on reading while the others are continued. Row r draws with the seed ``seed + r``, so
    what it gets does not depend on the other rows. Processes of a group that read together go on
    each by itself, to the same tokens. Raises ValueError for an empty prompt.
    """
    if not prompts or not min(map(len, prompts)):
        raise ValueError("generate: the prompt is empty; give at least one token")
    device = model.embed.weight.device
    draws = [torch.Generator().manual_seed(sampling.seed + row) for row in range(len(prompts))]
    left = [count] * len(prompts)
    place = min(map(len, prompts))
    cache = model.cache()
    start = torch.tensor([list(prompt[:place]) for prompt in prompts], device=device)
    logits_BV = prefill(model, start, cache, reading)
    while True:
        unread = [place < len(prompt) for prompt in prompts]
        active = [row for row, reads in enumerate(unread) if not reads and left[row]]
        chosen = dict(
            zip(active, sampling.choose(logits_BV[active], [draws[r] for r in active]), strict=True)
            if active
            else ()
        )
        for row, token in chosen.items():
            left[row] = 0 if finished(row, token) else left[row] - 1
        if chosen:
            yield [chosen.get(row) for row in range(len(prompts))]
        if not any(left):
            return
        step = [
            p[place] if reads else chosen.get(row, 0)
            for row, (p, reads) in enumerate(zip(prompts, unread, strict=True))
        ]
        logits_BV = model(torch.tensor(step, device=device)[:, None], cache)[:, -1]
        place += 1
