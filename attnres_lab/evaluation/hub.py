"""Data sets of the hub from local copies, and metrics that lm_eval would load from there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import evaluate
import pandas as pd
import pyarrow.parquet as pq
from datasets.table import InMemoryTable

from attnres_lab.errors import UserError, nearest
from attnres_lab.evaluation import code

#: ``train-00000-of-00002``, ``train/0000``, ``train``
SPLIT = re.compile(r"(?:(?P<name>[A-Za-z_]+)(?:-\d+-of-\d+)?|\d+)")


@contextmanager
def local(root: Path | None, *, allow_code: bool) -> Iterator[None]:
    """While the block runs, ``datasets.load_dataset`` reads copies below ``root`` (where one is
    given) and nothing else, and the metric code_eval is ours.
    """

    def load(path: str, name: str | None = None, **_: Any) -> Any:
        assert root
        return read(root, path, name)

    def metric(path: str, *_: Any, **__: Any) -> Any:
        if path != "code_eval":
            raise UserError(
                f"{path}: lm_eval loads this metric from the hub; it is not served here"
            )
        if not allow_code:
            raise UserError(code.REFUSED)
        return code.CodeEval()

    with mock.patch.object(evaluate, "load", metric):
        if root is None:
            yield
            return
        with mock.patch.object(datasets, "load_dataset", load):
            yield


def read(root: Path, path: str, name: str | None) -> Any:
    """The set ``path`` (owner/name) below ``root``, its configuration ``name``, by split: Parquet
    files as ``<configuration>/<split>-*.parquet`` (or ``<configuration>/<split>/*.parquet``), or
    ``<configuration>.csv``, as the hub has them. Raises UserError.
    """
    folder = root / path
    if not folder.is_dir():
        raise UserError(
            f"{folder}: the data set is not there; put a copy of the hub's {path} into it"
        )
    table = folder / f"{name}.csv"
    if name and table.is_file():
        frame = datasets.Dataset.from_pandas(pd.read_csv(table), preserve_index=False)
        return datasets.DatasetDict({"train": frame})
    home = folder / name if name else folder
    files = sorted(home.rglob("*.parquet"))
    if not files and name:
        known = {p.relative_to(folder).parts[0] for p in folder.rglob("*.parquet")}
        raise UserError(
            f"{home}: {path} has no configuration '{name}' here{nearest(name, sorted(known))}"
        )
    if not files:
        raise UserError(f"{folder}: no Parquet file of {path} is in it")
    return datasets.DatasetDict(
        {split: _table(several) for split, several in _by_split(files).items()}
    )


def _by_split(files: list[Path]) -> Mapping[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        match = SPLIT.fullmatch(file.stem)
        split = (match and match["name"]) or file.parent.name
        found.setdefault(split, []).append(file)
    return found


def _table(files: list[Path]) -> Any:
    try:
        tables = [InMemoryTable(pq.read_table(file)) for file in files]
    except (OSError, ValueError) as error:
        raise UserError(f"{files[0]}: not a Parquet file ({error})") from None
    return datasets.concatenate_datasets([datasets.Dataset(table) for table in tables])
