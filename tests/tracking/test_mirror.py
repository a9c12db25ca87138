"""What is in a run folder is in the store, once."""

from __future__ import annotations

import errno
import math
import time

import pytest
from filelock import FileLock, Timeout
from tracking_helpers import OLD_LOADER, dump, position, wait_for, write_run

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import RunFolder, read_json, write_json
from attnres_lab.tracking import RunMirror, connect, rebuild, tracking_uri
from attnres_lab.tracking.single import single

pytestmark = pytest.mark.filterwarnings(OLD_LOADER)


def expected_points(files: RunFolder) -> set:
    """By hand from the folder: the first value of every key at every step; per-sublayer values stay
    in the depth records.
    """
    points: dict = {}
    for row in files.rows():
        for key, value in row.items():
            if key not in ("step", "time", "depth/entropy/03") and not isinstance(value, str):
                points.setdefault((key, row["step"]), value)
    for key, value in (read_json(files.result) or {}).items():
        if key != "step":
            points.setdefault((key, 50), value)
    return {(key, step, float(value)) for (key, step), value in points.items()}


def logged_points(run: dict) -> set:
    points = [point[:3] for point in run["points"] if not point[0].startswith("factor/")]
    assert len(points) == len({(key, step) for key, step, _ in points}), "a step is there twice"
    return set(points)


def test_a_run_arrives_whole(runs) -> None:
    """Rows, result, parameters, tags, data, status and artifacts of a run that trained inside the
    block; no chart of what is constant.
    """
    folder = runs / "train" / "tiny"
    with RunMirror(folder):
        files = write_run(folder)
        wait_for((folder / "tracking.json").exists)
        with pytest.raises(Timeout):  # nobody else mirrors it meanwhile
            FileLock(folder / ".tracking.lock", timeout=0).acquire()
    (run,) = dump(tracking_uri()).values()
    assert logged_points(run) == expected_points(files)
    assert run["params"]["model.residual.name"] == "full"
    assert run["params"]["budget"] == "40000 tokens"
    assert not [point for point in run["points"] if point[0].startswith("factor/")]
    expected = {
        "variant": "full",
        "seed": "0",
        "status": "finished",
        "data_fingerprint": "f00",
    }
    assert expected.items() <= run["tags"].items()
    assert run["status"] == "FINISHED"
    client = connect().client
    (found,) = client.search_runs([connect().experiment_id])
    run_id, (data,) = found.info.run_id, found.inputs.dataset_inputs
    assert (data.dataset.digest, data.tags[0].value) == ("f00", "training")
    assert found.data.tags["mlflow.user"] not in ("", "unknown")
    assert found.data.tags["mlflow.source.name"] == "attnres"
    assert {item.path for item in client.list_artifacts(run_id)} == {
        "config.yaml",
        "environment.json",
        "depth",
        "images",
    }
    ((name, state, facts, labels),) = run["models"]
    assert (name, state, run["outputs"]) == ("full-d32-L8-s0-checkpoint", "READY", [50])
    assert facts["checkpoint"] == str(files.checkpoint)
    assert (facts["step"], facts["bytes"], facts["val/loss"], labels["variant"]) == (
        "50",
        "7",
        "3.0",
        "full",
    )
    assert (runs / "artifacts" / run_id / "artifacts" / "depth" / "step-000050.json").exists()


def test_a_run_with_a_dot_in_its_name_arrives_whole(runs) -> None:
    """Labels have numbers, as a temperature; MLflow takes no dot in the name of a model."""
    folder = runs / "train" / "tiny"
    with RunMirror(folder):
        write_run(folder, variant="full-t0.5")
    (run,) = dump(tracking_uri()).values()
    assert (run["tags"]["variant"], run["status"]) == ("full-t0.5", "FINISHED")
    assert [model[0] for model in run["models"]] == ["full-t0_5-d32-L8-s0-checkpoint"]


def test_rows_that_a_resume_writes_again_are_not_doubled(runs) -> None:
    """Killed at step 50, cut back to step 20, trained on to 80 with other clocks; the mirror goes
    on or starts anew.
    """
    for name, restart in (("goes-on", False), ("anew", True)):
        files = write_run(runs / name, state="failed")
        mirror = single(connect(), files.path)
        mirror.sync()
        files.truncate_metrics(20)
        files.set_status("running")
        if restart:
            mirror = single(connect(), files.path)
        for step in range(30, 90, 10):
            files.append_metrics(
                position(step, when=1.8e9) | {"train/loss": 3.0 + 1 / step, "optim/lr": 0.1}
            )
            mirror.sync()
        files.append_metrics(position(80, when=1.8e9) | {"val/loss": 3.0})
        files.set_status("finished", step=80)
        mirror.sync()
        run = dump(tracking_uri())["full-d32-L8-s0"]
        # validated before it was killed
        assert logged_points(run) == expected_points(files) | {("val/loss", 50, 3.0)}
        assert run["status"] == "FINISHED"
        connect().client.delete_run(mirror.run_id)


