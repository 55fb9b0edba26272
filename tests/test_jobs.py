"""Which jobs there are and how often each should run."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from otel_perf import jobs


@pytest.fixture(autouse=True)
def _none_declared(monkeypatch):
    monkeypatch.setattr(jobs, "_jobs", {})


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
