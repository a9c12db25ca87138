"""Every source gives the same documents, each once, on one side."""

import json
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from text_files import TEXTS, config, train_bpe, write

from attnres_lab.data import Corpus, DataConfig, SourceConfig, build, prepare, sources
from attnres_lab.data.corpus import shard_path
from attnres_lab.errors import UserError


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
