"""The ten benchmarks of Attention Residuals (arXiv 2603.15031, its 48B model after 1.4T tokens), as
tasks of lm_eval.

The paper gives the scores and neither shots nor prompts nor metrics: ``shots`` and ``metric`` are
those in common use and ours to answer for, so a score of ours is to be compared with ours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Suite:
    """``folder`` below lm_eval's tasks; ``data`` is the set's name on the hub; ``baseline`` and
    ``attnres`` are the paper's scores in percent.
    """

    name: str
    task: str
    folder: str
    shots: int
    metric: str
    data: str
    baseline: float
    attnres: float


# fmt: off
PAPER = (
    Suite("MMLU", "mmlu", "mmlu", 5, "acc", "cais/mmlu", 73.5, 74.6),
    Suite("GPQA-Diamond", "gpqa_diamond_zeroshot", "gpqa", 0, "acc", "Idavidrein/gpqa", 36.9, 44.4),
    Suite(
        "BBH", "bbh_cot_fewshot", "bbh", 3,
        "exact_match.get-answer", "SaylorTwift/bbh", 76.3, 78.0,
    ),
    Suite(
        "TriviaQA", "triviaqa", "triviaqa", 5,
        "exact_match.remove_whitespace", "mandarjoshi/trivia_qa", 69.9, 71.8,
    ),
    Suite("GSM8K", "gsm8k", "gsm8k", 5, "exact_match.strict-match", "openai/gsm8k", 81.7, 82.4),
    Suite(
        "Math", "hendrycks_math", "hendrycks_math", 4,
        "exact_match", "EleutherAI/hendrycks_math", 53.5, 57.1,
    ),
    Suite(
        "HumanEval", "humaneval", "humaneval", 0,
        "pass@1.create_test", "openai/openai_humaneval", 59.1, 62.2,
    ),
    Suite("MBPP", "mbpp", "mbpp", 3, "pass_at_1", "google-research-datasets/mbpp", 72.0, 73.9),
    Suite("CMMLU", "cmmlu", "cmmlu", 5, "acc", "haonan-li/cmmlu", 82.0, 82.9),
    Suite("C-Eval", "ceval-valid", "ceval", 5, "acc", "ceval/ceval-exam", 79.6, 82.5),
)
# fmt: on
