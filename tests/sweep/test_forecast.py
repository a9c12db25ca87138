"""The time left of a sweep, against sweeps of which the end is known."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from attnres_lab.runs.folder import Status, write_json
from attnres_lab.runs.progress import Progress
from attnres_lab.runs.sweep import Entry
from attnres_lab.sweep.forecast import Outlook, forecast, schedule
from attnres_lab.sweep.plan import make_plan
from attnres_lab.sweep.planview import _cost
from attnres_lab.sweep.pricing import Device, Price, Speeds, outlook
from attnres_lab.sweep.spec import load_spec
from attnres_lab.sweep.summary import summary
from attnres_lab.sweep.trials import Trial
from attnres_lab.sweep.view import Screen
from tests.sweep.conftest import Lab
from tests.sweep.test_tuning import tuned

START = 1_000_000.0
SIZES = {"s": (1e4, 2e9), "m": (1e5, 2e10), "l": (1e6, 2e11)}  # parameters, FLOPs
FACTOR = {"baseline": 1.0, "full": 1.4}


def training(size: str, variant: str) -> float:
    """Seconds: small models use their device badly, as on any machine (12, 19, 60 s)."""
    params, flops = SIZES[size]
    return FACTOR[variant] * (10 + flops / (4e9 * (params / 1e6) ** 0.3))


@dataclass(frozen=True)
class Job:
    """A planned trial with when it starts and ends; 3 s of its time are no training."""

    entry: Entry
    begun: float
    end: float

    def at(self, now: float) -> Progress:
        """What the folder shows."""
        e, whole = self.entry, self.end - self.begun - 3
        if now >= self.end:
            row = {"flops": e.flops, "seconds": whole}
            return Progress(e, Status("finished", updated=self.end), row, None, self.begun)
        if now < self.begun:
            return Progress(e, Status("scheduled"), {}, None)
        share = min(1.0, max(0.0, now - self.begun - 2) / whole)
        share = int(share * 20) / 20  # rows are written now and then
        row = {"flops": share * (e.flops or 0), "seconds": share * whole} if share else {}
        beat = 4e9  # alive
        return Progress(e, Status("running"), row, beat, self.begun)


def sweep(slots: int, seeds: int = 3) -> list[Job]:
    """The largest first, as the coordinator starts them."""
    jobs, ends = list[Job](), [START] * slots
    order = sorted(
        ((s, v, seed) for s in SIZES for v in FACTOR for seed in range(seeds)),
        key=lambda job: -SIZES[job[0]][1],
    )
    for size, variant, seed in order:
        params, flops = SIZES[size]
        name = f"{variant}-{size}-s{seed}"
        entry = Entry(name, name, {}, variant, size, seed, name, int(params), flops, 1)
        begun = heapq.heappop(ends)
        heapq.heappush(ends, end := begun + 3 + training(size, variant))
        jobs.append(Job(entry, begun, end))
    return jobs


def errors(
    jobs: list[Job], slots: int, outlook: Outlook, since: float
) -> list[tuple[float, float]]:
    """What was left and what was said, at each 2 s from ``since`` on."""
    last, found = max(job.end for job in jobs), []
    now = since
    while now < last - 2:
        said = forecast([job.at(now) for job in jobs], slots, outlook, now).seconds_left
        assert said is not None
        found.append((last - now, said))
        now += 2
    return found


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_time_left_is_right_to_a_third_and_once_all_sizes_ran_to_a_twentieth(
    slots: int,
) -> None:
    """Nothing was measured beforehand. FLOPs alone, the large trials first, are wrong by far more:
    the small ones left take ten times their share.
    """
    jobs = sweep(slots, seeds=4)
    first = min(job.end for job in jobs)
    found = errors(jobs, slots, Outlook(), first)
    assert max(abs(said - left) - left / 3 for left, said in found) < 3
    late = max(min(j.end for j in jobs if j.entry.size == "s" and v in j.entry.run_name) + 2
               for v in FACTOR)  # fmt: skip
    found = errors(jobs, slots, Outlook(), late)
    assert max(abs(said - left) - left / 20 for left, said in found) < 3

    def by_flops(now: float) -> float:
        """What was said before: FLOPs left at the rate of those done."""
        seen = [job.at(now) for job in jobs]
        done = [t for t in seen if t.done]
        rate = sum(t.row["flops"] for t in done) / sum(t.row["seconds"] for t in done)
        return sum((t.entry.flops or 0) * (1 - _part(t)) for t in seen) / rate / slots

    last = max(job.end for job in jobs)
    assert min(by_flops(last - left) / left for left in (25, 50, 100) if last - left > first) < 0.35


def _part(t: Progress) -> float:
    return float(t.row.get("flops", 0.0)) / (t.entry.flops or 1.0)


def test_measured_seconds_tell_before_anything_ended() -> None:
    """They are of training alone; the rest is learned from the first trial on."""
    jobs = sweep(2)
    seconds = {j.entry.hash: training(j.entry.size, j.entry.variant) for j in jobs}
    found = errors(jobs, 2, Outlook(seconds), START)
    assert max(abs(said - left) / left for left, said in found if left > 20) < 0.15
    assert forecast([job.at(START) for job in jobs], 2, Outlook(), START).seconds_left is None


def test_trials_that_are_still_to_be_planned_count() -> None:
    jobs = sweep(2)
    entries = [(job.entry, 1.0) for job in jobs if job.entry.size == "m"]
    known = [job for job in jobs if job.entry.size != "m"]
    seconds = {j.entry.hash: training(j.entry.size, j.entry.variant) for j in jobs}
    now = [job.at(START) for job in known]
    whole = sum(seconds.values()) / 2
    found = forecast(now, 2, Outlook(seconds, entries), START)
    assert found.seconds_left == pytest.approx(whole, rel=0.1)
    done = [job.at(START + 1e6) for job in known]
    assert forecast(done, 2, Outlook(seconds, entries), START).share < 1


def test_the_bar_goes_by_time_and_hardly_back() -> None:
    """A trial of a tenth of the time is a tenth of the bar, whatever the number of trials."""
    jobs = sweep(1, seeds=1)
    seconds = {j.entry.hash: training(j.entry.size, j.entry.variant) for j in jobs}
    last = max(job.end for job in jobs)
    shares = [
        forecast([j.at(now) for j in jobs], 1, Outlook(seconds), now).share
        for now in (START + part * (last - START) / 50 for part in range(51))
    ]
    assert all(b > a - 0.01 for a, b in itertools.pairwise(shares))
    assert shares[-1] == 1
    assert max(abs(share - part / 50) for part, share in enumerate(shares)) < 0.06


def test_a_budget_of_seconds_and_an_odd_clock() -> None:
    """Entries without FLOPs take what their likes took; a file from the future says nothing."""
    jobs = sweep(2)
    entries = [Entry(**{**vars(j.entry), "flops": None}) for j in jobs[:4]]
    done = Progress(entries[0], Status("finished", updated=START), {"seconds": 30}, None, START + 9)
    left = [Progress(e, Status("scheduled"), {}, None) for e in entries[1:]]
    assert forecast([done, *left], 1, now=START).seconds_left == pytest.approx(90)


def test_the_time_left_goes_by_the_order_of_the_sweep() -> None:
    """Of 1, 1, 1 and 9 s, two at a time: the large one first ends after 9 s, last after 1 + 9."""
    sizes = {"a": 1.0, "b": 1.0, "c": 1.0, "large": 9.0}
    entries = [Entry(name, name, {}, "full", name, 0, name, 1, s, 1) for name, s in sizes.items()]
    left, known = [Progress(e, Status("scheduled"), {}, None) for e in entries], Outlook(sizes)
    for smallest, seconds in ((False, 9.0), (True, 10.0)):
        assert forecast(left, 2, known, START, smallest=smallest).seconds_left == seconds
        facts = summary(left, slots=2, outlook=known, smallest=smallest)
        assert facts["seconds_left"] == seconds


def test_the_order_is_that_of_the_sweep_s_file(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the screen of a run, and in the price of a plan."""
    for order, left in (("largest", "0:00:09"), ("smallest", "0:00:10")):
        lab.run(lab.sweep(order=order, space={"seed": [0, 1, 2, 3]}))
        for hash in lab.states():
            lab.folder.trial(hash).set_status("scheduled")
        capsys.readouterr()
        with Screen(lab.folder, ("val/loss", "minimize"), 2) as screen:
            known = Outlook(dict(zip(lab.states(), (1.0, 1.0, 9.0, 1.0), strict=True)))
            screen.outlook = lambda known=known: known  # type: ignore[misc]
            screen.final()
        assert f"about {left} left" in capsys.readouterr().out
        prices = [Price(seconds, "measured") for seconds in (1.0, 1.0, 9.0, 1.0)]
        cost = _cost(prices, Device("cpu", "", 1.0, 2), "", smallest=order == "smallest")
        assert f"{left} with 2 at a time" in cost


