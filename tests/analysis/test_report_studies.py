"""Each study gets its tables and its figures, with the paper's beside them."""

import re

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import published, section

from analysis import paper
from analysis.report import write_report


def test_a_swept_learning_rate_is_chosen_per_variant_and_its_edge_is_a_warning(
    tmp_path, quick
) -> None:
    """Loss is worse by 0.05 (log2 lr)^2: the optimum 1 lies inside for the baseline; Full is made
    to have its own at the edge, 4.
    """
    table = published(tmp_path)
    table = table[table["variant"].isin(["baseline", "full"])]
    shift = {"baseline": 0.0, "full": 2.0}
    rates = [
        table.assign(
            **{
                "optim.lr": lr,
                "val/loss": table["val/loss"]
                + 0.05 * (np.log2(lr) - table["variant"].map(shift)) ** 2,
            }
        )
        for lr in (0.5, 1, 2, 4)
    ]
    pd.concat(rates).to_csv(tmp_path / "runs.csv", index=False)
    text = write_report(tmp_path / "runs.csv", tmp_path / "out").markdown.read_text()
    assert "each variant at its own best optim.lr" in text.split("## ")[0]
    assert re.search(r"\| full \| flops \| 1.306 \| 1.232 to 1.38", text)
    # 0.05 * 2^2, as put in
    assert "| 194M | full | 4 | 1.8990 | 1 | 2.0990 | 0.2000 |" in section(
        text, "Own or shared optim.lr"
    )
    assert "| 194M | baseline | 1 | 1.9310 | 1 | 1.9310 | 0.0000 |" in text
    edges = re.findall(r"optim.lr: .*", section(text, "Warnings"))
    assert edges == [
        "optim.lr: the best value of full is on the edge of those tried at 194M (4), 241M (4), "
        "296M (4), 436M (4), 528M (4)"
    ]
    assert (tmp_path / "out" / "by_optim.lr.png").exists()


def test_an_optimum_inside_is_no_warning(tmp_path, quick) -> None:
    table = published(tmp_path)
    rates = [
        table.assign(**{"optim.lr": lr, "val/loss": table["val/loss"] + 0.05 * np.log2(lr) ** 2})
        for lr in (0.5, 1, 2)
    ]
    pd.concat(rates).to_csv(tmp_path / "runs.csv", index=False)
    text = write_report(tmp_path / "runs.csv", tmp_path / "out").markdown.read_text()
    assert "each variant at its own best optim.lr" in text
    assert "on the edge" not in text


