"""The paper's ten suites by one command, on mock copies of their sets as the hub has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import tiny
from test_hub import SOLUTION, TASKS, leaves, problem, program
from typer.testing import CliRunner

from attnres_lab.cli import app
from attnres_lab.errors import UserError
from attnres_lab.evaluation.harness import _manager
from attnres_lab.evaluation.paper import PAPER
from attnres_lab.runs.folder import RunFolder, read_json
from attnres_lab.training.run import run

pytest.importorskip("lm_eval")
CHOICES = {"A": "one", "B": "two", "C": "three", "D": "four"}
Row = dict[str, Any]
#: Rows of each set, number n of a split, with the hub's names of columns.
ROWS: dict[str, Any] = {
    "mmlu": lambda n: {
        "question": f"Which is {n}?",
        "subject": "any",
        "choices": list(CHOICES.values()),
        "answer": n % 4,
    },
    "gpqa_diamond_zeroshot": lambda n: {
        "Question": f"Why {n}?",
        "Correct Answer": "so",
        **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)},
    },
    "bbh_cot_fewshot": lambda n: {"input": f"not ( True ) and {n} is", "target": "False"},
    "triviaqa": lambda n: {
        "question": f"Who is {n}",
        "answer": {"aliases": [f"Nobody {n}", "No one"], "value": "No one"},
    },
    "gsm8k": lambda n: {"question": f"What is {n} + 1?", "answer": f"More.\n#### {n + 1}"},
    "hendrycks_math": problem,
    "humaneval": program,
    "mbpp": lambda n: {
        "task_id": n,
        "text": "Add two numbers.",
        "code": f"def add(a, b):\n{SOLUTION}",
        "test_list": [f"assert add({n}, {k}) == {n + k}" for k in range(3)],
    },
    "cmmlu": lambda n: {"Question": f"问 {n}？", **CHOICES, "Answer": "ABCD"[n % 4]},
    "ceval-valid": lambda n: {"id": n, "question": f"问 {n}？", **CHOICES, "answer": "B"},
}
QUESTIONS = 2


def write(root: Path, task: str) -> None:
    """The sets of a suite: the splits that its definition names, six rows each; CMMLU's in the
    layout of the hub's own conversion to Parquet, GPQA's as CSV.
    """
    for definition in leaves(_manager(task).task_index, task):
        keys = ("training_split", "validation_split", "test_split", "fewshot_split")
        home = root / definition["dataset_path"]
        name = definition.get("dataset_name") or "default"
        frame = pd.DataFrame([ROWS[task](n) for n in range(6)])
        home.mkdir(parents=True, exist_ok=True)
        if task == "gpqa_diamond_zeroshot":
            frame.to_csv(home / f"{name}.csv", index=False)
            continue
        for split in {definition[key] for key in keys if definition.get(key)}:
            path = home / name / f"{split}-00000-of-00001.parquet"
            if task == "cmmlu":
                path = home / name / split / "0000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            frame.to_parquet(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_papers_ten_suites_run_by_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained tiny model: every suite has its metric and its questions; with a set less the
    command says which, by its name on the hub, and what was scored stays.
    """
    monkeypatch.setattr("attnres_lab.cli.eval._mirror", lambda folder: None)
    run(tiny(tmp_path, budget="1 steps"), tmp_path / "run")
    root, *words = tmp_path / "hub", "eval", str(tmp_path / "run"), "--tasks", "paper"
    words += ["--data", str(root), "--limit", str(QUESTIONS), "--max-length", "64", "--allow-code"]
    last = PAPER[-1]
    for suite in PAPER[:-1]:
        write(root, suite.task)
    stopped = CliRunner().invoke(app, words)
    assert isinstance(stopped.exception, UserError), stopped.output
    assert f"put a copy of the hub's {last.data} into it" in str(stopped.exception)
    write(root, last.task)
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert f"eval/{last.task}/{last.metric}" in result.output
    assert PAPER[0].task not in result.output
    values = read_json(RunFolder(tmp_path / "run").result) or {}
    for suite in PAPER:
        key = f"eval/{suite.task}/{suite.metric}"
        record = json.loads((tmp_path / f"run/artifacts/eval/{suite.task}.json").read_text())
        assert 0 <= values[key] <= 1
        assert len(record["answers"][key]["scores"]) == QUESTIONS * TASKS.get(suite.task, 1)
        assert record["settings"]["shots"] == suite.shots
    assert "has these scores already" in CliRunner().invoke(app, words).output
