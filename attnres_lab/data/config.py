"""What to train on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from.

    ``python``: the running interpreter's standard-library source. ``files``: globs of text, JSON
    lines (plain, .gz, .zst) or Parquet. ``huggingface``: a dataset by name through ``datasets``
    (the extra ``huggingface``).
    """

    name: Literal["python", "files", "huggingface"] = "python"
    paths: tuple[str, ...] = ()  # globs; files only
    text_field: str = "text"  # of JSON lines, Parquet and Hugging Face rows
    dataset: str | None = None  # huggingface only, as are the next three
    subset: str | None = None
    split: str = "train"
    revision: str | None = (
        None  # a commit pins the text; without one, what was prepared first is kept
    )

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        for name, key in (("files", "paths"), ("huggingface", "dataset")):
            if self.name == name and not getattr(self, key):
                raise ValueError(f"data.source.{key}: missing; data.source.name: {name} needs it")
        for name, key, given in (
            ("files", "paths", self.paths),
            ("huggingface", "dataset", self.dataset),
            ("huggingface", "subset", self.subset),
            ("huggingface", "split", self.split != "train"),
            ("huggingface", "revision", self.revision),
        ):
            if self.name != name and given:
                raise ValueError(
                    f"data.source.{key}: is read by data.source.name: {name} only; it is "
                    f"'{self.name}'"
                )


@dataclass(frozen=True)
class DataConfig:
    """A corpus, how it is cut into tokens, and the fixed validation set."""

    source: SourceConfig = field(default_factory=SourceConfig)
    tokenizer: str = "bytes"  # or the path of a tokenizers JSON file
    seq_len: int = 256  # tokens a sequence predicts
    val_fraction: float = 0.01  # of the documents, by content hash
    val_tokens: int = 65_536  # evaluated each time, the same for every run of a corpus and seq_len
    max_tokens: int | None = None  # stop preparing after so many
    cache_dir: str | None = None  # None: $ATTNRES_CACHE, else ~/.cache/attnres-lab

    def __post_init__(self) -> None:
        """Raises ValueError with the key and the remedy."""
        if self.seq_len < 1:
            raise ValueError(f"data.seq_len: {self.seq_len} is not positive")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction: {self.val_fraction} is not between 0 and 1")
        if self.val_tokens < self.seq_len:
            raise ValueError(
                f"data.val_tokens: {self.val_tokens} is less than one sequence of data.seq_len = "
                f"{self.seq_len}"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"data.max_tokens: {self.max_tokens} is not positive")
