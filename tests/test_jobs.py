"""Which jobs there are, how often each should run, and which runs this process has seen."""

from __future__ import annotations

import math
import os
import threading
from datetime import datetime, timedelta, timezone

import pytest

from otel_perf import conventions as c
from otel_perf import jobs, measure
from otel_perf.schedule import Cron, Interval


@pytest.fixture(autouse=True)
def _none_declared(monkeypatch):
    monkeypatch.setattr(jobs, "_jobs", {})
    monkeypatch.setattr(jobs, "_seen", {})


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self, monkeypatch) -> None:
        self.now = datetime(2026, 11, 24, 3, 0, tzinfo=timezone.utc).timestamp()
        monkeypatch.setattr(Interval, "now_s", lambda _: self.now)
        monkeypatch.setattr(Cron, "now_s", lambda _: self.now)

    def wait(self, **much) -> None:
        self.now += timedelta(**much).total_seconds()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def missed(name: str = "nightly") -> int | None:
    counts = {labels[c.JOB_NAME]: count for count, labels in jobs.missed()}
    return counts.get(name)


@pytest.mark.parametrize(
    ("every", "seconds"),
    [
        (None, None), (90, 90.0), (0.5, 0.5), ("30s", 30.0), ("15m", 900.0), ("1h", 3600.0), ("1d", 86400.0),
        ("2w", 1209600.0), (" 1.5 h ", 5400.0),
    ],
)  # fmt: skip
def test_durations(every, seconds):
    """Seconds, or a number with its unit."""
    assert jobs.declare("nightly", every) == jobs.Job("nightly", seconds)


