"""Documents, one at a time and in a fixed order, from the standard library, files or Hugging
Face.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import itertools
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from attnres_lab.data.config import SourceConfig
from attnres_lab.errors import UserError

#: A longer text file is cut at line ends into documents of at most so many bytes: it can be split,
#: and need not fit into memory.
PIECE_BYTES = 1 << 16
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
JSON_LINES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Document:
    """UTF-8 ``text``, the position ``(file, offset)`` of the document after it, and the part of its
    file that is ``done`` (0 to 1).
    """

    text: bytes
    next: tuple[int, int]
    done: float


class _UndecodableError(UserError):
    pass


class FileSource:
    """Text files, JSON lines and Parquet, in the order given; ``lenient`` leaves a file at the
    first byte that is not UTF-8.

    An offset counts bytes of a text file, lines of JSON lines, rows of Parquet. Memory: one
    document, or one row group's text of a Parquet file.
    """

    def __init__(self, files: list[Path], text_field: str, lenient: bool = False) -> None:
        self.files, self.text_field, self.lenient = files, text_field, lenient

    def key(self) -> list[Any]:
        """All that decides the text, with a size and a time of change in place of content. Raises
        UserError for a file that is gone.
        """
        try:
            stamps = [
                (str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.files
            ]
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from None
        return [self.text_field, self.lenient, PIECE_BYTES, stamps]

    def documents(self, start: tuple[int, int]) -> Iterator[Document]:
        """From position ``start`` on. Raises UserError with file and place for what cannot be read
        as text.
        """
        for index in range(start[0], len(self.files)):
            path = self.files[index]
            try:
                for text, offset, done in self._read(path, start[1] if index == start[0] else 0):
                    yield Document(text, (index, offset), done)
            except _UndecodableError:
                if not self.lenient:
                    raise
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None

    def _read(self, path: Path, start: int) -> Iterator[tuple[bytes, int, float]]:
        suffix = path.with_suffix("").suffix if path.suffix in COMPRESSION else path.suffix
        if suffix == ".parquet":
            return self._parquet(path, start)
        return self._json_lines(path, start) if suffix in JSON_LINES else _pieces(path, start)

    def _json_lines(self, path: Path, start: int) -> Iterator[tuple[bytes, int, float]]:
        with open(path, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            for number, line in enumerate(
                itertools.islice(_expand(raw, path), start, None), start + 1
            ):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except ValueError as error:
                        raise UserError(f"{path}: line {number} is not JSON ({error})") from None
                    yield (
                        text_of(row, self.text_field, f"{path}: line {number}"),
                        number,
                        raw.tell() / size,
                    )

    def _parquet(self, path: Path, start: int) -> Iterator[tuple[bytes, int, float]]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                total, names = file.metadata.num_rows, file.schema_arrow.names
                # None: the message lists what is there
                columns = [self.text_field] if self.text_field in names else None
                first = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if first + rows > start:
                        batches = file.iter_batches(
                            batch_size=256, row_groups=[group], columns=columns, use_threads=False
                        )
                        for number, row in enumerate(
                            itertools.chain.from_iterable(b.to_pylist() for b in batches), first + 1
                        ):
                            if number > start:
                                yield (
                                    text_of(row, self.text_field, f"{path}: row {number}"),
                                    number,
                                    number / total,
                                )
                    first += rows
        except pyarrow.ArrowException as error:
            raise UserError(
                f"{path}: not readable as Parquet ({str(error).splitlines()[0]})"
            ) from None


class HubSource:
    """Rows of a dataset, streamed through ``datasets``; an offset counts rows."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config
        self.files: list[Path] = []

    def key(self) -> list[Any]:
        """Name, subset, split, revision and field; the text behind a name that has no revision may
        change unseen.
        """
        c = self.config
        return [c.dataset, c.subset, c.split, c.revision, c.text_field]

    def documents(self, start: tuple[int, int]) -> Iterator[Document]:
        """From row ``start[1]`` on. Raises UserError for a missing extra, dataset or field."""
        c = self.config
        try:
            import datasets
        except ImportError:
            raise UserError(
                "data.source.name: 'huggingface' needs an extra: pip install "
                "'attnres-lab[huggingface]'"
            ) from None
        try:
            rows = datasets.load_dataset(
                c.dataset, c.subset, split=c.split, revision=c.revision, streaming=True
            )
            for number, row in enumerate(rows.skip(start[1]), start[1] + 1):
                yield Document(
                    text_of(row, c.text_field, f"{c.dataset}: row {number}"), (0, number), 0.0
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"data.source.dataset: {c.dataset}: cannot be read ({str(error).splitlines()[0]})"
            ) from None


