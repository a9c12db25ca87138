"""The small suite: questions are what they say, and a model that knows the text answers them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import write_run
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.config import load
from attnres_lab.data import prepare
from attnres_lab.data.codec import load_codec
from attnres_lab.errors import UserError
from attnres_lab.evaluation import nano
from attnres_lab.evaluation.run import Settings, evaluate
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.training.run import run

CODEC = load_codec("bytes")
TEXT = "def {0}(value):\n    total = value + {0}_offset of the row\n    return {0}(total, value)\n"
NAMES = [f"{a}{b}" for a in ("alpha", "gamma", "delta") for b in ("one", "two", "six", "ten")]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Files of code, each with names of its own."""
    home = tmp_path_factory.mktemp("nano")
    (home / "code").mkdir()
    for name in [f"{a}_{b}" for a in NAMES for b in NAMES]:
        (home / "code" / f"{name}.py").write_text(TEXT.format(name) * 3)
    path = write_run(home / "run.yaml", **{"data.seq_len": 128})
    text = path.read_text().replace("corpus/*.txt", "code/*.py")
    path.write_text(text)
    return load(path)


def test_questions_hold_one_true_choice_and_are_the_same_each_time(config):
    corpus = prepare(config.data)
    made = nano.questions(corpus, CODEC, 128, 50)
    assert made == nano.questions(corpus, CODEC, 128, 50)
    assert set(made) == set(nano.TASKS)
    text = "\0".join(nano.documents(corpus, CODEC))
    lines = {" ".join(line.split()[:16]) for line in text.replace("\0", "\n").splitlines()}
    for q in made["nano_shuffle"]:
        assert q.choices[0] in lines
        assert len(set(q.choices)) == 4
        assert len({tuple(sorted(choice.split())) for choice in q.choices}) == 1
    for q in made["nano_next"]:
        assert q.context + q.choices[0] in text
        assert not any(q.context + choice in text for choice in q.choices[1:])
    for q in made["nano_copy"]:
        assert q.choices[0] in q.context
        assert not any(name in q.context or name in text for name in q.choices[1:])


class Oracle:
    """Likes what ``best`` says, and knows nothing else."""

    codec = CODEC

    def __init__(self, best):
        self.best = best

    def loglikelihoods(self, pairs):
        return [(self.best(CODEC.decode(c), CODEC.decode(a)), False) for c, a in pairs]


def test_answers_are_counted_and_their_error_is_that_of_a_mean(config):
    made = nano.questions(prepare(config.data), CODEC, 128, 50)
    copies = nano.answer(Oracle(lambda c, a: float(a.strip() in c)), "nano_copy", made["nano_copy"])
    assert (copies.value, copies.stderr, copies.key) == (1.0, 0.0, "eval/nano_copy/acc")
    asked = made["nano_shuffle"]
    right = {q.choices[0] for q in asked[:20]}
    some = nano.answer(Oracle(lambda c, a: float(a in right)), "nano_shuffle", asked)
    share = sum(some.scores) / len(asked)
    assert some.value == share >= 20 / len(asked)
    assert some.stderr == pytest.approx((share * (1 - share) / (len(asked) - 1)) ** 0.5)
    ties = nano.answer(Oracle(lambda c, a: 0.0), "nano_copy", made["nano_copy"])
    assert ties.value == 0


def test_scores_go_into_the_result_and_an_artifact_and_are_made_once(config, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNRES_RUNS", str(tmp_path))
    monkeypatch.setattr("attnres_lab.cli.eval._mirror", lambda folder: None)
    folder = tmp_path / "train" / "one"
    run(config, folder)
    before = read_json(RunFolder(folder).result)
    words = ["eval", str(folder), "--tasks", "nano", "--limit", "20"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "eval/nano_copy/acc" in result.output
    after = read_json(RunFolder(folder).result)
    assert after is not None
    assert before is not None
    assert {key: after[key] for key in before} == before
    added = {key: value for key, value in after.items() if key not in before}
    assert set(added) == {f"eval/{t}/acc{e}" for t in nano.TASKS for e in ("", "_stderr")}
    record = json.loads((folder / "artifacts" / "eval" / "nano.json").read_text())
    for key, answers in record["answers"].items():
        assert len(answers["scores"]) == 20
        assert sum(answers["scores"]) / 20 == added[key]
    assert "has these scores already" in CliRunner().invoke(app, words).output
    assert evaluate(folder, Settings(("nano",), limit=10)).keys() == added.keys()  # other settings
    assert run(config, folder).metrics == read_json(RunFolder(folder).result)  # a later look at it


def test_bad_input_gets_one_line(config, tmp_path: Path):
    (tmp_path / "started").mkdir()
    RunFolder(tmp_path / "started").set_status("running")
    with pytest.raises(UserError, match="the run is running; only finished runs are evaluated"):
        evaluate(tmp_path / "started", Settings(("nano",)))
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "started"), "--tasks", ","])
    assert "--tasks: none is given" in str(result.exception)
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "none")])
    assert isinstance(result.exception, UserError)
    run(config, tmp_path / "done")
    with pytest.raises(UserError, match="chat: the run's tokenizer has no chat template"):
        evaluate(tmp_path / "done", Settings(("nano",), chat=True))
