"""A report says what was found, under which conditions, and what the evidence does not carry."""

import re

import numpy as np
import pandas as pd
import pytest
from analysis_helpers import published, section

from analysis.report import write_report

# MLflow with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def test_the_verdict_comes_first_and_finds_the_gain_that_was_put_in(text, tracked) -> None:
    head = text.split("## ")[0]
    for variant in ("full", "block8"):
        value, low, high = map(
            float,
            re.search(
                rf"{variant} is better.* given (\S+) times the compute \(95 % interval (\S+) to "
                r"(\S+),",
                head,
            ).groups(),
        )
        assert low <= tracked.gains[variant] <= high
        assert value == pytest.approx(tracked.gains[variant], rel=0.02)
    assert "Conditions: 24 runs, 4 sizes" in head
    assert "2 seeds" in head
    assert "at most 1.6 passes over the 250,000 training tokens" in head


def test_the_gain_in_time_stands_beside_the_gain_in_compute(text) -> None:
    """In the made sweep a second is 1e14 FLOP for every variant, so both gains are the same."""
    compute = re.search(
        r"full is better: it behaves like baseline given (\S+) times the compute", text
    )[1]
    assert re.search(
        rf"In training time, not FLOP, the gain is: .*full {compute} \(",
        text.split("## ")[0],
    )


def test_every_promised_part_is_there(text) -> None:
    titles = re.findall(r"^## (.*)$", text, re.M)
    assert titles == [
        "Question",
        "Compute-equivalent gain",
        "Losses",
        "Ablation",
        "Depth",
        "Warnings",
        "Plan",
        "Cost",
        "Environment",
        "How to reproduce",
    ]
    assert "What do Full and Block buy at a scale that a laptop can train?" in section(
        text, "Question"
    )
    assert "24 finished, 1 diverged" in section(text, "Plan")
    assert "name: demo" in section(text, "Plan")
    assert "attnres sweep run sweeps/demo.yaml" in section(text, "How to reproduce")
    assert "git checkout abc1234" in section(text, "How to reproduce")
    assert "| versions.torch | 2.13.0 |" in section(text, "Environment")


def test_the_cost_is_the_sum_over_all_runs(text, tracked) -> None:
    # one more run diverged at the largest size
    total = 6 * sum(tracked.sizes.values()) + max(tracked.sizes.values())
    assert f"| all | 25 | {total:.4g} |" in section(text, "Cost")


def test_a_diverged_run_is_a_warning(text) -> None:
    assert "1 diverged run of full" in section(text, "Warnings")


def test_the_gains_are_in_one_table_each_once(text) -> None:
    tables = [part for part in text.split("\n\n") if part.startswith("| variant | per |")]
    assert len(tables) == 1
    rows = [line.split(" | ")[:2] for line in tables[0].splitlines()[2:]]
    assert rows == [["| block8", "flops"], ["| block8", "seconds"],
                    ["| full", "flops"], ["| full", "seconds"]]  # fmt: skip


def test_device_seconds_that_are_the_seconds_are_no_second_row(text) -> None:
    table = section(text, "Compute-equivalent gain")
    assert "| full | seconds |" in table
    assert "device_seconds" not in table


