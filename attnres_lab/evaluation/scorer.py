"""What a language model makes of texts: log-likelihoods in batches, and greedy or drawn
continuations.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from attnres_lab.data.codec import Codec
from attnres_lab.model import Transformer
from attnres_lab.model.generate import GREEDY, Sampling, generate

Pair = tuple[list[int], list[int]]


def encode_pair(codec: Codec, context: str, continuation: str) -> Pair:
    """Tokens of a context and of its continuation, cut as lm_eval cuts them: encoded together, with
    the spaces between them on the right; without a context after the prefix token.
    """
    if not context:
        return [codec.prefix], codec.encode(continuation)
    bare = context.rstrip()
    both, before = codec.encode(context + continuation), codec.encode(bare or context)
    return before, both[len(before) :]


@dataclass(frozen=True)
class Scorer:
    """A model with its codec; ``max_length`` is the most tokens that it reads at once, ``batch``
    the sequences of a forward pass.
    """

    model: Transformer
    codec: Codec
    max_length: int
    batch: int = 16

    @torch.inference_mode()
    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """Of each context and continuation, both with a token at least: the log-likelihood of the
        continuation in nats, and whether each of its tokens is the likeliest.

        What is too long loses its beginning. Sequences are batched by length, the longest first,
        and padded on the right, where a causal model does not look; those that differ in the last
        token alone (the answers A to D) are read once.
        """
        wanted: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            whole = (context + continuation)[-(self.max_length + 1) :]
            wanted.setdefault(tuple(whole[:-1]), []).append(index)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        ordered = sorted(wanted, key=lambda read: (-len(read), read))
        for start in range(0, len(ordered), self.batch):
            reads = ordered[start : start + self.batch]
            for read, logits_TV in zip(reads, self._logits(reads), strict=True):
                for index in wanted[read]:
                    targets = torch.tensor(pairs[index][1][-len(read) :], device=logits_TV.device)
                    ends_TV = logits_TV[len(read) - len(targets) : len(read)]
                    logs_T = F.log_softmax(ends_TV.float(), -1).gather(1, targets[:, None])
                    likeliest = bool((ends_TV.argmax(-1) == targets).all())
                    found[index] = (float(logs_T.double().sum()), likeliest)
        return found

    def _logits(self, reads: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """[B, T, V], of which row b is good for as many positions as it has tokens."""
        longest = max(map(len, reads))
        padded = [list(read) + [0] * (longest - len(read)) for read in reads]
        logits_BTV: torch.Tensor = self.model(torch.tensor(padded, device=self.device))
        return logits_BTV

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embed.weight.device

    def continuations(
        self,
        contexts: Sequence[list[int]],
        count: int,
        stop: Sequence[str],
        sampling: Sampling = GREEDY,
    ) -> list[str]:
        """Of each context the text of at most ``count`` further tokens, up to the first of ``stop``
        or the end of the document. Contexts are batched by length; each is read whole, from its
        first position on, and loses its beginning where it is too long.
        """
        room = self.max_length - (count if count < self.max_length else self.max_length // 2)
        count = min(count, self.max_length - room)
        order = sorted(range(len(contexts)), key=lambda index: -len(contexts[index]))
        texts = [""] * len(contexts)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            draws = replace(sampling, seed=sampling.seed + start)
            prompts = [contexts[index][-room:] for index in rows]
            for index, text in zip(rows, self._continue(prompts, count, stop, draws), strict=True):
                texts[index] = text
        return texts

    def _continue(
        self, prompts: Sequence[list[int]], count: int, stop: Sequence[str], sampling: Sampling
    ) -> Iterator[str]:
        new: list[list[int]] = [[] for _ in prompts]
        tail = 4 * max(map(len, stop), default=0) + 8  # tokens that hold the longest word of stop

        def finished(row: int, token: int) -> bool:
            if token == self.codec.end:
                return True
            new[row].append(token)
            text = self.codec.decode(new[row][-tail:])
            return any(word in text for word in stop)

        for _ in generate(self.model, prompts, count, sampling, finished=finished):
            pass
        for tokens in new:
            text = self.codec.decode(tokens)
            for word in stop:
                text = text.split(word)[0]
            yield text
