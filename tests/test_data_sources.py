"""Every source gives the same documents, and says clearly what it cannot read."""

import gzip
import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tokenizers

from attnres_lab.data import Corpus, DataConfig, SourceConfig, build, prepare, sources
from attnres_lab.data.corpus import shard_path
from attnres_lab.errors import UserError

TEXTS = [f"document {i}: " + "größe 線 " * (i % 7) + "\n" for i in range(60)]


def config(tmp_path: Path, *paths: str, **changes: object) -> DataConfig:
    source = SourceConfig("files", tuple(str(tmp_path / path) for path in paths))
    return replace(
        DataConfig(
            source, seq_len=8, val_tokens=8, val_fraction=0.2, cache_dir=str(tmp_path / "cache")
        ),
        **changes,
    )


def write(tmp_path: Path, kind: str, texts: list[str] = TEXTS) -> str:
    """The texts in two files of a kind; the glob that finds them."""
    for name, part in (("a", texts[:25]), ("b", texts[25:])):
        lines = "".join(
            json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(part)
        ).encode()
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(
                pyarrow.table({"id": list(range(len(part))), "text": part}), path, row_group_size=10
            )
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress(lines))
        elif kind == "jsonl.zst":
            with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
                stream.write(lines)
        else:
            path.write_bytes(lines)
    return f"*.{kind}"


