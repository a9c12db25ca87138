"""``attnres plan``: what a layout would cost before it is bought."""

from __future__ import annotations

from pathlib import Path

import typer

from attnres_lab.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    plan = typer.Typer(
        help="What a layout would cost; nothing is measured.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    plan.command()(cluster)
    plan.command()(prefill)
    app.add_typer(plan, name="plan")


def cluster(  # noqa: PLR0913
    config: Path = typer.Argument(..., help="A run YAML: the model and its length of sequence."),
    overrides: list[str] = typer.Argument(None, help="Overrides such as model.dim=2304."),
    ranks: int = typer.Option(4, min=2, help="Ranks of a pipeline."),
    virtual: int = typer.Option(1, min=1, help="Stages of each rank."),
    microbatches: int = typer.Option(8, min=1, help="Of each pipeline and step."),
    sequences: int = typer.Option(1, min=1, help="Of a microbatch."),
    devices: int = typer.Option(0, help="In all; a multiple of the ranks. 0: one pipeline."),
    tflops: float = typer.Option(400.0, help="10^12 FLOP/s that training reaches on a device."),
    memory: float = typer.Option(3350.0, help="GB/s of a device's memory."),
    link: float = typer.Option(50.0, help="GB/s to the next rank, each way."),
) -> None:
    """Model a training step of baseline, Block, Full and mHC over a pipeline, with and without
    cross-stage caching. An estimate: only the bytes are exact.
    """
    from attnres_lab.config import load, parse_overrides
    from attnres_lab.pipeline.cost import Machine, Work, compare

    run = load(config, parse_overrides(overrides or []))
    if devices % ranks:
        raise UserError(f"devices: {devices} are no whole number of pipelines of {ranks} ranks")
    work = Work(ranks, virtual, microbatches, sequences, run.data.seq_len)
    try:
        rows = compare(run.model, work, Machine(tflops * 1e12, memory * 1e9, link * 1e9))
    except ValueError as error:
        raise UserError(str(error)) from None
    pipelines = max(1, devices // ranks)
    print(
        f"A model, not a measurement: {run.model.size}, {ranks} ranks x {virtual} stages, "
        f"{microbatches} microbatches of {work.tokens} tokens, {pipelines} pipelines"
    )
    print(
        f"{'variant':12} {'caching':>7} {'width/token':>11} {'MB':>8} {'worst hop':>9} "
        f"{'hidden':>9} {'ratio':>6} {'not':>9} {'ratio':>6} {'bubble':>6} {'GB/rank':>7} "
        f"{'sources':>7} {'tokens/s':>9}"
    )
    first = rows[0][2]
    for variant, caching, e in rows:
        units = e.bytes / (work.tokens * run.model.dim * work.width)
        rate = pipelines * microbatches * work.tokens / e.seconds
        print(
            f"{variant:12} {'yes' if caching else 'no':>7} {units:11.0f} {e.bytes / 1e6:8.1f} "
            f"{e.heaviest / 1e6:9.1f} {e.seconds:8.3f}s {e.seconds / first.seconds:6.3f} "
            f"{e.bare:8.3f}s {e.bare / first.bare:6.3f} {e.bubble:6.3f} {e.memory / 1e9:7.1f} "
            f"{e.sources / 1e9:7.2f} {rate:9.3g}"
        )


def prefill(
    config: Path = typer.Argument(..., help="A run YAML: the model."),
    overrides: list[str] = typer.Argument(None, help="Overrides such as model.dim=7168."),
    tokens: int = typer.Option(131_072, min=1, help="Of the prompt."),
    ranks: int = typer.Option(8, min=1, help="That share it out."),
    chunk: int = typer.Option(16_384, min=1, help="Tokens read at once; a multiple of the ranks."),
    width: int = typer.Option(2, min=1, help="Bytes of a number."),
) -> None:
    """Bytes of what baseline, Block, Full and mHC hold of a prompt over depth: of all its tokens,
    of a rank's share, and of its share of a chunk. Exact; keys and values, which no residual
    connection changes, are not counted.
    """
    from attnres_lab.config import load, parse_overrides
    from attnres_lab.pipeline.cost import kept, rivals

    if chunk % ranks:
        raise UserError(f"chunk: {chunk} tokens are no multiple of {ranks} ranks; give one that is")
    run = load(config, parse_overrides(overrides or []))
    print(f"{run.model.size}, {tokens} tokens, GB over depth")
    print(f"{'variant':12} {'whole':>8} {f'{ranks} ranks':>9} {f'chunks of {chunk}':>16}")
    try:
        for model in rivals(run.model):
            whole, share, piece = (
                width * kept(model, count) / 1e9
                for count in (tokens, -(-tokens // ranks), min(chunk // ranks, tokens))
            )
            print(f"{model.residual.label:12} {whole:8.3f} {share:9.3f} {piece:16.4f}")
    except ValueError as error:
        raise UserError(str(error)) from None