def test_a_row_whose_answer_was_lost_is_not_doubled(runs, monkeypatch) -> None:
    """The store took a batch, but the connection broke before the answer, at every call in turn."""
    files = write_run(runs / "lost", steps=range(10, 60, 10))
    store = connect()
    calls = {"made": 0, "broken": -1}

    class Flaky:
        def __getattr__(self, name):
            method = getattr(store.client, name)

            def call(*args, **kwargs):
                answer = method(*args, **kwargs)
                calls["made"] += 1
                if calls["made"] - 1 == calls["broken"]:
                    raise ConnectionError("the answer was lost")
                return answer

            return call

    flaky = type(store)(Flaky(), store.experiment_id, store.label)
    for broken in range(20):
        calls.update(made=0, broken=broken)
        try:
            mirror = single(flaky, files.path)
            mirror.sync()
            mirror.sync_artifacts()
            break
        except ConnectionError:
            calls["broken"] = -1
    assert broken > 5
    (run,) = dump(tracking_uri()).values()
    assert logged_points(run) == expected_points(files)


def test_a_file_that_the_store_did_not_take_is_sent_the_next_time(runs) -> None:
    """Each upload is refused once: what was not sent is not remembered as sent."""
    files = write_run(runs / "refused")
    store, refused = connect(), set[str]()

    class Full:
        def __getattr__(self, name):
            method = getattr(store.client, name)

            def call(run_id, what, *args):
                if what not in refused:
                    refused.add(what)
                    raise OSError(errno.ENOSPC, "No space left on device", what)
                return method(run_id, what, *args)

            return call if name == "log_artifact" else method

    mirror = single(type(store)(Full(), store.experiment_id, store.label), files.path)
    mirror.sync()
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            mirror.sync_artifacts()
    mirror.sync_artifacts()
    assert len(refused) == 3
    (run,) = dump(tracking_uri()).values()
    assert {"config.yaml", "environment.json", "depth/step-000050.json"} < set(run["files"])


def test_a_result_that_was_repaired_reaches_the_store(runs) -> None:
    """The store had taken the wrong one, at the same step."""
    files = write_run(runs / "repaired")
    list(rebuild(files.path))
    write_json(files.result, (read_json(files.result) or {}) | {"val/loss": 2.5})
    files.set_status("finished", step=50)
    for _ in range(2):
        list(rebuild(files.path))
        (run,) = connect().client.search_runs([connect().experiment_id])
        assert run.data.metrics["val/loss"] == 2.5
    history = connect().client.get_metric_history(run.info.run_id, "val/loss")
    assert [point.value for point in history] == [3.0, 2.5]
    assert len(connect().client.get_metric_history(run.info.run_id, "tokens")) == 5


def test_numbers_that_are_none_are_not_stored(runs) -> None:
    """NaN and infinity become a tag that counts them."""
    files = write_run(runs / "diverged", steps=range(10, 30, 10), state="running")
    files.append_metrics(
        position(30) | {"train/loss": float("nan"), "optim/grad_norm": float("inf")}
    )
    # as Python's json writes them, and as a number that is too large
    with open(files.metrics, "a") as file:
        file.write('{"step": 40, "time": 1.7e9, "train/loss": NaN, "optim/grad_norm": 1e999}\n')
    files.set_status("diverged", step=40)
    mirror = single(connect(), files.path)
    mirror.sync()
    (run,) = dump(tracking_uri()).values()
    assert max(step for key, step, *_ in run["points"] if key == "train/loss") == 20
    assert run["tags"]["nonfinite.train/loss"] == "2 rows, first at step 30"
    assert run["tags"]["nonfinite.optim/grad_norm"] == "2 rows, first at step 30"
    assert all(math.isfinite(value) for _, _, value, _ in run["points"])
    assert (run["status"], run["tags"]["status"]) == ("FAILED", "diverged")


