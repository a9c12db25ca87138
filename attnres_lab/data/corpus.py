"""A prepared corpus: batches by index arithmetic over memory-mapped shards.

A shard of n tokens holds (n - 1) // seq_len windows: window w is the tokens w * seq_len to (w + 1)
* seq_len, both included, so that neighbours share one token and every token but the first of a
shard is predicted once. Names of shapes: B batch, T seq_len.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attnres_lab.errors import UserError
from attnres_lab.runs.files import unchecked

Split = Literal["train", "val"]
Int64Array = np.ndarray[tuple[int, int], np.dtype[np.int64]]
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Corpus:
    """Tokens of one corpus; the fingerprint is that of the tokens and the tokenizer, wherever the
    folder lies.

    ``bytes_per_token``: UTF-8 bytes of the validation text per validation token, ends of documents
    counted among the tokens and not among the bytes, over the whole split; bits per byte are ``loss
    / ln(2) / bytes_per_token`` for a loss in nats per token, also where that loss is of some of its
    windows. Sizes are tokens per shard.
    """

    folder: Path
    fingerprint: str
    vocab_size: int
    bytes_per_token: float
    dtype: str
    train_sizes: tuple[int, ...]
    val_sizes: tuple[int, ...]

    @property
    def train_tokens(self) -> int:
        """Tokens to train on."""
        return sum(self.train_sizes)

    @property
    def val_tokens(self) -> int:
        """Tokens to validate on."""
        return sum(self.val_sizes)

    def windows(self, split: Split, seq_len: int) -> int:
        """Sequences in a split; for ``train``, those of one epoch. Raises UserError if there is
        none.
        """
        sizes = self._sizes(split)
        if not (total := int(_window_ends(sizes, seq_len)[-1])):
            remedy = "give more text or a shorter seq_len" + (
                " or a larger data.val_fraction" if split == "val" else ""
            )
            raise UserError(
                f"data.seq_len: the {split} split, {sum(sizes)} tokens, is shorter than one "
                f"sequence of {seq_len}; {remedy}"
            )
        return total

    def train_batch(
        self, seed: int, step: int, batch_size: int, seq_len: int, rows: slice = slice(None)
    ) -> Int64Array:
        """Tokens [B, T + 1] of batch ``step``, or those ``rows`` of it: rank r of R takes
        ``slice(r, None, R)``.

        A pure function of the arguments. Batches follow each other through epochs; each epoch
        visits every window once, in its own order.
        """
        total = self.windows("train", seq_len)
        return self._gather("train", drawn(seed, step, batch_size, total, rows), seq_len)

    def val_batches(
        self, seq_len: int, batch_size: int, max_tokens: int, stride: int = 1
    ) -> Iterator[Int64Array]:
        """At most ``max_tokens`` predicted tokens in batches [<= B, T + 1]: windows spread evenly
        over the validation set, always the same; of these every ``stride``-th.
        """
        total = self.windows("val", seq_len)
        count = min(total, max_tokens // seq_len)
        chosen = (np.arange(count, dtype=np.int64) * total // max(count, 1))[::stride]
        for start in range(0, len(chosen), batch_size):
            yield self._gather("val", chosen[start : start + batch_size], seq_len)

    @property
    def manifest(self) -> dict[str, Any]:
        """What the corpus was made of and holds."""
        return read_record(self.folder, MANIFEST) or {}

    def verify(self, most: float = math.inf) -> None:
        """Read every shard and compare its checksum; of the validation set only, where there are
        more than ``most`` bytes. Raises UserError that names the first corrupt file.
        """
        size = sum(self.train_sizes) * np.dtype(self.dtype).itemsize
        splits = ("train", "val") if size <= most else ("val",)
        for index, shard in enumerate(self.manifest["shards"]):
            for split in splits:
                path = shard_path(self.folder, index, split)
                with open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != shard[split]["sha256"]:
                        raise corrupt(self.folder, f"{path.name}: checksum differs")

    def _sizes(self, split: Split) -> tuple[int, ...]:
        return self.train_sizes if split == "train" else self.val_sizes

    def _gather(self, split: Split, windows: np.ndarray, seq_len: int) -> Int64Array:
        ends = _window_ends(self._sizes(split), seq_len)
        shards = np.searchsorted(ends, windows, side="right")
        result = np.empty((len(windows), seq_len + 1), np.int64)
        for row, shard, window in zip(result, shards.tolist(), windows.tolist(), strict=True):
            start = (window - (int(ends[shard - 1]) if shard else 0)) * seq_len
            row[:] = _open(shard_path(self.folder, shard, split), self.dtype, self.fingerprint)[
                start : start + seq_len + 1
            ]
        return result


def open_corpus(folder: Path) -> Corpus | None:
    """The corpus in ``folder``, its files' sizes checked, or None before it is finished. Raises
    UserError that names the corrupt file.
    """
    manifest = read_record(folder, MANIFEST)
    if manifest is None:
        return None
    for index, shard in enumerate(manifest["shards"]):
        check_shard(folder, index, shard, manifest["dtype"])
    sizes = (
        tuple(shard[split]["tokens"] for shard in manifest["shards"]) for split in ("train", "val")
    )
    return Corpus(
        folder,
        *(manifest[name] for name in ("fingerprint", "vocab_size", "bytes_per_token", "dtype")),
        *sizes,
    )


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON file of a corpus, None where there is none. Raises UserError if it is corrupt."""
    try:
        record = unchecked(json.loads((folder / name).read_bytes()))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if record is None:
        raise corrupt(folder, f"{name} is damaged")
    return record


