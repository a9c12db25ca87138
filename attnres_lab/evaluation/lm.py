"""Our models as lm_eval sees them. Needs the extra ``eval``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from attnres_lab.evaluation.scorer import Scorer
from attnres_lab.model.generate import Sampling

MAX_NEW = 256  # tokens, where a task does not say; as lm_eval's own


class AttnResLM(TemplateLM):  # type: ignore[misc]
    """lm_eval cuts texts into contexts and continuations; the scorer does the rest."""

    def __init__(self, scorer: Scorer, seed: int = 0) -> None:
        super().__init__()
        self.scorer, self.seed = scorer, seed

    @property
    def eot_token_id(self) -> int:
        return self.scorer.codec.end

    @property
    def prefix_token_id(self) -> int:
        return self.scorer.codec.prefix

    @property
    def tokenizer_name(self) -> str:
        return "attnres"  # names a cache of requests that is not used

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        codec = self.scorer.codec
        tokens = codec.encode(string)
        begun = tokens[: len(codec.start)] == list(codec.start)  # as a chat template writes it
        return tokens if begun or add_special_tokens is False else [*codec.start, *tokens]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        assert self.scorer.codec.chat
        return self.scorer.codec.chat(chat_history)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self.scorer.loglikelihoods([(pair[1], pair[2]) for pair in requests])

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts in windows: each token is predicted once."""
        sums = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.scorer.max_length,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            sums.append(sum(log for log, _ in self.scorer.loglikelihoods(pairs)))
        return sums

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """Requests of equal settings are continued together."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        for rows in groups.values():
            kwargs = dict(normalize_gen_kwargs(requests[rows[0]].args[1], MAX_NEW))
            sampling = Sampling(
                float(kwargs.get("temperature") or 0) if kwargs.get("do_sample") else 0.0,
                int(kwargs.get("top_k") or 0),
                float(kwargs.get("top_p") or 1),
                self.seed,
            )
            contexts = [
                self.tok_encode(requests[row].args[0]) or [self.prefix_token_id] for row in rows
            ]
            stop = [word for word in kwargs["until"] if word]
            new = self.scorer.continuations(contexts, kwargs["max_gen_toks"], stop, sampling)
            for row, text in zip(rows, new, strict=True):
                texts[row] = text
        return texts
