"""What a report says of the settings, rates, seeds and tables that its runs are of."""

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import published, section

from analysis import paper
from analysis.report import write_report
from analysis.report.evidence import gather
from analysis.report.sections import verdict


def test_each_cell_of_a_tuned_study_with_another_factor_has_a_value_of_its_own(
    tmp_path, quick
) -> None:
    """The best rate is put in: 1 with one head, 4 with two; twice that for Full. It follows from
    the cell, so it is no factor of which an arm took its best.
    """
    table = published(tmp_path)
    table, cells = table[table["variant"].isin(["baseline", "full"])], []
    for heads, best in ((1, 1.0), (2, 4.0)):
        own = best * table["variant"].map({"baseline": 1.0, "full": 2.0})
        measured = table.assign(**{"model.num_heads": heads, "optim.lr": own, "tuning": False})
        cells.append(measured.assign(**{"val/loss": table["val/loss"] + 0.01 * heads}))
        cells += [
            cells[-1].assign(
                **{
                    "optim.lr": rate,
                    "val/loss": table["val/loss"] + 0.05 * np.log2(rate / own) ** 2,
                    "tuning": True,
                }
            )
            for rate in (0.25, 0.5, 1, 2, 4, 8, 16)
        ]
    pd.concat(cells).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "spec.yaml").write_text("tune: {key: optim.lr}\n")
    text = write_report(
        tmp_path / "runs.csv", tmp_path / "out", spec=tmp_path / "spec.yaml"
    ).markdown.read_text()
    assert "each variant at its own best model.num_heads of those tried" in text
    assert "each variant at optim.lr of its own" in text
    assert "optim.lr:" not in section(text, "Warnings")
    rows = section(text, "Tuned optim.lr")
    assert "| 194M model.num_heads=1 | 1 | 2 |" in rows
    assert "| 194M model.num_heads=2 | 4 | 8 |" in rows
    assert not (tmp_path / "out" / "by_optim.lr.png").exists()


@pytest.mark.parametrize("rates", [(0.01, 0.01), (0.01, 0.02)])
def test_rates_that_were_given_to_each_variant_are_not_called_shared(tmp_path, rates) -> None:
    """As the quickstart gives them: one setting each, so nothing was chosen in this sweep."""
    rows = [
        (variant, "d8-L2", seed, 2.0 + seed / 100, rate)
        for variant, rate in zip(("baseline", "full"), rates, strict=True)
        for seed in (0, 1, 2)
    ]
    columns = ["variant", "size", "seed", "val/loss", "optim.lr"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "runs.csv", index=False)
    verdict = write_report(tmp_path / "runs.csv", tmp_path / "report").verdict
    shared = rates[0] == rates[1]
    assert ("all settings but the residual connection shared" in verdict) == shared
    own = "each variant at optim.lr of its own; the other settings shared"
    assert (own in verdict) == (not shared)


@pytest.mark.parametrize(
    ("spec", "tuning", "said"),
    [
        ("tune: {key: optim.lr, values: {}}\n", False, "Given in the sweep's file."),
        (
            "tune: {key: optim.lr}\nobjective: {metric: val/accuracy, direction: maximize}\n",
            True,
            "Chosen by val/accuracy.",
        ),
    ],
)
def test_values_that_no_bowl_of_the_loss_gave_are_shown_without_one(
    tmp_path, quick, spec, tuning, said
) -> None:
    table = published(tmp_path)
    table = table[table["variant"].isin(["baseline", "full"])]
    own = table["variant"].map({"baseline": 1.0, "full": 0.5})
    runs = table.assign(**{"optim.lr": own, "tuning": False, "val/accuracy": 0.5})
    tried = [runs.assign(**{"optim.lr": own * 2.0**k, "tuning": True}) for k in (-1, 0, 1)]
    pd.concat([runs, *(tried if tuning else [])]).to_csv(tmp_path / "runs.csv", index=False)
    (tmp_path / "spec.yaml").write_text(spec)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out", spec=tmp_path / "spec.yaml")
    text = report.markdown.read_text()
    rows = section(text, "optim.lr of each cell")
    assert said in rows
    assert "| 194M | 1 | 0.5 |" in rows
    assert "Loss of the tuning runs" not in text


