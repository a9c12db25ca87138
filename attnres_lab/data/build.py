"""Documents to shards of tokens, once."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

from attnres_lab import __version__
from attnres_lab.data.config import DataConfig
from attnres_lab.data.corpus import (
    MANIFEST,
    Corpus,
    check_shard,
    open_corpus,
    read_record,
    shard_path,
)
from attnres_lab.data.sources import Document, FileSource, HubSource, is_validation, open_source
from attnres_lab.data.tokenizer import Tokenizer, load_tokenizer, tokenizer_content
from attnres_lab.errors import UserError
from attnres_lab.runs.folder import write_json
from attnres_lab.runs.paths import cache_folder

FORMAT = 1
#: A shard ends with the document that reaches so many tokens; what a kill can lose is one shard.
SHARD_TOKENS = 1 << 24
#: Text that is encoded at a time.
BATCH_BYTES = 1 << 19

Stream = Iterator[tuple[Document, np.ndarray]]


def prepared(config: DataConfig) -> Corpus | None:
    """The corpus of ``config`` where it is in the cache. Raises UserError as ``prepare``."""
    key = open_source(config.source).key()
    return open_corpus(_folder(config, key, tokenizer_content(config.tokenizer)))


def _folder(config: DataConfig, source_key: Any, identity: Any) -> Path:
    stamp = [FORMAT, SHARD_TOKENS, config.source.name, source_key, identity]
    stamp += [config.val_fraction, config.max_tokens]
    key = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:20]
    own = Path(config.cache_dir).expanduser().absolute() if config.cache_dir else cache_folder()
    return own / "corpora" / key


def prepare(config: DataConfig, *, progress: bool = False, force: bool = False) -> Corpus:
    """The corpus of ``config``: opened if it is in the cache, else prepared; ``force`` prepares it
    anew.

    A document goes to validation if the hash of its text falls below ``val_fraction``: exact
    duplicates stay together, without any memory of what was seen. Finished shards survive a kill
    and are not made again; the manifest, written last, makes the corpus exist. Processes that
    prepare the same corpus wait for each other.

    Memory does not grow with the corpus: at most 256 MiB beyond the imported libraries, plus 4
    times the largest record of JSON lines or Hugging Face rows (250 times with a JSON tokenizer,
    whose encodings are large), one row group's text of a Parquet file, and 1 kB per file.

    Raises UserError, with the place and the remedy, for sources and tokenizers that cannot be read,
    a corpus with no text or shorter than one sequence of ``config.seq_len``, a corrupt cache, and a
    cache that cannot be written.
    """
    source = open_source(config.source)
    identity, source_key = tokenizer_content(config.tokenizer), source.key()
    folder = _folder(config, source_key, identity)
    corpus = None if force else open_corpus(folder)
    try:
        if corpus is None:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _patient(FileLock(folder.with_suffix(".lock")), progress)
            with lock:
                if force:
                    shutil.rmtree(folder)
                    folder.mkdir()
                corpus = open_corpus(folder)
                if corpus is None:
                    shards = _shards(folder, config, source, progress)
                    if source.key() != source_key:
                        raise UserError(
                            "data.source: files changed while they were read; prepare again"
                        )
                    corpus = _finish(folder, config, identity, shards)
    except OSError as error:
        remedy = (
            "free some space or set data.cache_dir; finished shards are kept, and preparing again "
            "goes on from there"
        )
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); {remedy}"
        ) from None
    corpus.windows("train", config.seq_len)
    corpus.windows("val", config.seq_len)
    return corpus


def _patient(lock: Any, progress: bool) -> Any:
    """The lock, after saying so if another process holds it; it ends with its process, however that
    ends.
    """
    try:
        lock.acquire(timeout=0.2)
        lock.release()
    except Timeout:
        if progress:
            print("waiting for another process that prepares this corpus", file=sys.stderr)
    return lock


def _shards(
    folder: Path, config: DataConfig, source: FileSource | HubSource, progress: bool
) -> list[dict[str, Any]]:
    """Records of all shards, in order: those that an earlier call finished, then those that are
    made now.
    """
    for left_over in folder.glob("*.tmp"):
        left_over.unlink()
    tokenizer = load_tokenizer(config.tokenizer)
    shards: list[dict[str, Any]] = []
    while shard := read_record(folder, f"{len(shards):05}.json"):
        check_shard(folder, len(shards), shard, tokenizer.dtype)
        shards.append(shard)
    start = tuple(shards[-1]["next"]) if shards else (0, 0)
    sizes = list(itertools.accumulate((path.stat().st_size for path in source.files), initial=0))
    limit = config.max_tokens or sys.maxsize
    with Progress(
        *Progress.get_default_columns(),
        "{task.fields[tokens]:,} tokens",
        console=Console(stderr=True),
        disable=not progress,
    ) as bar:
        made = _tokens(shards)
        task = bar.add_task(
            "preparing", total=1.0 if source.files or config.max_tokens else None, tokens=made
        )

        def advance(document: Document, tokens: int) -> None:
            nonlocal made
            made += tokens
            file = document.next[0]
            read = (
                (sizes[file] + document.done * (sizes[file + 1] - sizes[file])) / sizes[-1]
                if source.files
                else 0
            )
            bar.update(task, completed=max(read, made / limit), tokens=made)

        stream = _encoded(source.documents(start), tokenizer, advance)
        while (left := limit - _tokens(shards)) > 0:
            shard = _write_shard(
                folder, len(shards), stream, config.val_fraction, min(SHARD_TOKENS, left)
            )
            if shard is None:
                break
            shards.append(shard)
    return shards


def _encoded(
    documents: Iterator[Document], tokenizer: Tokenizer, advance: Callable[[Document, int], None]
) -> Stream:
    """Documents with their tokens, encoded some BATCH_BYTES at a time; documents without text are
    left out.
    """
    batch: list[Document] = []
    size = 0
    for document in itertools.chain(documents, [None]):
        if document and document.text:
            batch.append(document)
            size += len(document.text)
        if batch and (document is None or size >= BATCH_BYTES):
            encoded = tokenizer.encode([each.text for each in batch])
            yield from zip(batch, encoded, strict=True)
            advance(batch[-1], sum(len(ids) for ids in encoded))
            batch, size = [], 0


def _write_shard(
    folder: Path, index: int, stream: Stream, val_fraction: float, enough: int
) -> dict[str, Any] | None:
    """One shard of at least ``enough`` tokens unless the stream ends; None where it has ended. The
    record is written last.
    """
    record: dict[str, Any] = {
        split: {"tokens": 0, "bytes": 0, "documents": 0} for split in ("train", "val")
    }
    digests = {split: hashlib.sha256() for split in record}
    temporary = {split: folder / f"{split}.tmp" for split in record}
    try:
        with open(temporary["train"], "wb") as train, open(temporary["val"], "wb") as val:
            for document, ids in stream:
                split, file = (
                    ("val", val) if is_validation(document.text, val_fraction) else ("train", train)
                )
                file.write(ids.data)
                digests[split].update(ids.data)
                for name, amount in (
                    ("tokens", len(ids)),
                    ("bytes", len(document.text)),
                    ("documents", 1),
                ):
                    record[split][name] += amount
                record["next"] = document.next
                if _tokens([record]) >= enough:
                    break
            for file in (train, val):
                file.flush()
                os.fsync(file.fileno())
        if "next" not in record:
            return None
        for split, path in temporary.items():
            record[split]["sha256"] = digests[split].hexdigest()
            os.replace(path, shard_path(folder, index, split))
        write_json(folder / f"{index:05}.json", record)
        return record
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def _tokens(shards: list[dict[str, Any]]) -> int:
    return sum(shard["train"]["tokens"] + shard["val"]["tokens"] for shard in shards)


def _finish(
    folder: Path, config: DataConfig, identity: str, shards: list[dict[str, Any]]
) -> Corpus:
    """Write the manifest. Raises UserError for a corpus without text on one side."""
    totals = {
        split: {
            name: sum(shard[split][name] for shard in shards)
            for name in ("tokens", "bytes", "documents")
        }
        for split in ("train", "val")
    }
    documents = totals["train"]["documents"] + totals["val"]["documents"]
    if not documents:
        raise UserError("data.source: the corpus is empty: no document holds any text")
    for split, remedy in (("train", "smaller"), ("val", "larger")):
        if not totals[split]["documents"]:
            raise UserError(
                f"data.val_fraction: none of {documents} documents falls into the {split} split; "
                f"give a {remedy} one or more documents"
            )
    tokenizer = load_tokenizer(config.tokenizer)
    content = [
        FORMAT,
        identity,
        tokenizer.dtype,
        [[shard[split]["sha256"] for split in totals] for shard in shards],
    ]
    manifest = {
        "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32],
        "source": asdict(config.source),
        "tokenizer": {"name": config.tokenizer, "content": identity},
        "vocab_size": tokenizer.vocab_size,
        "dtype": tokenizer.dtype,
        "val_fraction": config.val_fraction,
        "max_tokens": config.max_tokens,
        "bytes_per_token": totals["val"]["bytes"] / totals["val"]["tokens"],
        **totals,
        "versions": {
            "format": FORMAT,
            "attnres-lab": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "shards": [{split: shard[split] for split in totals} for shard in shards],
    }
    write_json(folder / MANIFEST, manifest)
    corpus = open_corpus(folder)
    assert corpus is not None
    return corpus