def open_source(config: SourceConfig) -> FileSource | HubSource:
    """The documents of ``data.source``. Raises UserError for a glob that matches no file."""
    if config.name == "huggingface":
        return HubSource(config)
    if config.name == "files":
        return FileSource(
            list(dict.fromkeys(path for pattern in config.paths for path in _match(pattern))),
            config.text_field,
        )
    root = Path(sysconfig.get_path("stdlib"))
    below = (path.relative_to(root) for path in root.rglob("*.py"))
    files = sorted(
        path for path in below if not {"site-packages", "dist-packages"} & set(path.parts)
    )
    if not files:
        raise UserError(
            f"data.source.name: Python {sys.version_info.major}.{sys.version_info.minor} has no "
            f"source files in {root}; use 'files'"
        )
    return FileSource([root / path for path in files], "", lenient=True)


def text_of(row: Any, name: str, where: str) -> bytes:
    """The text of a record as UTF-8, empty for null. Raises UserError with the place and the fields
    that are there.
    """
    if not isinstance(row, dict) or not isinstance(row.get(name, 0), str | None):
        found = (
            ", ".join(f"{key} ({type(value).__name__})" for key, value in row.items())
            if isinstance(row, dict)
            else type(row).__name__
        )
        raise UserError(
            f"{where} has no text in a field '{name}', but {found}; set data.source.text_field"
        )
    # JSON can hold half a surrogate pair, UTF-8 cannot
    return (row[name] or "").encode("utf-8", "replace")


def is_validation(text: bytes, val_fraction: float) -> bool:
    """The side of a document, by its content alone."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) < val_fraction * 2**64


def _match(pattern: str) -> list[Path]:
    found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    files = [Path(name).absolute() for name in found if os.path.isfile(name)]
    if not files:
        hint = (
            f"it is a folder; write {pattern.rstrip('/')}/**/*.txt"
            if os.path.isdir(pattern)
            else f"working directory: {os.getcwd()}"
        )
        raise UserError(f"data.source.paths: '{pattern}' matches no file ({hint})")
    return files


def _expand(raw: BinaryIO, path: Path) -> io.BufferedReader | BinaryIO:
    if path.suffix not in COMPRESSION:
        return raw
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(raw, COMPRESSION[path.suffix]))


def _pieces(path: Path, start: int) -> Iterator[tuple[bytes, int, float]]:
    """The text of a file in documents of at most PIECE_BYTES, cut after a line end where there is
    one, never within a character.
    """
    with open(path, "rb") as raw:
        size = os.fstat(raw.fileno()).st_size
        stream = _expand(raw, path)
        for skipped in range(0, start, PIECE_BYTES):
            stream.read(min(PIECE_BYTES, start - skipped))
        block, offset = stream.read(PIECE_BYTES), start
        while block:
            last = len(block) < PIECE_BYTES
            end = len(block) if last else block.rfind(b"\n") + 1 or len(block)
            try:
                end = codecs.utf_8_decode(block[:end], "strict", last)[1]
            except UnicodeDecodeError as error:
                remedy = "convert the file or leave it out of data.source.paths"
                raise _UndecodableError(
                    f"{path}: byte {offset + error.start} is not UTF-8 text; {remedy}"
                ) from None
            offset += end
            yield block[:end], offset, raw.tell() / size
            block = block[end:] + stream.read(PIECE_BYTES - len(block) + end)
