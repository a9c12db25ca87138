"""lm_eval's shipped tasks, by name, on a folder in the hub's layout: no network."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import tiny
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.data.codec import load_codec
from attnres_lab.errors import UserError
from attnres_lab.evaluation import run as scoring
from attnres_lab.evaluation.harness import _manager, check
from attnres_lab.evaluation.paper import PAPER
from attnres_lab.evaluation.run import Settings, evaluate
from attnres_lab.evaluation.scorer import Scorer
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.training.run import run

pytest.importorskip("lm_eval")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:invalid escape sequence"),
]
SOLUTION = "    return a + b\n"
MATH = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra")
MATH += ("number_theory", "prealgebra", "precalculus")


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path)


def problem(n: int) -> dict[str, str]:
    """A row of MATH."""
    solution = f"It is $\\boxed{{{n}}}$."
    return {
        "problem": f"Find {n}.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": solution,
    }


def program(n: int) -> dict[str, str]:
    """A row of HumanEval."""
    return {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add{n}(a, b):\n    """Add."""\n',
        "canonical_solution": SOLUTION,
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
        "entry_point": f"add{n}",
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two questions a set, with the hub's names of files and columns."""
    home = tmp_path_factory.mktemp("hub")
    one = "00000-of-00001.parquet"
    for subject in ("anatomy", "virology"):
        question = {"subject": subject, "choices": ["one", "two", "three", "four"]}
        for split, count in (("dev", 5), ("test", 2), ("validation", 1)):
            rows = [
                question | {"question": f"{subject} {split} {n}?", "answer": n % 4}
                for n in range(count)
            ]
            write(home / "cais" / "mmlu" / subject / f"{split}-{one}", rows)
    sums = [
        {"question": f"What is {n} + 1?", "answer": f"It is one more.\n#### {n + 1}"}
        for n in range(6)
    ]
    for split in ("train", "test"):
        write(home / "openai" / "gsm8k" / "main" / f"{split}-{one}", sums)
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    questions = [{"Question": f"Why {n}?", "Correct Answer": "so", **wrong} for n in range(3)]
    write(home / "Idavidrein" / "gpqa" / "gpqa_diamond" / f"train-{one}", questions)
    problems = [problem(n) for n in range(5)]
    for subject in MATH:
        for split in ("train", "test"):
            write(home / "EleutherAI" / "hendrycks_math" / subject / f"{split}-{one}", problems)
    programs = [program(n) for n in range(2)]
    write(home / "openai" / "openai_humaneval" / "openai_humaneval" / f"test-{one}", programs)
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("run")
    run(tiny(home, **{"data.seq_len": 512, "data.val_tokens": 512}), home / "run")
    return home / "run"


CASES = {
    "mmlu_anatomy": ("eval/mmlu_anatomy/acc", 2),
    "gsm8k": ("eval/gsm8k/exact_match.strict-match", 6),
    "gpqa_diamond_zeroshot": ("eval/gpqa_diamond_zeroshot/acc", 3),
    "hendrycks_math_algebra": ("eval/hendrycks_math_algebra/exact_match", 5),
    "humaneval": ("eval/humaneval/pass@1.create_test", 2),
}


@pytest.mark.parametrize("task", CASES)
def test_a_shipped_task_runs_on_a_local_copy(task, root, folder):
    key, questions = CASES[task]
    settings = Settings((task,), data=str(root), allow_code=task == "humaneval")
    values = evaluate(folder, settings, again=True)
    assert key in values
    record = json.loads((folder / "artifacts" / "eval" / f"{task}.json").read_text())
    answers = record["answers"][key]
    assert len(answers["scores"]) == questions
    assert sum(answers["scores"]) / questions == pytest.approx(values[key])
    assert (read_json(RunFolder(folder).result) or {})[key] == values[key]


def test_a_group_is_summed_up_over_all_its_questions(root, folder, monkeypatch):
    asked = []

    def known(self, contexts, *_):
        asked.append(len(contexts))
        return ["$2$" if n < 30 else "$9$" for n in range(len(contexts))]

    monkeypatch.setattr(Scorer, "continuations", known)
    values = evaluate(folder, Settings(("hendrycks_math",), data=str(root), shots=1), again=True)
    assert asked == [35]
    key = "eval/hendrycks_math/exact_match"
    assert set(values) == {key, f"{key}_stderr"}
    assert values[key] == pytest.approx(6 / 35)
    record = json.loads((folder / "artifacts" / "eval" / "hendrycks_math.json").read_text())
    assert sum(record["answers"][key]["scores"]) == 6
    assert record["settings"]["shots"] == 1


def test_the_docs_table_is_the_one_of_the_code():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for s in PAPER:
        row = f"| {s.name} | {s.task} | {s.shots} | {s.metric} | {s.data} | "
        assert f"{row}{s.baseline}, {s.attnres} |" in text


