"""Text that cannot be read, a bad tokenizer, a corpus too short: each is named, with what helps."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
from text_files import config, write

from attnres_lab.data import prepare
from attnres_lab.errors import UserError

BAD = {
    "a glob that matches nothing": ({}, "*.txt", r"data.source.paths: '.*\*.txt' matches no file"),
    "a folder": ({"folder/x.txt": b"x"}, "folder", r"it is a folder; write .*folder/\*\*/\*.txt"),
    "no text": (
        {"a.txt": b"", "b.txt": b""},
        "*.txt",
        "the corpus is empty: no document holds any text",
    ),
    "one document": (
        {"a.txt": b"x" * 100},
        "a.txt",
        r"data.val_fraction: none of 1 documents falls into the (train|val) split",
    ),
    "not UTF-8": (
        {"a.txt": b"x" * 70_000 + b"\n" + b"caf\xe9 au lait"},
        "a.txt",
        r"a.txt: byte 70004 is not UTF-8 text; convert the file",
    ),
    "no field": (
        {"a.jsonl": b'{"text": "x"}\n{"body": "y", "id": 1}\n'},
        "a.jsonl",
        r"a.jsonl: line 2 has no text in a field 'text', but body \(str\)",
    ),
    "no text in the field": (
        {"a.jsonl": b'{"text": 3}\n'},
        "a.jsonl",
        r"a.jsonl: line 1 has no text in a field 'text', but text \(int\)",
    ),
    "not an object": (
        {"a.jsonl": b"[1]\n"},
        "a.jsonl",
        "a.jsonl: line 1 has no text in a field 'text', but list",
    ),
    "not JSON": (
        {"a.jsonl": b'{"text": "x"}\n{"text": \n'},
        "a.jsonl",
        "a.jsonl: line 2 is not JSON",
    ),
    "not gzip": ({"a.jsonl.gz": b"hello"}, "a.jsonl.gz", "a.jsonl.gz: cannot be read"),
    "half a gzip": (
        {"a.jsonl.gz": gzip.compress(b'{"text": "x"}\n' * 9000)[:-20]},
        "a.jsonl.gz",
        "a.jsonl.gz: cannot be read",
    ),
    "not Parquet": ({"a.parquet": b"hello"}, "a.parquet", "a.parquet: not readable as Parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_named(tmp_path: Path, case: str) -> None:
    files, pattern, message = BAD[case]
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        prepare(config(tmp_path, pattern))


def test_a_parquet_file_without_the_field_lists_its_columns(tmp_path: Path) -> None:
    settings = config(tmp_path, write(tmp_path, "parquet"))
    with pytest.raises(
        UserError,
        match=r"a.parquet: row 1 has no text in a field 'body', but id \(int\), text \(str\)",
    ):
        prepare(replace(settings, source=replace(settings.source, text_field="body")))


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_bad_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        UserError,
        match=r"data.tokenizer: .*tokenizer.json: (No such file|not a tokenizers JSON file)",
    ):
        prepare(config(tmp_path, write(tmp_path, "jsonl"), tokenizer=str(path)))


def test_a_tokenizer_without_a_vocabulary_is_named(tmp_path: Path) -> None:
    """As the library makes one before it is trained."""
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(
        UserError, match=r"tokenizer\.json: its vocabulary is empty; train it first"
    ):
        prepare(config(tmp_path, write(tmp_path, "jsonl"), tokenizer=str(path)))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corpus_shorter_than_one_sequence_says_which_side_and_what_helps(
    tmp_path: Path, split: str
) -> None:
    settings = config(tmp_path, write(tmp_path, "jsonl"))
    corpus = prepare(settings)
    # the last length that still fits
    longer = (corpus.val_tokens if split == "val" else corpus.train_tokens) - 1
    if split == "val":
        prepare(replace(settings, seq_len=longer, val_tokens=longer))
    with pytest.raises(
        UserError,
        match=(
            f"data.seq_len: the {split} split, .* is shorter than one sequence of {longer + 1}; "
            "give more text"
        ),
    ):
        prepare(replace(settings, seq_len=longer + 1, val_tokens=longer + 1))