def test_every_state_is_told_with_the_class_of_its_failure(runs) -> None:
    """MLflow has fewer words, so the tags hold the exact ones."""
    ends = {"failed": "FAILED", "stopped": "KILLED", "pruned": "KILLED", "running": "RUNNING"}
    for state, told in ends.items():
        files = write_run(runs / state, state=state, steps=range(10, 20, 10))
        files.set_status(
            state,
            failure="out_of_memory" if state == "failed" else None,
            message="halve the batch",
            step=10,
        )
        mirror = single(connect(), files.path)
        mirror.sync()
        run = mirror.store.client.get_run(mirror.run_id)
        assert (run.info.status, run.data.tags["status"], run.data.tags["message"]) == (
            told,
            state,
            "halve the batch",
        )
        assert run.data.tags.get("failure") == ("out_of_memory" if state == "failed" else None)
    mirror.close()  # the process of the last one is gone
    run = mirror.store.client.get_run(mirror.run_id)
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", "killed")


def test_an_unreachable_server_does_not_stop_training(runs, monkeypatch, capfd) -> None:
    """One clear line, the rows stay in the folder, and rebuild sends them later."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:canary-password@127.0.0.1:1")
    monkeypatch.setattr("attnres_lab.tracking.mirror.GRACE", 1.0)
    began = time.monotonic()
    with RunMirror(runs / "tiny"):
        write_run(runs / "tiny")
        assert time.monotonic() - began < 5
        message = ""
        while "cannot be written" not in message:
            time.sleep(0.2)
            message += capfd.readouterr().err
    message += capfd.readouterr().err
    assert message.count("cannot be written") == 1
    assert "attnres track rebuild" in message
    assert "canary" not in message
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    list(rebuild(runs / "tiny"))
    assert dump(tracking_uri())["full-d32-L8-s0"]["status"] == "FINISHED"


@pytest.mark.parametrize("times", [1, 2])
def test_a_mirror_that_is_killed_is_started_again_or_named(runs, times, monkeypatch, capfd) -> None:
    """Once: the store is complete all the same. Twice: a line says so, with the remedy."""
    mirror, original = RunMirror(runs / "tiny"), RunMirror._end

    def killed_before_its_end(self):
        nonlocal times
        if times:
            times -= 1
            self._process.kill()
        return original(self)

    monkeypatch.setattr(RunMirror, "_end", killed_before_its_end)
    named = times == 2
    with mirror:
        write_run(runs / "tiny")
    said = capfd.readouterr().err
    assert ("attnres track rebuild" in said) == named == (said.count("\n") == 1)
    if not named:
        assert dump(tracking_uri())["full-d32-L8-s0"]["status"] == "FINISHED"


def test_an_address_that_is_none_is_refused_before_anything_is_trained(runs, monkeypatch) -> None:
    """A typing mistake in it would else be found after hours."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htps://user:canary@host")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: .*no address") as error:
        RunMirror(runs / "tiny")
    assert "canary" not in str(error.value)


def test_the_checkpoint_has_the_metrics_of_its_weights(runs) -> None:
    """So that models sort by loss; the run's own points stay single, also when it is sent again."""
    files = write_run(runs / "train" / "tiny")
    for _ in range(2):
        run = single(connect(), files.path)
        run.sync()
        run.sync_artifacts()
        memory = read_json(files.path / "tracking.json")
        write_json(files.path / "tracking.json", {"id": memory["id"]})  # what was sent is forgotten
    store, by_loss = connect(), [{"field_name": "metrics.val/loss"}]
    (model,) = store.client.search_logged_models([store.experiment_id], order_by=by_loss)
    found = {metric.key: metric.value for metric in model.metrics}
    assert found == {"val/loss": 3.0, "train/loss": 3.0 + 1 / 50}
    assert len(model.metrics) == 2
    (shown,) = dump(tracking_uri()).values()
    assert logged_points(shown) == expected_points(files)


def test_a_duration_is_the_runs_own(runs) -> None:
    """From its folder, however late it is mirrored; a planned trial waits without a start."""
    files = write_run(runs / "train" / "tiny")
    status = read_json(files.path / "status.json")
    write_json(files.environment, read_json(files.environment) | {"started": 1.7e9})
    write_json(files.path / "status.json", status | {"updated": 1.7e9 + 90.5})
    single(connect(), files.path).sync()
    (run,) = connect().client.search_runs([connect().experiment_id])
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_000, 1_700_000_090_500)


def test_a_result_without_rows_is_of_the_time_when_its_run_ended(runs) -> None:
    """Of a function of the user's, or taken from a table."""
    files = RunFolder(runs / "train" / "own")
    files.path.mkdir(parents=True)
    write_json(files.result, {"val/loss": 3.0})
    files.set_status("finished", step=7)
    single(connect(), files.path).sync()
    (run,) = connect().client.search_runs([connect().experiment_id])
    (metric,) = run.data._metric_objs
    assert metric.timestamp == run.info.end_time == int(files.status().updated * 1000)
