"""The equations of arXiv 2603.15031, section 3, written a second time from the paper: no code is
shared with the package.

Sources and hidden states are [..., D] tensors; everything is spelled out source by source, head by
head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Read:
    """Pseudo-query and key gain of one read (``gain`` None: keys are not normalised) and the
    options of the paper's ablations.
    """

    query: Tensor | None
    gain: Tensor | None
    eps: float
    heads: int = 1
    temperature: float = 1.0
    sigmoid: bool = False
    projection: Tensor | None = None  # D x D: the query is this times the normalised newest source
    scalars: Tensor | None = None  # static mixing: a logit per source, the same for all tokens

    def weights(self, sources: Sequence[Tensor], head: slice) -> list[Tensor]:
        """One [...] weight per source for the channels ``head``."""
        logits = []
        for i, v in enumerate(sources):
            if self.scalars is not None:
                logits.append(self.scalars[i].expand(v.shape[:-1]))
                continue
            key = (
                v
                if self.gain is None
                else self.gain * v / torch.sqrt((v**2).mean(-1, keepdim=True) + self.eps)
            )
            query = self.query
            if self.projection is not None:
                newest = sources[-1]
                newest = newest / torch.sqrt((newest**2).mean(-1, keepdim=True) + self.eps)
                query = torch.stack([(row * newest).sum(-1) for row in self.projection], -1)
            assert query is not None
            logits.append((query * key)[..., head].sum(-1) / self.temperature)
        if self.sigmoid:
            return [1 / (1 + torch.exp(-z)) for z in logits]
        top = torch.stack(logits).amax(0).detach()
        powers = [torch.exp(z - top) for z in logits]
        return [p / sum(powers) for p in powers]

    def __call__(self, sources: Sequence[Tensor]) -> Tensor:
        """h = sum_i alpha_i v_i: the raw sources, not the normalised ones."""
        width = sources[0].shape[-1] // self.heads
        parts = []
        for n in range(self.heads):
            head = slice(n * width, (n + 1) * width)
            alpha = self.weights(sources, head)
            parts.append(
                sum(a[..., None] * v[..., head] for a, v in zip(alpha, sources, strict=True))
            )
        return torch.cat(parts, -1)


Sublayer = Callable[[Tensor], Tensor]


def full(
    x: Tensor, sublayers: Sequence[Sublayer], reads: Sequence[Read], window: int | None = None
) -> Tensor:
    """Full AttnRes: v_0 the embedding, v_i = f_i(h_i). ``reads[l - 2]`` is that of sublayer l >= 2,
    the last one the output's.
    """
    v = [x]
    for l, f in enumerate(sublayers, 1):  # noqa: E741  the paper's letter
        h = x if l == 1 else reads[l - 2](_latest(v, window))
        v.append(f(h))
    return reads[-1](_latest(v, window))


def _latest(v: list[Tensor], window: int | None) -> list[Tensor]:
    return v if window is None else v[:1] + v[1:][-window:]


def block(
    x: Tensor, sublayers: Sequence[Sublayer], reads: Sequence[Read], sizes: Sequence[int]
) -> Tensor:
    """Block AttnRes with blocks of the given sizes, in sublayers."""
    assert sum(sizes) == len(sublayers)
    todo = list(zip(sublayers, [None, *reads[:-1]], strict=True))
    b = [x]
    for size in sizes:
        outputs: list[Tensor] = []
        for f, read in todo[:size]:
            sources = list(b)
            if outputs:
                sources.append(torch.stack(outputs).sum(0))
            h = x if read is None else read(sources)
            outputs.append(f(h))
        todo = todo[size:]
        b.append(torch.stack(outputs).sum(0))
    return reads[-1](b)