def test_no_value_that_every_cell_has_tried_is_said(tmp_path, quick) -> None:
    """Full's rates lie a hundred times below the baseline's, so no shared one can be told of."""
    table = published(tmp_path)
    table = table[table["variant"].isin(["baseline", "full"])]
    own = table["variant"].map({"baseline": 1.0, "full": 0.01})
    tried = [
        table.assign(**{"optim.lr": own * 2.0**k, "tuning": True, "val/loss": 2 + 0.05 * k**2})
        for k in (-1, 0, 1)
    ]
    measured = table.assign(**{"optim.lr": own, "tuning": False})
    pd.concat([measured, *tried]).to_csv(tmp_path / "runs.csv", index=False)
    text = write_report(tmp_path / "runs.csv", tmp_path / "out").markdown.read_text()
    assert "Not known: no optim.lr was tried in every cell." in section(text, "Tuned optim.lr")


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        (lambda size, k: k, "(a, b), 2 seeds;"),
        (lambda size, k: f"{size}{k}", "(a, b), 2 seeds of its own at each size;"),
        (lambda size, k: size, "(a, b), 1 seed of its own at each size;"),
    ],
)
def test_seeds_that_every_size_has_of_its_own_are_not_added_up(tmp_path, seed, words) -> None:
    rows = [
        (variant, size, seed(size, k), 1e12, 2.0 + k / 100)
        for variant in ("baseline", "full")
        for size in ("a", "b")
        for k in (0, 1)
    ]
    columns = ["variant", "size", "seed", "flops", "val/loss"]
    table = pd.DataFrame(rows, columns=columns).drop_duplicates(columns[:3])
    table.to_csv(tmp_path / "runs.csv", index=False)
    assert words in write_report(tmp_path / "runs.csv", tmp_path / "report").verdict


def test_a_report_on_a_table_of_ones_own_claims_no_settings_and_no_sweep(tmp_path, quick) -> None:
    """Widths are numbers there, and nothing is known but what its columns say."""
    table = published(tmp_path)[["variant", "size", "flops", "val/loss"]]
    table = table.assign(size=table["size"].str[:-1].astype(int), seconds=table["flops"] / 1e14)
    table.to_csv(tmp_path / "runs.csv", index=False)
    text = write_report(tmp_path / "runs.csv", tmp_path / "out").markdown.read_text()
    head = text.split("## ")[0]
    assert "full is better" in head
    assert "5 sizes (194, 241, 296, 436, 528)" in head
    assert "settings are not in the table" in head
    assert "by the seconds of the table" in head
    assert "attnres sweep" not in text
    assert "How the runs of this table were made is not known here." in text


def test_a_table_in_the_words_of_another_program_is_read_as_the_gain_reads_it(
    tmp_path, quick
) -> None:
    """Status in capitals or empty, FLOP as long whole numbers, and an arm without a pair."""
    table = paper.table_2()
    table["flops"] = [int(c) for c in table["flops"]]
    table["status"] = [None, *["FINISHED"] * 19]
    table.loc[table["variant"] == "block", "seed"] = 5
    table.to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    assert "full is better: it behaves like baseline given 1.31 times" in report.verdict
    assert "20 runs, 5 sizes" in report.verdict
    assert "nan" not in report.markdown.read_text()
    one = table[table["size"] == "194M"].drop(columns="flops")
    one.to_csv(tmp_path / "one.csv", index=False)
    words = verdict(gather(tmp_path / "one.csv", None, None, None))
    assert "block: no run has the size and seed of one of the baseline." in words


def test_a_run_without_a_variant_is_named(tmp_path) -> None:
    table = paper.table_2()
    table.loc[1, "variant"] = None
    table.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(ValueError, match="row 1: variant is empty"):
        write_report(tmp_path / "runs.csv", tmp_path / "out")


def test_without_flop_the_size_of_the_lowest_loss_is_the_largest(tmp_path) -> None:
    paper.table_2().drop(columns=["flops", "params"]).to_csv(tmp_path / "runs.csv", index=False)
    evidence = gather(tmp_path / "runs.csv", None, None, None)
    assert evidence.sizes == ["194M", "241M", "296M", "436M", "528M"]