def documents(corpus: Corpus, split: str) -> list[str]:
    """Back from bytes to documents, read without the package's own reader."""
    sizes = corpus.train_sizes if split == "train" else corpus.val_sizes
    data = b"".join(
        shard_path(corpus.folder, index, split).read_bytes() for index in range(len(sizes))
    )
    assert data.endswith(b"\xff")
    return [text.decode() for text in data.split(b"\xff")[:-1]]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_format_gives_the_documents_and_goes_on_where_it_stopped(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing breaks off after each shard in turn; the documents are those that were written, in
    order, once.
    """
    monkeypatch.setattr(build, "SHARD_TOKENS", 300)
    settings = config(tmp_path, write(tmp_path, kind))
    write_shard, made = build._write_shard, []

    def fails(folder: Path, index: int, *rest: object) -> object:
        made.append(write_shard(folder, index, *rest))
        raise OSError("power cut")

    monkeypatch.setattr(build, "_write_shard", fails)
    while not made or made[-1] is not None:
        with pytest.raises(UserError, match="power cut"):
            prepare(settings)
        assert len(made) < 20  # else it starts from the beginning each time
    monkeypatch.setattr(build, "_write_shard", write_shard)
    corpus = prepare(settings)
    assert len(made) > 5
    found = {split: documents(corpus, split) for split in ("train", "val")}
    for texts in found.values():
        assert texts == [text for text in TEXTS if text in texts]
    assert sorted(found["train"] + found["val"]) == sorted(TEXTS)


def test_hugging_face_rows_are_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local folder of Parquet, read as files and through ``datasets``, gives one fingerprint."""
    datasets = pytest.importorskip("datasets", reason="the extra 'huggingface' is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "parquet")
    settings = config(tmp_path, "set/*.parquet")
    through = replace(settings, source=SourceConfig("huggingface", dataset=str(tmp_path / "set")))
    assert prepare(through).fingerprint == prepare(settings).fingerprint
    with pytest.raises(
        UserError, match=r"row 1 has no text in a field 'body'.*id \(int\), text \(str\)"
    ):
        prepare(replace(through, source=replace(through.source, text_field="body")))
    with pytest.raises(UserError, match=r"data.source.dataset: .*nowhere: cannot be read"):
        prepare(replace(through, source=replace(through.source, dataset=str(tmp_path / "nowhere"))))


def test_hugging_face_without_its_extra_names_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'attnres-lab\[huggingface\]'"):
        prepare(replace(config(tmp_path, "x"), source=SourceConfig("huggingface", dataset="x")))


@pytest.mark.parametrize("character", ["線", "é\n", "x"])
def test_a_long_text_file_is_cut_within_no_character_and_loses_nothing(
    tmp_path: Path, character: str
) -> None:
    """Cuts lie at line ends where there are any, and reading may start at every cut."""
    path = tmp_path / "long.txt"
    path.write_text("a" + character * 100_000)
    pieces = [
        (document.text, document.next)
        for document in sources.FileSource([path], "").documents((0, 0))
    ]
    assert b"".join(text for text, _ in pieces) == path.read_bytes()
    for number, (text, position) in enumerate(pieces):
        assert len(text) <= sources.PIECE_BYTES
        assert len(text.decode())
        assert text.endswith(b"\n") or "\n" not in character
        assert [
            (each.text, each.next) for each in sources.FileSource([path], "").documents(position)
        ] == pieces[number + 1 :]


def test_the_python_source_is_the_standard_library_in_the_order_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed packages and files that are not UTF-8 stay out."""
    root = tmp_path / "lib"
    for name in ("b.py", "a/z.py", "a.py", "site-packages/x.py", "dist-packages/y.py", "note.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "a2.py").write_bytes(b"# caf\xe9")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    texts = [
        document.text.decode() for document in sources.open_source(SourceConfig()).documents((0, 0))
    ]
    assert texts == ["a/z.py", "a.py", "b.py"]


def test_the_embedded_corpus_is_python(tmp_path: Path) -> None:
    corpus = prepare(DataConfig(max_tokens=400_000, val_fraction=0.1, cache_dir=str(tmp_path)))
    assert 400_000 <= corpus.train_tokens + corpus.val_tokens < 400_000 + sources.PIECE_BYTES + 1
    assert any("import" in text for text in documents(corpus, "train"))


def train_bpe(path: Path) -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    model.train_from_iterator(TEXTS, trainer)
    model.save(str(path))
    return model


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_bytes_per_token_counts_text_against_tokens_with_ends_of_documents(
    tmp_path: Path, kind: str
) -> None:
    """The factor of bits per byte, recounted from the documents of the validation side and the
    library's own encoding.
    """
    settings = config(tmp_path, write(tmp_path, "jsonl"))
    by_bytes = prepare(settings)
    texts = documents(by_bytes, "val")
    size = sum(len(text.encode()) for text in texts)
    if kind == "bytes":
        assert by_bytes.bytes_per_token == size / (size + len(texts))
        assert by_bytes.vocab_size == 256
        return
    model = train_bpe(tmp_path / "bpe.json")
    model.enable_truncation(2)  # a setting in the file that must not cut the corpus
    model.save(str(tmp_path / "bpe.json"))
    model.no_truncation()
    corpus = prepare(replace(settings, tokenizer=str(tmp_path / "bpe.json")))
    assert corpus.vocab_size == 300
    assert corpus.bytes_per_token == size / sum(len(model.encode(text).ids) + 1 for text in texts)
    ids = np.fromfile(shard_path(corpus.folder, 0, "val"), "<u2").tolist()
    end = model.token_to_id("<|endoftext|>")
    assert [model.decode(list(part)) for part in _split(ids, end)] == texts


def _split(ids: list[int], end: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == end:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts[:-1]


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


def test_exact_duplicates_fall_on_one_side(tmp_path: Path) -> None:
    """Across files and formats, and the validation side has its share of the documents."""
    texts = [f"text number {i}" for i in range(2000)]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts + texts[::3])
    )
    for i in range(0, 30):
        (tmp_path / f"{i}.txt").write_text(texts[i])
    corpus = prepare(config(tmp_path, "a.jsonl", "*.txt"))
    train, val = documents(corpus, "train"), documents(corpus, "val")
    assert not set(train) & set(val)
    assert len(train) + len(val) == 2000 + 667 + 30
    assert abs(len(set(val)) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5


def test_null_text_and_half_surrogates_do_not_break_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": null}\n\n{"text": "bad \\ud800 pair"}\n'
        + "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    )
    corpus = prepare(config(tmp_path, "a.jsonl"))
    assert sorted(documents(corpus, "train") + documents(corpus, "val")) == sorted(
        [*TEXTS, "bad ? pair"]
    )


def test_the_fingerprint_is_that_of_the_text_not_of_its_place(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", "jsonl")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first, second = (prepare(config(tmp_path, f"{name}/*.jsonl")) for name in ("one", "two"))
    assert first.fingerprint == second.fingerprint
    assert first.folder != second.folder
