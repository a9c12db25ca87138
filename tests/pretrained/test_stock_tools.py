"""What others run on an exported folder, as they ship it: lm_eval's own model of transformers and
transformers' pipeline, where this package cannot be imported.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub import clean, save, tiny
from test_export import randomised

from attnres_lab.data.codec import load_codec
from attnres_lab.evaluation.scorer import Scorer, encode_pair
from attnres_lab.model.generate import generate
from attnres_lab.pretrained import convert, export

TEXTS = ["def add(a, b):\n    return", "The sum of 2 and 3 is", "x", "  a b c", "word " * 9, ""]
ANSWERS = [" A", " B", " yes it is", "\n  1"]
NEW = 12
CLEAN = """
import sys
sys.modules["attnres_lab"] = None
import json, warnings
warnings.simplefilter("ignore")
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

asked = json.load(open("asked.json"))
options = {"device": "cpu", "dtype": "float32", "batch_size": 3, "trust_remote_code": True}
model = HFLM(pretrained="exported", **options)
assert type(model.model).__name__ == "AttnResForCausalLM"
requests = [Instance("loglikelihood", {}, tuple(pair), n) for n, pair in enumerate(asked["pairs"])]
found = {"logs": model.loglikelihood(requests, disable_tqdm=True)}
pipe = transformers.pipeline("text-generation", "exported", trust_remote_code=True, device="cpu")
greedy = {"max_new_tokens": asked["new"], "do_sample": False, "return_full_text": False}
found["texts"] = [pipe(text, **greedy)[0]["generated_text"] for text in asked["texts"]]
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.slow
def test_lm_evals_own_model_and_a_pipeline_load_an_exported_block(tmp_path: Path) -> None:
    """Log-likelihoods of both to 1e-5 (of sums above 1 relative) and their marks of the likeliest
    answers; the greedy text of ours. The queries are random, so that reads matter.
    """
    pytest.importorskip("lm_eval")
    source = save(tiny("llama"), tmp_path / "source")
    block = {"model.residual": {"name": "block", "num_blocks": 3}}
    config = convert(str(source), tmp_path / "run", block)
    model, codec = randomised(tmp_path / "run"), load_codec(config.data.tokenizer)
    export(tmp_path / "run", tmp_path / "exported")
    pairs = [(text, answer) for text in TEXTS for answer in ANSWERS]
    asked = {"pairs": pairs, "texts": TEXTS[:-1], "new": NEW}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    clean(tmp_path, CLEAN)
    found = json.loads((tmp_path / "found.json").read_text())
    own = Scorer(model, codec, 128).loglikelihoods([encode_pair(codec, *pair) for pair in pairs])
    for (log, likeliest), (a, same) in zip(own, found["logs"], strict=True):
        assert log == pytest.approx(a, abs=1e-5 * max(1, abs(a)))
        assert likeliest == same
    for text, new in zip(TEXTS, found["texts"], strict=False):
        steps = generate(
            model, [codec.encode(text)], NEW, finished=lambda _, token: token == codec.end
        )
        tokens = [row[0] for row in steps if row[0] != codec.end]
        assert new == codec.decode(tokens), text
    assert len(set(found["texts"])) > 2