def test_one_size_is_reported_as_an_ablation(tmp_path, quick) -> None:
    """Full is made better by 0.03 and DenseFormer by nothing, with a seed effect that pairing
    removes.
    """
    effect = {"baseline": 0.0, "full": -0.03, "denseformer": 0.0}
    noise = np.random.default_rng(1)
    rows = [
        {
            "variant": v,
            "size": "d64-L8",
            "seed": s,
            "flops": 1e15,
            "val/loss": 2 + e + 0.02 * s + noise.normal(0, 0.001),
        }
        for v, e in effect.items()
        for s in range(5)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    assert "too thin for a compute-equivalent gain of denseformer, full" in report.verdict
    difference, low, high = map(
        float,
        re.search(
            r"full: better, (\S+) nats \(95 % interval (\S+) to (\S+), 5 pairs", report.verdict
        ).groups(),
    )
    assert low <= -0.03 <= high
    assert difference == pytest.approx(-0.03, abs=0.003)
    assert re.search("denseformer: (no difference is shown|equivalent)", report.verdict)


def test_an_isoflop_study_finds_the_exponent_and_the_gain_that_were_put_in(tmp_path, quick) -> None:
    """Parabolas in log N around N = (C / 120)^0.5, lowest loss 1.5 + (gain C / 1e15)^-0.1 with a
    gain of 1.3.
    """
    rows = []
    for variant, gain in {"baseline": 1.0, "full": 1.3}.items():
        for c in (1e15, 4e15, 1.6e16, 6.4e16):
            for k, factor in reversed([*enumerate((0.3, 0.6, 1.1, 2.0, 3.5))]):
                n = factor * (c / 120) ** 0.5
                loss = (gain * c / 1e15) ** -0.1 * 3 + 0.05 * np.log(factor) ** 2 + 1e-6 * (-1) ** k
                row = {
                    "variant": variant,
                    "size": f"s{k}",
                    "seed": 0,
                    "params": n,
                    "tokens": c / 6 / n,
                    "flops": c,
                    "budget": f"{c} flops",
                    "val/loss": loss,
                }
                rows.append(row)
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    text = report.markdown.read_text()
    assert "given 1.30 times the compute" in report.verdict
    assert "5 sizes (s0, s1, s2, s3, s4)" in report.verdict
    assert re.search(r"full: the best N grows as C\^0.500 ", section(text, "Compute-optimal sizes"))
    assert "isoflop_full.png" in {figure.name for figure in report.figures}

    begun = pd.DataFrame(rows).query("flops == 1e15 or params < 0.5 * (flops / 120) ** 0.5")
    begun.to_csv(tmp_path / "begun.csv", index=False)
    text = write_report(tmp_path / "begun.csv", tmp_path / "begun").markdown.read_text()
    assert "full: 1 of 4 budgets have a best size" in section(text, "Compute-optimal sizes")


@pytest.mark.parametrize(
    "size",
    ["{heads}-{aspect}", "d{aspect}-L20"],
    ids=["a size per cell", "heads within a size, as sweeps label it"],
)
def test_the_published_shapes_show_their_published_optimum(tmp_path, quick, size) -> None:
    """Paper, Fig. 7: the best d / num_layers moves from 60 to 45; at one budget there is no gain to
    be had.
    """
    rows = []
    for variant, ours in {"baseline": "baseline", "attnres": "full"}.items():
        for (heads, aspect), loss in paper.figure_7(variant).stack().items():
            config = {
                "model.num_layers": 20,
                "model.dim": 20 * aspect,
                "model.num_heads": 20 * heads,
            }
            label = size.format(heads=heads, aspect=aspect)
            rows.append(
                {
                    "variant": ours,
                    "size": label,
                    "seed": 0,
                    "flops": 6.5e19 * (1 + aspect / 1000),
                    "val/loss": loss,
                    **config,
                }
            )
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    assert "baseline: lowest at d / num_layers = 60" in report.markdown.read_text()
    assert "full: lowest at d / num_layers = 45" in report.markdown.read_text()
    assert "span only a factor 1.1 in flops" in report.verdict


def test_block_sizes_stand_beside_the_papers(tmp_path, quick) -> None:
    config = {"size": "d64-L8", "flops": 1e15, "model.num_layers": 8}
    blocks = {
        "baseline": (None, 1.95),
        "full": (None, 1.90),
        "block8": (8, 1.91),
        "block4": (4, 1.92),
        "block2": (2, 1.93),
    }
    rows = [
        {
            "variant": v,
            "seed": s,
            "model.residual.num_blocks": n,
            "val/loss": y + 0.01 * s,
            **config,
        }
        for v, (n, y) in blocks.items()
        for s in (0, 1)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    assert "block_size.png" in {figure.name for figure in report.figures}


def test_differences_by_depth_at_fixed_compute(tmp_path, quick) -> None:
    """Full is made better by 0.01 nats per doubling of the depth; a table and a figure show it."""
    rows = []
    for layers in (2, 4, 8, 16):
        for seed in range(3):
            common = {"size": f"L{layers}", "seed": seed, "flops": 1e15, "model.num_layers": layers}
            rows.append({"variant": "baseline", "val/loss": 2 + 0.01 * seed, **common})
            rows.append(
                {
                    "variant": "full",
                    "val/loss": 2 + 0.01 * seed - 0.01 * np.log2(layers) + 1e-4 * seed,
                    **common,
                }
            )
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    text = section(report.markdown.read_text(), "Depth at fixed compute")
    assert [round(float(d), 2) for d in re.findall(r"\| (-0\.\d+) \(", text)] == [
        -0.01,
        -0.02,
        -0.03,
        -0.04,
    ]
    assert "by_layers.png" in {figure.name for figure in report.figures}


def test_speed_stands_beside_the_baselines(tmp_path, quick) -> None:
    table = published(tmp_path)
    step = table["variant"].map({"baseline": 0.1}).fillna(0.13)
    table.assign(
        **{
            "perf/step_seconds": step,
            "perf/tokens_per_second": 1e4 / step,
            "perf/flops_per_second": 1e12,
        }
    ).to_csv(tmp_path / "runs.csv", index=False)
    text = section(
        write_report(tmp_path / "runs.csv", tmp_path / "out").markdown.read_text(), "Cost"
    )
    assert "| full | 0.13 | 7.692e+04 | 1e+12 | 1.3 |" in text