def test_no_trial_is_coming_once_every_cell_has_chosen(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Six cells, best at the start, choose after three values each where four were expected: of the
    36 trials of the price 6 never come.
    """
    monkeypatch.setenv("ATTNRES_CACHE", str(tmp_path / "cache"))
    plan = make_plan(load_spec(tuned(lab)), lab.folder)
    known = outlook(Speeds(Device("cpu", "", 1.0, 2)), plan)

    def end(trials: Iterable[Trial]) -> None:
        for trial in trials:
            run = lab.folder.trial(trial.entry.hash)
            run.path.mkdir(parents=True)
            write_json(run.result, {"val/loss": 2 + math.log2(trial.config.optim.lr / 1e-2) ** 2})
            run.set_status("finished")

    def coming() -> tuple[int, float]:
        return len(plan.known()), sum(count for _, count in known(plan.known()).coming)

    *most, last = plan.known()
    assert coming() == (18, pytest.approx(36 - 18))
    end(most)
    assert coming() == (18 + 5 * 2, pytest.approx(36 - 28))
    end([last])
    assert coming() == (18 + 6 * 2, 0)


def test_a_schedule_runs_the_given_order() -> None:
    assert schedule([5, 4, 3, 3], 2) == 8
    assert schedule([2], 2, [7, 1]) == 7
    assert schedule([], 2) == 0
    assert schedule([1, 1], 1, [3, 2]) == 4  # more run than slots: adopted ones
