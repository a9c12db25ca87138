"""Run folders are read whatever a crash, a full disk or a stray hand left in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnres_lab.runs import RowReader, RunFolder, Status
from attnres_lab.runs.files import read_json, write_json

DAMAGE = {
    "half": b'{"state": "fini',
    "empty": b"",
    "garbage": b"\x00\xff\x17" * 40,
    "list": b'["finished"]',
    "number": b"3",
    "deep": b"[" * 100_000,
}


def test_the_package_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, attnres_lab.runs; print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_set_aside_and_named_in_one_line(kind, tmp_path, capsys) -> None:
    path = tmp_path / "status.json"
    for n in (1, 2):
        path.write_bytes(DAMAGE[kind])
        assert read_json(path) is None
        assert not path.exists()
        assert (tmp_path / f"status.json.damaged-{n}").read_bytes() == DAMAGE[kind]
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert line.startswith(f"{path}: damaged")


@pytest.mark.parametrize(
    "value",
    [
        {"step": 3},
        {"state": "done"},
        {"state": ["finished"]},
        {"state": "failed", "failure": "fate"},
        {"state": "running", "step": "3"},
        {"state": "running", "colour": 1},
    ],
)
def test_a_status_that_is_none_costs_its_own_run(value, tmp_path, capsys) -> None:
    run = RunFolder(tmp_path)
    write_json(tmp_path / "status.json", value)
    assert run.status() == Status("scheduled")
    assert "status.json: damaged" in capsys.readouterr().err
    run.set_status("running", step=4)
    assert run.status().step == 4


def test_rows_that_are_none_are_left_out_by_every_reader(tmp_path, capsys) -> None:
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1, "time": 0.0})
    with open(run.metrics, "ab") as file:
        file.write(b'{"step": \n\x00\x00\n[1]\n{"time": 1}\n')
    run.append_metrics({"step": 2, "time": 0.0})
    with open(run.metrics, "ab") as file:
        file.write(b'{"step": 3, "tim')  # still being written
    assert [row["step"] for row in run.rows()] == [1, 2]
    assert [row["step"] for row in RowReader(run.metrics).new()] == [1, 2]
    assert run.last_row()["step"] == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_last_row_is_found_however_long_it_is(tmp_path) -> None:
    run = RunFolder(tmp_path)
    assert run.last_row() == {}
    for step in range(3):
        run.append_metrics({"step": step} | {f"depth/{k}": 0.125 for k in range(5000)})
    assert run.last_row()["step"] == 2


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 30)),
        st.tuples(st.just("cut"), st.integers(0, 12)),
        st.tuples(st.just("look"), st.just(0)),
    ),
    max_size=30,
)


@given(events=EVENTS)
def test_a_poller_ends_with_the_rows_of_the_file(tmp_path_factory, events) -> None:
    """Whatever is appended and cut between its looks; rows are of different lengths, so that old
    offsets fall into the middle of new lines.
    """
    run = RunFolder(tmp_path_factory.mktemp("run"))
    reader, seen, step, count = RowReader(run.metrics), [], 0, 0
    for event, size in [*events, ("look", 0)]:
        if event == "append":
            step, count = step + 1, count + 1
            run.append_metrics({"step": step, "time": float(count), "x" * size: 1.0})
        elif event == "cut":
            step = min(step, size)
            run.truncate_metrics(step)
        else:
            new = reader.new()
            seen = new if reader.restarted else seen + new
    assert seen == list(run.rows())


def test_rows_are_on_the_disk_before_the_status_that_counts_on_them(tmp_path, monkeypatch) -> None:
    run, synced = RunFolder(tmp_path), []
    run.append_metrics({"step": 1, "time": 0.0})
    fsync = os.fsync

    def spy(number: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    monkeypatch.setattr(os, "fsync", spy)
    run.set_status("finished", step=1)
    assert synced[0] == "metrics.jsonl"
    assert "status.json" in synced[1]


def test_numbers_that_json_lacks_are_words(tmp_path) -> None:
    write_json(tmp_path / "a.json", {"a": [float("nan")], "b": {"c": float("-inf")}})
    assert read_json(tmp_path / "a.json") == {"a": ["nan"], "b": {"c": "-inf"}}


def test_another_digit_in_a_file_is_damage(tmp_path, capsys) -> None:
    write_json(file := tmp_path / "result.json", {"val/loss": 1.25, "step": 3})
    file.write_text(file.read_text().replace("1.25", "1.24"))
    assert read_json(file) is None
    assert "result.json: damaged; set aside as result.json.damaged-1" in capsys.readouterr().err
    file.write_text('{"value": 2.0}')  # by a function of the user's, which knows no checksums
    assert read_json(file) == {"value": 2.0}
