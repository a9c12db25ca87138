"""``attnres bench``: what things cost, measured beside the plain residual."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import typer

from attnres_lab.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    bench = typer.Typer(
        help="Benchmarks; run them on a quiet machine.", no_args_is_help=True, rich_markup_mode=None
    )
    bench.command()(residual)
    bench.command()(mixers)
    bench.command()(pipeline)
    bench.command()(sweep)
    app.add_typer(bench, name="bench")


def residual(  # noqa: PLR0913
    variants: str = typer.Option(
        "baseline full block8",
        help=(
            "Arms; the first is what ratios refer to. READ:VARIANT forces naive, lean or a peer's "
            "read; options follow a plus, full+heads=4+window=8."
        ),
    ),
    dim: int = typer.Option(256, min=2),
    layers: int = typer.Option(12, min=1, help="Transformer layers, two sublayers each."),
    batch: int = typer.Option(8, min=1),
    seq_len: int = typer.Option(256, min=1),
    device: Literal["cpu", "cuda"] = typer.Option("cpu"),
    dtype: Literal["fp32", "bf16"] = typer.Option("fp32"),
    threads: int = typer.Option(2, min=1),
    repeats: int = typer.Option(20, min=2, help="Timed steps of each arm, interleaved."),
    mode: Literal["train", "prefill", "decode"] = typer.Option(
        "train",
        help="A training step, reading SEQ_LEN tokens, or greedy decoding of 64 after them.",
    ),
    chunk: int = typer.Option(512, min=1, help="Tokens of a prompt that are read at once."),
    peers: bool = typer.Option(True, help="Measure installed peers too, as Full."),
    out: Path = typer.Option(Path("benchmarks/results"), help="Folder of the dated CSV and plot."),
) -> None:
    """Time whole training steps, prefill or decoding of residual connections against the plain
    one's.
    """
    from attnres_lab.benchmarks import residual as harness
    from attnres_lab.benchmarks import saving
    from attnres_lab.benchmarks.peers import installed

    case = harness.Case(dim, layers, batch, seq_len, device, dtype, threads, repeats, mode, chunk)
    arms = [
        *variants.replace(",", " ").split(),
        *(f"{peer}:full" for peer in (installed(device) if peers else {})),
    ]
    try:
        rows = harness.measure(case, arms)
    except ValueError as error:
        raise UserError(str(error)) from None
    print(
        f"{case.label}, {threads} threads; copy bandwidth "
        f"{rows[0]['copy_bytes_per_second'] / 1e9:.1f} GB/s"
    )
    print("\n".join(_residual_table(rows)))
    print(f"wrote {saving.save(case, rows, out)} and its plot")


def _residual_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'arm':20} {'median':>9} {'quartiles':>17} {'min':>9} {'ratio':>6} {'of min':>6} "
        f"{'memory':>7} {'tokens/s':>9} {'read GB/s (back)':>17} {'error':>8}"
    ]
    for r in rows:
        rate = (
            f"{r['read_bytes_per_second'] / 1e9:.1f} "
            f"({r['read_backward_bytes_per_second'] / 1e9:.1f})"
            if "read_bytes_per_second" in r
            else "-"
        )
        lines.append(
            f"{r['arm']:20} {r['median_ms']:7.1f}ms {r['quartile1_ms']:8.1f}-"
            f"{r['quartile3_ms']:8.1f} {r['min_ms']:7.1f}ms {r['ratio']:6.3f} "
            f"{r['ratio_min']:6.3f} {r['memory_ratio']:7.3f} {r['tokens_per_second']:9.0f} "
            f"{rate:>17} {r['error']:8.1e}"
        )
    return lines


def mixers(
    names: str = typer.Option(
        "attention kda mla swiglu moe",
        "--mixers",
        help="Sublayers; the first is what ratios refer to.",
    ),
    dim: int = typer.Option(256, min=2),
    batch: int = typer.Option(8, min=1),
    seq_len: int = typer.Option(256, min=1),
    threads: int = typer.Option(1, min=1),
    repeats: int = typer.Option(20, min=2, help="Timed steps of each, interleaved."),
) -> None:
    """Time a training step of single sublayers, and a decoded token after two contexts."""
    from attnres_lab.benchmarks.mixers import CONTEXTS, measure

    rows = measure(names.replace(",", " ").split(), dim, batch, seq_len, threads, repeats)
    short, long = CONTEXTS
    print(
        f"{'mixer':12} {'step':>9} {'quartiles':>17} {'ratio':>6} {f'token at {short}':>13} "
        f"{f'at {long}':>10} {'ratio':>6}"
    )
    for row in rows:
        print(
            f"{row['mixer']:12} {row['train_ms']:7.1f}ms {row['train_ms_quartiles']:>17} "
            f"{row['train_ratio']:6.2f}",
            f"{row[f'decode_{short}_ms']:11.3f}ms {row[f'decode_{long}_ms']:8.3f}ms "
            f"{row['decode_ratio']:6.2f}"
            if "decode_ratio" in row
            else "",
        )


def pipeline(  # noqa: PLR0913
    dim: int = typer.Option(256, min=2),
    layers: int = typer.Option(8, min=1, help="Transformer layers, two sublayers each."),
    batch: int = typer.Option(8, min=1),
    seq_len: int = typer.Option(128, min=1),
    ranks: int = typer.Option(2, min=2),
    virtual: int = typer.Option(2, min=1, help="Stages of each rank."),
    microbatches: int = typer.Option(4, min=1),
    repeats: int = typer.Option(20, min=2, help="Timed steps of each arm, interleaved."),
    device: Literal["cpu", "cuda"] = typer.Option("cpu", help="cuda: a GPU for each rank."),
) -> None:
    """Time training steps of Block and Full over pipeline ranks against the baseline's, with and
    without cross-stage caching.
    """
    from attnres_lab.benchmarks import pipeline as harness

    case = harness.Case(dim, layers, batch, seq_len, ranks, virtual, microbatches, repeats, device)
    try:
        rows = harness.measure(case)
    except ValueError as error:
        raise UserError(str(error)) from None
    print(case)
    print(f"{'arm':16} {'median':>9} {'quartiles':>17} {'ratio':>6} {'of CPU':>6} {'MB/step':>8}")
    for r in rows:
        low, high = r.quartiles
        print(
            f"{r.arm:16} {r.median * 1e3:7.1f}ms {low * 1e3:8.1f}-{high * 1e3:8.1f} "
            f"{r.ratio:6.3f} {r.cpu_ratio:6.3f} {r.bytes / 1e6:8.2f}"
        )


def sweep(
    name: Path = typer.Argument(help="A sweep YAML, or the name of one, as sweep list has it."),
    scale: str | None = typer.Option(
        None, "--scale", help="For a study: nano, small, lab or paper."
    ),
    repeats: int = typer.Option(20, min=2, help="Timed steps of each variant, interleaved."),
) -> None:
    """Time a training step of each variant and size of a sweep that ran, on this device; its report
    then prices seconds by them, not by the clocks of trials that shared a machine.
    """
    from attnres_lab.benchmarks import steps
    from attnres_lab.cli.sweep import existing

    folder = existing(name, scale)
    print("\n".join(steps.lines(steps.measure(folder, repeats))))
    print(f"wrote {folder.timed}; attnres report {folder.path.name} takes it")
