"""``nano``: questions that tell small models apart, made from the run's own validation text; they
need neither a network nor lm_eval.

nano_shuffle: a line of the text against three shuffles of its words.
nano_next: the line that follows up to three lines, against three lines of elsewhere; per byte.
nano_copy: a word that the text repeats is replaced by an invented name; the name at its second
place against three others.

Chance is one in four. The questions depend on the validation text and the tokenizer alone, so all
runs on one corpus answer the same ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from attnres_lab.data import Corpus
from attnres_lab.data.codec import Codec
from attnres_lab.data.corpus import shard_path
from attnres_lab.evaluation.record import Answers
from attnres_lab.evaluation.scorer import Scorer, encode_pair

QUESTIONS = 400  # of each task
CHOICES = 4  # of each question
MOST_TOKENS = 1 << 20  # of the validation set
WORDS = (5, 16)  # of a line that is shuffled: at least, and those that are taken
NAME = 6  # letters of an invented name


@dataclass(frozen=True)
class Question:
    """The first of the choices is right; ``per_byte``: log-likelihoods are compared per byte."""

    context: str
    choices: tuple[str, ...]
    per_byte: bool = False


def documents(corpus: Corpus, codec: Codec) -> list[str]:
    """The texts of the validation set, or of its first tokens."""
    parts, left = [], MOST_TOKENS
    for shard, size in enumerate(corpus.val_sizes):
        path = shard_path(corpus.folder, shard, "val")
        parts.append(np.fromfile(path, corpus.dtype, min(size, left)))
        left -= len(parts[-1])
    tokens = np.concatenate(parts)
    ends = np.flatnonzero(tokens == codec.end)
    return [
        text
        for piece in np.split(tokens, ends)
        if (text := codec.decode([int(t) for t in piece if t != codec.end]).strip("\n"))
    ]


def _shuffles(texts: list[str], longest: int, draw: random.Random) -> Iterator[Question]:
    lines = [line for text in texts for line in text.splitlines()]
    for line in draw.sample(lines, len(lines)):
        words = line.split()[: WORDS[1]]
        if len(words) < WORDS[0] or len(" ".join(words)) > longest:
            continue
        true, others = " ".join(words), set[str]()
        for _ in range(20):
            others.add(" ".join(draw.sample(words, len(words))))
        if len(wrong := sorted(others - {true})) >= 3:
            yield Question("", (true, *draw.sample(wrong, 3)))


def _nexts(texts: list[str], longest: int, draw: random.Random) -> Iterator[Question]:
    cut = [[line for line in text.splitlines() if line.strip()] for text in texts]
    places = [(d, n) for d, lines in enumerate(cut) for n in range(1, len(lines))]
    for d, n in draw.sample(places, len(places)):
        others = {cut[e][m] for e, m in draw.sample(places, min(8, len(places)))}
        wrong = sorted(others - {cut[d][n]})
        context = "\n".join(cut[d][max(0, n - 3) : n])[-longest // 2 :] + "\n"
        choices = (cut[d][n], *draw.sample(wrong, min(3, len(wrong))))
        if len(choices) == 4 and max(map(len, choices)) <= longest // 2:
            yield Question(context, choices, per_byte=True)


def _copies(texts: list[str], longest: int, draw: random.Random) -> Iterator[Question]:
    found = []
    for text in texts:
        seen: dict[str, int] = {}
        for match in re.finditer(r"[A-Za-z_]{4,}", text):
            word, at = match.group(), match.start()
            if 10 <= at - seen.get(word, -longest) <= longest // 2:
                found.append((text, word, seen[word], at))
            seen[word] = at
    for text, word, first, second in draw.sample(found, len(found)):
        names = tuple(_name(draw) for _ in range(4))
        before = text[max(0, first - longest // 4) : second]
        yield Question(re.sub(rf"\b{word}\b", names[0], before), names)


def _name(draw: random.Random) -> str:
    return "".join(draw.choice(("bdfgklmnprstvz", "aeiou")[n % 2]) for n in range(NAME))


Maker = Callable[[list[str], int, random.Random], Iterator[Question]]
TASKS: dict[str, Maker] = {"nano_shuffle": _shuffles, "nano_next": _nexts, "nano_copy": _copies}


def questions(
    corpus: Corpus, codec: Codec, longest: int, limit: int | None
) -> dict[str, list[Question]]:
    """Of each task at most ``limit`` questions, of at most about ``longest`` characters; a task
    that the text yields none for is left out.
    """
    texts = documents(corpus, codec)
    made = {}
    for task, maker in TASKS.items():
        draw = random.Random(task)
        several = maker(texts, longest, draw)
        made[task] = [q for q, _ in zip(several, range(limit or QUESTIONS), strict=False)]
    return {task: found for task, found in made.items() if found}


def answer(scorer: Scorer, task: str, asked: list[Question]) -> Answers:
    """1 where the right choice is the likeliest, else 0."""
    pairs = [encode_pair(scorer.codec, q.context, choice) for q in asked for choice in q.choices]
    logs = iter(scorer.loglikelihoods(pairs))
    scores = []
    for q in asked:
        of = [next(logs)[0] / (len(choice.encode()) if q.per_byte else 1) for choice in q.choices]
        scores.append(float(of[0] > max(of[1:])))
    return Answers.mean(f"eval/{task}/acc", [f"{q.context}\0{q.choices}" for q in asked], scores)