def test_gain_and_ablation_say_which_question_each_answers(tmp_path, quick) -> None:
    """Every loss is lower at equal steps, by just what the variant's extra FLOP buy."""
    rng = np.random.default_rng(0)
    rows = []
    for size, flops in (("s", 1e13), ("m", 4e13), ("l", 1.6e14), ("xl", 6.4e14)):
        for seed in (0, 1, 2):
            for variant, more in (("baseline", 1.0), ("full", 1.3)):
                loss = 20 * (flops * more) ** -0.05 * (1 + 3e-4 * rng.standard_normal())
                rows.append((variant, size, seed, flops * more, 1e6, loss))
    columns = ["variant", "size", "seed", "flops", "tokens", "val/loss"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    text = report.markdown.read_text()
    assert "No difference is shown: full" in report.verdict
    asked = "lower at equal size and steps, without charging a variant's extra FLOP"
    assert f"{asked}: there full is better (" in report.verdict
    assert section(text, "Ablation").strip().startswith(f"Is the loss {asked}?")
    gain = section(text, "Compute-equivalent gain").strip()
    assert gain.startswith("How much compute is a variant worth?")


def test_answers_of_one_kind_need_no_second_sentence(demo) -> None:
    assert "is better" in demo.verdict
    assert "Two questions" not in demo.verdict


def test_depth_records_come_from_the_store_where_the_folder_is_gone(tracked, tmp_path) -> None:
    from mlflow import MlflowClient

    from analysis.report.evidence import gather

    client = MlflowClient(tracked.uri)
    evidence = gather("demo", None, tmp_path, tracked.uri)
    run = evidence.chosen[
        (evidence.chosen["variant"] == "full") & (evidence.chosen["size"] == "d96-L12")
    ].iloc[0]
    client.log_artifact(
        run["run_id"],
        str(next(tracked.folder.glob("trials/full*/artifacts/depth/*.json"))),
        "depth",
    )
    assert list(evidence.depth) == ["full"]
    assert len(evidence.depth["full"].attention) == 8


def test_the_published_table_reports_its_published_gain(tmp_path, quick) -> None:
    """STATISTICS: Block 1.2390 [1.1838, 1.2967], Full 1.3064 [1.2318, 1.3855], p = .16; Table 2 has
    one seed.
    """
    published(tmp_path)
    text = write_report(tmp_path / "runs.csv", tmp_path / "out").markdown.read_text()
    gain = section(text, "Compute-equivalent gain")
    assert re.search(
        r"\| block \| flops \| 1.239 \| 1.184 to 1.297 \| 1.185 to 1.299 \| \S+ \| 0.16 \|", gain
    )
    assert re.search(r"\| full \| flops \| 1.306 \| 1.232 to 1.385 \|", gain) or re.search(
        r"\| full \| flops \| 1.306 \| 1.232 to 1.386 \|", gain
    )
    assert "one seed" in text.split("## ")[0]


def test_a_gain_that_is_not_identified_is_not_in_the_verdict(tmp_path, quick) -> None:
    """Losses that scatter so much that their slope cannot be told from 0."""
    table = published(tmp_path)
    rng = np.random.default_rng(0)
    noise = pd.Series(rng.normal(0, 0.15, 5), index=table["size"].unique())
    table["val/loss"] *= np.exp(table["size"].map(noise))
    table.to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    assert "the exponent in flops cannot be told from 0" in report.verdict
    assert "times the compute" not in report.verdict


def test_too_few_sizes_say_that_nothing_was_found(tmp_path, quick) -> None:
    table = published(tmp_path)
    table[table["size"].isin(["194M", "528M"])].to_csv(tmp_path / "runs.csv", index=False)
    report = write_report(tmp_path / "runs.csv", tmp_path / "out")
    assert "too thin for a compute-equivalent gain of block, full, mhc-lite" in report.verdict
    assert "need at least 3" in report.verdict
    assert [figure.name for figure in report.figures] == ["ablation.png", "ablation_paper.png"]


def test_a_sweep_without_a_baseline_compares_nothing(tmp_path, quick) -> None:
    table = published(tmp_path)
    table[table["variant"] != "baseline"].to_csv(tmp_path / "runs.csv", index=False)
    assert (
        "no finished run of the baseline"
        in write_report(tmp_path / "runs.csv", tmp_path / "out").verdict
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val/loss": np.nan}, "none of its 20 runs has finished"),
        ({"status": "failed"}, "none of its 20 runs has finished"),
    ],
)
def test_nothing_to_report_is_one_line(tmp_path, change, message) -> None:
    published(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "runs.csv", tmp_path / "out")


def test_missing_columns_are_named(tmp_path) -> None:
    pd.DataFrame({"variant": ["a"], "loss": [1.0]}).to_csv(tmp_path / "runs.csv")
    with pytest.raises(ValueError, match="no column size, val/loss"):
        write_report(tmp_path / "runs.csv", tmp_path / "out")


def test_the_command_prints_the_verdict_and_stores_the_report_with_the_sweep(
    tracked, monkeypatch, quick
) -> None:
    from mlflow import MlflowClient
    from typer.testing import CliRunner

    from attnres_lab.cli import app

    monkeypatch.setenv("ATTNRES_RUNS", str(tracked.folder.parents[1]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(app, ["report", str(tracked.spec)])
    assert result.exit_code == 0, result.output
    assert "full is better: it behaves like baseline given 1.30 times the compute" in result.stdout
    assert str(tracked.folder / "report" / "report.html") in result.stdout
    client = MlflowClient(tracked.uri)
    experiment = client.get_experiment_by_name("attnres").experiment_id
    parents = client.search_runs([experiment], "tags.kind = 'sweep'")
    stored = {
        file.path for run in parents for file in client.list_artifacts(run.info.run_id, "report")
    }
    assert {"report/report.html", "report/report.md", "report/loss.png"} <= stored


def test_the_command_names_a_sweep_file_without_a_name(tmp_path) -> None:
    from attnres_lab.cli.report import report
    from attnres_lab.errors import UserError

    (tmp_path / "x.yaml").write_text("space: {}\n")
    with pytest.raises(UserError, match="name: missing"):
        report(tmp_path / "x.yaml", None)
