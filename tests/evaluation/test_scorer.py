"""Batched scoring equals scoring one text at a time, without padding."""

from __future__ import annotations

import pytest
import torch
from helpers import randomise_reads

from attnres_lab.data.codec import load_codec
from attnres_lab.evaluation.scorer import Scorer, encode_pair
from attnres_lab.mixers import MixersConfig
from attnres_lab.mixers.kda import KDAConfig
from attnres_lab.model import ModelConfig, Transformer
from attnres_lab.residual.attnres import BlockConfig, FullConfig
from attnres_lab.residual.baseline import BaselineConfig

CODEC = load_codec("bytes")
KDA = MixersConfig(("kda", "attention"), kda=KDAConfig(head_dim=8))
ARMS = [(BaselineConfig(), MixersConfig()), (FullConfig(), MixersConfig())]
ARMS += [(BlockConfig(block_size=3), KDA)]


def scorer(residual, mixers, batch=3, longest=24):
    """Random queries, so that depth weights matter; logits far apart, so that no tie decides."""
    config = ModelConfig(dim=16, num_layers=2, num_heads=2, residual=residual, mixers=mixers)
    model = Transformer(config, seed=1).double().eval()
    randomise_reads(model)
    with torch.no_grad():
        model.head.weight *= 5
    return Scorer(model, CODEC, longest, batch)


@pytest.mark.parametrize(("residual", "mixers"), ARMS, ids=lambda c: getattr(c, "label", ""))
def test_log_likelihoods_are_those_of_each_text_alone(residual, mixers):
    """Long contexts that lose their beginning, answers that share all but their last token, and an
    answer that is the likeliest one.
    """
    ours = scorer(residual, mixers)
    context = CODEC.encode("some context of the answer")
    alone = torch.tensor([context[-24:]])
    best = [int(ours.model(alone)[0, -1].argmax())]
    pairs = [(context, CODEC.encode(text)) for text in ("a", "b", " longer answer", "ab", "ac")]
    pairs += [([65], [66]), (CODEC.encode("x" * 40), CODEC.encode("yz")), (context, best)]
    found = ours.loglikelihoods(pairs)
    for (before, after), (log, likeliest) in zip(pairs, found, strict=True):
        whole = (before + after)[-25:]
        logs = ours.model(torch.tensor([whole[:-1]])).detach()[0, -len(after) :].log_softmax(-1)
        assert log == pytest.approx(sum(float(logs[i, t]) for i, t in enumerate(after)), abs=1e-5)
        assert likeliest == (logs.argmax(-1).tolist() == after)
    assert [likeliest for _, likeliest in found][-1]
    assert not all(likeliest for _, likeliest in found)


@pytest.mark.parametrize(("residual", "mixers"), ARMS, ids=lambda c: getattr(c, "label", ""))
def test_continuations_are_the_argmax_of_the_full_forward(residual, mixers):
    """Up to a word of ``stop``; contexts that are too long lose their beginning."""
    ours = scorer(residual, mixers)
    texts = ["a", "some words", "b", "others and more of them, too many", "some"]
    contexts = [CODEC.encode(text) for text in texts]
    expected = []
    for context in contexts:
        tokens = context[-16:]
        for _ in range(8):
            tokens = [*tokens, int(ours.model(torch.tensor([tokens]))[0, -1].argmax())]
        new = tokens[len(context[-16:]) :]
        new = new[: new.index(CODEC.end)] if CODEC.end in new else new
        expected.append(CODEC.decode(new))
    assert ours.continuations(contexts, 8, []) == expected
    word = expected[1][3:5]
    cut = [text.split(word)[0] for text in expected]
    assert ours.continuations(contexts, 8, [word]) == cut


def test_a_context_and_its_answer_are_cut_as_lm_eval_cuts_them():
    from lm_eval.api.model import TemplateLM

    class Cut(TemplateLM):
        eot_token_id = CODEC.prefix

        def tok_encode(self, string, add_special_tokens=None, **kwargs):
            return CODEC.encode(string)

        def _loglikelihood_tokens(self, requests, **kwargs):
            return [(context, answer) for _, context, answer in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        generate_until = loglikelihood_rolling

    class Request:
        def __init__(self, *args):
            self.args = args

    texts = [("a b", " c"), ("a b ", "c"), ("", "c"), ("a\n", "c d"), ("é", "é")]
    theirs = Cut().loglikelihood([Request(*pair) for pair in texts], disable_tqdm=True)
    assert [encode_pair(CODEC, *pair) for pair in texts] == theirs
