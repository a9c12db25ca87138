"""Text in files of every kind, a config that reads them, and a tokenizer trained on them."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import tokenizers

from attnres_lab.data import DataConfig, SourceConfig

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