@pytest.mark.parametrize(
    "every",
    [
        0,
        -1,
        math.nan,
        math.inf,
        "",
        "0s",
        "-1d",
        "1 day",
        "1y",
        "d",
        "1d 2h",
        "9" * 400 + "d",
        timedelta(days=1),
        b"1d",
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_duration(every):
    """It stops the start, with the job, the value and the remedy."""
    with pytest.raises(
        ValueError, match=r"every of job 'nightly' is [\s\S]*: give seconds, or a duration such as '30s'"
    ):
        jobs.declare("nightly", every)
    assert jobs.declared() == ()


def test_an_interval_is_kept_and_replaced():
    """A declaration without an interval takes none away; one with another replaces it; the order stays."""
    jobs.declare("first")
    jobs.declare("second", "1d")
    assert jobs.declare("second") == jobs.Job("second", 86400.0)
    jobs.declare("first", 5)
    assert jobs.declared() == (jobs.Job("first", 5.0), jobs.Job("second", 86400.0))


def test_names_made_up_at_run_time_do_not_fill_the_memory(monkeypatch):
    """Beyond the limit a job is answered and not kept; those that are known can still change."""
    monkeypatch.setattr(jobs, "_MAX_JOBS", 2)
    for index in range(4):
        assert jobs.declare(f"job-{index}").name == f"job-{index}"
    jobs.declare("job-1", 7)
    assert jobs.declared() == (jobs.Job("job-0"), jobs.Job("job-1", 7.0))


def test_a_cron_line():
    """It is kept as it was written, and says how old the last run may be."""
    declared = jobs.declare("nightly", "0 4 * * *", "Europe/Berlin")
    assert declared == jobs.Job("nightly", declared.every_s, "0 4 * * *", "Europe/Berlin")
    assert 82_800 <= declared.every_s <= 90_000
    assert measure.job("hourly", every="0 * * * *")._name == "hourly"
    assert jobs.declared()[1] == jobs.Job("hourly", 3600.0, "0 * * * *", None)


# Missed runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", ["1d", "0 4 * * *"])
def test_runs_that_do_not_come_are_counted_once(clock, every):
    """Each run that was due and did not begin is counted, after its grace, however often somebody asks."""
    measure.job("nightly", every=every)
    assert missed() == 0
    clock.wait(days=3, minutes=30)
    assert [missed(), missed()] == [3, 3]
    clock.wait(days=1)
    assert missed() == 4


@pytest.mark.parametrize("every", ["1d", "0 3 * * *"])
def test_a_run_in_its_time_is_not_missed(clock, every):
    """Within the grace, and a little before a cron line's time, a run is in time."""
    job = measure.job("nightly", every=every)
    clock.wait(days=1)
    assert missed() == 0
    clock.wait(seconds=290)
    with job:
        pass
    clock.wait(days=1, seconds=-2)
    with job:
        pass
    clock.wait(seconds=1000)
    assert missed() == 0


def test_what_was_missed_until_a_run_begins_is_counted_by_it(clock):
    """Nobody has to collect in between."""
    job = measure.job("nightly", every="1h")
    clock.wait(hours=5, minutes=30)
    with job:
        pass
    assert missed() == 5


@pytest.mark.parametrize("every", ["1h", "0 * * * *"])
def test_a_job_that_is_still_running_is_not_missed(clock, every):
    """What is due while it runs is not missed; afterwards it is looked for again."""
    job = measure.job("nightly", every=every)
    with job:
        clock.wait(hours=5, minutes=30)
        assert missed() == 0
    clock.wait(minutes=20)
    assert missed() == 0
    clock.wait(hours=1)
    assert missed() == 1


def test_declared_again(clock):
    """The same declaration, at each run perhaps, starts nothing anew; another one counts from now on."""
    for _ in range(3):
        measure.job("nightly", every="1h")
        clock.wait(minutes=50)
    assert missed() == 2
    measure.job("nightly", every="1d")
    clock.wait(hours=20)
    assert missed() == 2


def test_without_an_expectation_nothing_is_missed(clock):
    """A job without `every` has no such series."""
    with measure.job("nightly"):
        clock.wait(days=100)
    assert missed() is None


def test_missed_runs_are_a_counter(telemetry, clock):
    """The metric is there from the declaration on, and grows."""
    measure.job("nightly", every="1h")
    assert telemetry.points(c.JOB_MISSED.name, background__job__name="nightly")[0].value == 0
    clock.wait(hours=2, minutes=30)
    assert telemetry.points(c.JOB_MISSED.name, background__job__name="nightly")[0].value == 2


def test_one_of_several_workers(telemetry, monkeypatch, clock):
    """It counts only a job that it began itself: runs that come from outside may be another worker's."""
    assert telemetry.runtime.exchange.has_others is False
    several = property(lambda _: True)
    monkeypatch.setattr(type(telemetry.runtime.exchange), "has_others", several)
    job = measure.job("nightly", every="1h")
    clock.wait(hours=5)
    assert missed() is None
    with measure.request("POST", "/jobs/nightly"), job:
        pass
    clock.wait(hours=5)
    assert missed() is None
    with job:
        pass
    clock.wait(hours=2)
    assert missed() == 1


def test_what_a_scheduler_says():
    """It counts where nothing is declared; where something is, that tells already."""
    jobs.miss("other")
    jobs.miss("other")
    jobs.declare("nightly", "1d")
    jobs.miss("nightly")
    assert (missed("other"), missed()) == (2, 0)


# Overlaps -------------------------------------------------------------------------------------------------------------


def test_overlaps():
    """The first run in flight is none, each further one is, and after the last it starts anew."""
    first, overlaps = jobs.enter("nightly", 1, outside=False)
    assert not overlaps
    assert jobs.enter("nightly", 2, outside=False) == (first, True)
    jobs.leave(first, 1)
    assert jobs.enter("nightly", 3, outside=False) == (first, True)
    for entry in (2, 3, 3):
        jobs.leave(first, entry)
    assert jobs.enter("nightly", 4, outside=False) == (first, False)


def test_runs_that_never_end_do_not_fill_the_memory():
    """Beyond a limit they are overlaps all the same."""
    for number in range(3000):
        seen, overlaps = jobs.enter("nightly", number, outside=False)
        assert overlaps == (number > 0)
    assert len(seen.running) == 1000


def test_many_names():
    """Beyond the limit nothing is kept of a job."""
    for number in range(3000):
        entered = jobs.enter(f"job-{number}", 1, outside=False)
        assert (entered is None) == (number >= 1990)
        jobs.miss(f"job-{number}")
    assert len(jobs._seen) == 1990


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_starts_anew(clock):
    """What its parent has in flight, or missed, is not the child's; a lock that was held is free."""
    job = measure.job("nightly", every="1h")
    clock.wait(hours=3)
    with job, jobs._lock:
        child = os.fork()
        if child == 0:
            seen = jobs._seen["nightly"]
            os._exit(0 if not seen.running and not seen.missed and jobs._lock.acquire(timeout=1) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert missed() == 2


def test_a_run_that_ends_within_another_bookkeeping():
    """The garbage collector may end a run at any time: that waits for nobody."""
    seen, _ = jobs.enter("nightly", 1, outside=False)
    with jobs._lock:
        jobs.leave(seen, 1)
    assert seen.running == []


def test_counted_in_threads(clock):
    """Whoever asks at the same time gets the same answer, and nothing is counted twice."""
    measure.job("nightly", every="1h")
    clock.wait(hours=8)
    answers: list[int | None] = []
    threads = [threading.Thread(target=lambda: answers.append(missed())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert answers == [7] * 8
