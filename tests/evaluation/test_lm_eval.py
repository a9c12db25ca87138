"""Our models under lm_eval, beside lm_eval's own model of transformers with the same weights."""

from __future__ import annotations

import pytest
import torch

from attnres_lab.data.codec import load_codec
from attnres_lab.evaluation.run import Settings, load_scorer
from attnres_lab.evaluation.scorer import Scorer
from attnres_lab.pretrained import convert

pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TEXTS = ["def add(a, b):\n    return", "The sum of 2 and 3 is", "x", "  a b c", "word " * 9]


def llama():
    """Grouped queries, untied; logits far apart, so that no tie decides."""
    config = transformers.LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value) * (0.3 if value.ndim > 1 else 1.0))
    return model


def tokenizer(folder, *, begins: bool):
    """Bytes and special tokens; ``begins``: every text begins with <s>, as Llama's do."""
    import tokenizers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {c: i for i, c in enumerate(alphabet, 3)}
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = tokenizers.decoders.ByteLevel()
    if begins:
        bare.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    special = {"eos_token": "</s>", "pad_token": "<pad>"} | ({"bos_token": "<s>"} if begins else {})
    found = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, **special)
    found.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    found.save_pretrained(folder)
    return found


@pytest.fixture(params=[("baseline", False), ("full", True)], ids=["plain", "begins"])
def pair(request, tmp_path):
    """lm_eval's own model, and ours with its weights by way of the converter."""
    from lm_eval.models.huggingface import HFLM

    from attnres_lab.evaluation.lm import AttnResLM

    residual, begins = request.param
    model, words = llama(), tokenizer(tmp_path / "theirs", begins=begins)
    model.save_pretrained(tmp_path / "theirs")
    theirs = HFLM(model, tokenizer=words, batch_size=3, device="cpu", max_length=64)
    convert(str(tmp_path / "theirs"), tmp_path / "ours", {"model.residual.name": residual})
    scorer, _ = load_scorer(tmp_path / "ours", Settings(("gsm8k",), batch_size=3))
    assert scorer.max_length == 64
    return theirs, AttnResLM(scorer)


class Request:
    """What lm_eval hands over of an instance."""

    def __init__(self, *args):
        self.args = args
        self.arguments = args


def test_log_likelihoods_and_greedy_marks_agree(pair):
    theirs, own = pair
    assert own.prefix_token_id == theirs.prefix_token_id
    assert own.eot_token_id == theirs.eot_token_id
    requests = [
        Request(text, answer)
        for text in [*TEXTS, "", "long " * 20]
        for answer in (" A", " B", " yes it is", "\n  1")
    ]
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = own.loglikelihood(requests)
    for (a, same), (b, likeliest) in zip(expected, found, strict=True):
        assert b == pytest.approx(a, abs=1e-5 * max(1, abs(a)))
        assert same == likeliest
    rolling = [Request(text) for text in [*TEXTS, "long text " * 15]]
    expected = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    assert own.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-5)


def test_generations_agree(pair):
    theirs, own = pair
    settings = [
        {"until": ["\n", "e"], "max_gen_toks": 20, "do_sample": False},
        {"until": [], "max_gen_toks": 12},
    ]
    requests = [Request(text, dict(s)) for text in [*TEXTS, "long " * 20] for s in settings]
    expected = theirs.generate_until(requests, disable_tqdm=True)
    assert own.generate_until(requests) == expected
    assert len({len(text) for text in expected}) > 3


def test_a_chat_template_is_that_of_transformers(pair, tmp_path):
    _, own = pair
    messages = [{"role": "user", "content": "hello"}]
    assert own.apply_chat_template(messages) == "[user] hello "
    home = tmp_path / "theirs"
    bare = load_codec(str(home / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (home / name).unlink(missing_ok=True)
    plain = load_codec(str(home / "tokenizer.json"))
    assert plain.chat is None
    assert plain.encode("a b") == bare.encode("a b")


@pytest.mark.parametrize("bug", ["left", "shifted", "kept"])
def test_planted_bugs_are_seen(pair, bug, monkeypatch):
    """Padding on the left, log-likelihoods of the neighbours, a cache that is not emptied."""
    scorer = pair[1].scorer
    if bug == "left":

        def padded(self, reads):
            longest = max(map(len, reads))
            rows = [[0] * (longest - len(read)) + list(read) for read in reads]
            return self.model(torch.tensor(rows))

        monkeypatch.setattr(Scorer, "_logits", padded)
    elif bug == "shifted":
        plain = Scorer._logits
        monkeypatch.setattr(Scorer, "_logits", lambda s, reads: plain(s, reads).roll(1, 1))
    else:
        cache = scorer.model.cache()
        monkeypatch.setattr(scorer.model, "cache", lambda: cache)
    check = test_generations_agree if bug == "kept" else test_log_likelihoods_and_greedy_marks_agree
    with pytest.raises((AssertionError, RuntimeError)):  # a cache of another batch does not fit
        check(pair)