def check_shard(folder: Path, index: int, shard: dict[str, Any], dtype: str) -> None:
    """Raises UserError unless both files of the shard have the sizes that its record tells."""
    for split in ("train", "val"):
        path, expected = (
            shard_path(folder, index, split),
            shard[split]["tokens"] * np.dtype(dtype).itemsize,
        )
        size = path.stat().st_size if path.exists() else None
        if size != expected:
            raise corrupt(
                folder,
                f"{path.name} is missing"
                if size is None
                else f"{path.name} has {size} bytes in place of {expected}",
            )


def shard_path(folder: Path, index: int, split: str) -> Path:
    """File of one shard: tokens as the manifest's dtype, nothing else."""
    return folder / f"{index:05}.{split}.bin"


def corrupt(folder: Path, what: str) -> UserError:
    """The error of a damaged cache, with its remedy."""
    return UserError(
        f"{folder}: the prepared corpus is corrupt ({what}); delete this folder or run attnres "
        "data prepare CONFIG --force"
    )


def drawn(seed: int, step: int, batch_size: int, total: int, rows: slice) -> np.ndarray:
    """Which of ``total`` examples batch ``step`` has, or those ``rows`` of it: batches follow each
    other through epochs, each of which visits every example once in its own order.
    """
    index = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)[rows]
    epoch, place = np.divmod(index, np.uint64(total))
    key = _mix(_mix(np.uint64(seed % 2**64) + np.zeros_like(epoch)) + epoch)
    return permute(place, total, key)


def permute(place: np.ndarray, total: int, key: np.ndarray) -> np.ndarray:
    """Entry ``place`` of the pseudo-random permutation of range(total) that ``key`` names; all
    arguments elementwise, nothing stored.

    A Feistel network on pairs (left, right) below side = ceil(sqrt(total)), sums modulo side (the
    generalised Feistel of Black and Rogaway, 2002); what falls outside of range(total) goes through
    again (cycle walking), rarely: side^2 exceeds total by at most 2 sqrt(total).
    """
    side = np.uint64(math.isqrt(total - 1) + 1)
    left, right = np.divmod(place, side)
    for turn in range(6):
        left, right = right, (left + _mix(right + _mix(key + np.uint64(turn))) % side) % side
    result = left * side + right
    outside = result >= total
    if outside.any():
        result[outside] = permute(result[outside], total, key[outside])
    return result


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function of the next state (Steele, Lea and Flood 2014), on arrays of
    uint64.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)  # wraps, as all below
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


@lru_cache(maxsize=64)
def _window_ends(sizes: tuple[int, ...], seq_len: int) -> np.ndarray:
    """Running count of windows up to and with each shard."""
    return np.array(list(itertools.accumulate(max(size - 1, 0) // seq_len for size in sizes)))


# bounds the files that are open at once; the fingerprint tells a corpus prepared anew from the one
# before
@lru_cache(maxsize=256)
def _open(path: Path, dtype: str, fingerprint: str) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype, mode="r"))
