"""``attnres data``: corpora."""

from __future__ import annotations

from pathlib import Path

import typer

commands = typer.Typer(help="Prepare corpora.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(commands, name="data")


@commands.callback()
def data() -> None:
    """Prepare corpora."""


@commands.command()
def prepare(
    config: Path = typer.Argument(
        None,
        help="A run YAML, or the name of one: tiny, nano; without one, the embedded corpus.",
    ),
    overrides: list[str] = typer.Argument(
        None, help="Dotted keys, for example data.source.paths=[corpus/*.jsonl]."
    ),
    force: bool = typer.Option(False, "--force", help="Prepare anew what is in the cache."),
) -> None:
    """Prepare the corpus of a run, or check the one that is there; goes on where an interrupted
    call stopped.
    """
    from attnres_lab.config import load, parse_overrides
    from attnres_lab.data import DataConfig, prepare

    changes = parse_overrides(overrides or [])
    chosen = load(config, changes).data if config else DataConfig()
    corpus = prepare(chosen, progress=True, force=force)
    corpus.verify()
    print(
        f"{corpus.train_tokens:,} training and {corpus.val_tokens:,} validation tokens of "
        f"{corpus.vocab_size:,} kinds",
        end="",
    )
    print(
        f", {corpus.bytes_per_token:.3f} bytes per token\nfingerprint {corpus.fingerprint}, "
        f"checksums verified\n{corpus.folder}"
    )