def leaves(index, name):
    """The definitions of the tasks below a task, group or tag of lm_eval, as its index has them."""
    own = index[name]
    if own.kind.name == "TAG":
        below = [e.name for e in index.values() if e.kind.name == "TASK" and name in e.tags]
    elif own.kind.name == "GROUP":
        below = own.cfg["task"]
    else:
        return [own.cfg]
    return [leaf for task in below for leaf in leaves(index, task)]


#: How many subjects the papers of these benchmarks name.
TASKS = {"mmlu": 57, "bbh_cot_fewshot": 27, "cmmlu": 67, "ceval-valid": 52, "hendrycks_math": 7}


@pytest.mark.parametrize("suite", PAPER, ids=lambda suite: suite.task)
def test_the_papers_tasks_sets_and_metrics_are_in_lm_evals_own_definitions(suite):
    """Of every task of the suite: its set on the hub, and a metric and filter of the name that we
    look up; a group sums that one up by size. Functions by their names.
    """
    index = _manager(suite.task).task_index
    found = leaves(index, suite.task)
    assert len(found) == TASKS.get(suite.task, 1)
    metric, _, kind = suite.metric.partition(".")
    for task in found:
        assert task["dataset_path"] == suite.data
        names = [str(m["metric"]).rpartition(".")[2] for m in task["metric_list"]]
        assert metric in [n.replace("pass_at_k", "pass@1") for n in names]
        filters = [f["name"] for f in task.get("filter_list", ())] or [""]
        assert kind in filters
    if len(found) > 1:
        sums = index[suite.task].cfg["aggregate_metric_list"]
        (sum_,) = [s for s in sums if s["metric"] == metric]
        assert sum_["weight_by_size"]
        assert sum_.get("filter_list", "") == kind


def test_a_right_answer_counts(root, folder, monkeypatch):
    """A model that knows: the function's body, the sum, and the letter of the choice."""
    knows = {"gsm8k": "#### 3", "humaneval": SOLUTION, "hendrycks_math_algebra": "$2$"}
    for task, text in knows.items():
        monkeypatch.setattr(Scorer, "continuations", lambda *_, text=text: [text] * len(_[1]))
        settings = Settings((task,), data=str(root), allow_code=True)
        values = evaluate(folder, settings, again=True)
        expected = {"gsm8k": 1 / 6, "humaneval": 1.0, "hendrycks_math_algebra": 1 / 5}[task]
        assert values[CASES[task][0]] == pytest.approx(expected)
    codec = load_codec("bytes")
    likes = lambda self, pairs: [(float(a == codec.encode(" B")), False) for _, a in pairs]  # noqa: E731
    monkeypatch.setattr(Scorer, "loglikelihoods", likes)
    values = evaluate(folder, Settings(("mmlu_anatomy",), data=str(root)), again=True)
    assert values["eval/mmlu_anatomy/acc"] == 0.5


def test_every_set_of_the_paper_is_named_where_it_is_missing(folder, tmp_path):
    for suite in PAPER:
        settings = Settings((suite.task,), data=str(tmp_path), allow_code=True)
        with pytest.raises(UserError, match=f"put a copy of the hub's {suite.data} into it") as e:
            evaluate(folder, settings, again=True)
        assert "\n" not in str(e.value)


def test_bad_input_gets_one_line(root, folder, tmp_path):
    def message(*words):
        result = CliRunner().invoke(app, ["eval", str(folder), "--again", *words])
        assert isinstance(result.exception, UserError), result.exception
        return str(result.exception)

    data = ["--data", str(root)]
    assert message("--tasks", "gsm8k", "--data", str(tmp_path / "no")).endswith("no such folder")
    assert "--allow-code: the task runs programs" in message("--tasks", "humaneval", *data)
    assert "has no configuration 'astronomy' here" in message("--tasks", "mmlu_astronomy", *data)
    (tmp_path / "openai" / "gsm8k" / "main").mkdir(parents=True)
    (tmp_path / "openai" / "gsm8k" / "main" / "test-00000-of-00001.parquet").write_bytes(b"no")
    assert "not a Parquet file" in message("--tasks", "gsm8k", "--data", str(tmp_path))
    assert torch.is_grad_enabled()


def test_an_unknown_task_is_named_with_the_nearest_before_anything_is_scored(folder, monkeypatch):
    """And before lm_eval parses all its files, which costs twenty seconds."""
    monkeypatch.setattr(scoring, "load_scorer", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="lm_eval has no task 'gsm8m', did you mean 'gsm8k'"):
        evaluate(folder, Settings(("nano", "gsm8k", "gsm8m")), again=True)


@pytest.mark.slow
def test_names_that_lm_eval_knows_are_let_through():
    """Groups and tags too, by its own index of them."""
    known = _manager("")
    check([*known.all_tasks[::150], *known.all_groups[::10], *known.all_tags[::10]])
