"""Durations and cron lines: what they mean, and when a run was due."""

from __future__ import annotations

import builtins
import math
import time
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from otel_perf import schedule
from otel_perf.schedule import Cron, Interval, parse


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("every", "seconds"),
    [(90, 90.0), (0.5, 0.5), ("30s", 30.0), ("15m", 900.0), ("1h", 3600.0), ("1d", 86400.0), (" 1.5 h ", 5400.0)],
)
def test_durations(every, seconds):
    """Seconds, or a number with its unit."""
    assert parse("job", every) == Interval(seconds)


@pytest.mark.parametrize(
    "every",
    [
        0,
        True,
        -1,
        math.nan,
        math.inf,
        "",
        "1 day",
        "1d 2h",
        "@daily",
        "9" * 400 + "d",
        timedelta(days=1),
        b"1d",
        [],
        object,
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_neither(every):
    """The error names the job and the value, and shows an example of each form."""
    with pytest.raises(ValueError, match=r"every of job 'job' is [\s\S]*or a cron line such as '0 4 \* \* \*'") as told:
        parse("job", every)
    assert len(str(told.value)) < 500


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0 25 * * *", "bad hour"), ("61 * * * *", "bad minute"), ("0 4 * *", "wrong number of fields"),
        ("0 4 * * * * *", "wrong number of fields"), ("0 4 31 2 *", "bad day-of-month"), ("x y z", "wrong number"),
        ("0 4 * * MOX", "bad day-of-week"), ("*/0 * * * *", "bad minute"), ("1," * 500 + "1 * * * *", "is shorter"),
    ],
    ids=lambda value: value[:16],
)  # fmt: skip
def test_bad_cron_lines(line, why):
    """The error says what is wrong with the line, and shows one that is right."""
    with pytest.raises(ValueError, match=rf"every of job 'job' is .*{why}.*'0 4 \* \* \*'"):
        parse("job", line)


def test_a_cron_line_without_the_library(monkeypatch):
    """What is missing is told where the job is declared, with what to do."""
    schedule._cron.cache_clear()
    imported = builtins.__import__

    def without(name, *args, **options):
        if name == "cronsim":
            raise ModuleNotFoundError("No module named 'cronsim'")
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ImportError, match=r"every of job 'job' is the cron line '0 4 .*pip install 'otel-perf\[cron\]'"
    ):
        parse("job", "0 4 * * *")


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "", "x" * 10_000])
def test_unknown_time_zones(zone):
    """A zone that is not there is told with an example."""
    with pytest.raises(ValueError, match=r"its timezone .* is unknown, give one such as 'Europe/Berlin'"):
        parse("job", "0 4 * * *", zone)


def test_a_duration_has_no_time_zone():
    """A zone that would mean nothing is refused."""
    with pytest.raises(ValueError, match="only a cron line has one"):
        parse("job", "1d", "Europe/Berlin")


@pytest.mark.parametrize(
    ("line", "every_s", "grace_s"),
    [
        ("0 4 * * *", 86400, 300),
        ("*/15 * * * *", 900, 90),
        ("0 9 * * MON-FRI", 3 * 86400, 300),
        ("*/5 9-17 * * *", 15 * 3600 + 300, 30),
        ("0,5 4 * * *", 86100, 30),
        ("*/10 * * * * *", 10, 1),
    ],
)
def test_how_often_a_cron_line_comes(line, every_s, grace_s):
    """The longest gap says how old the last run may be, the shortest how late one may begin."""
    made = parse("job", line)
    assert (made.every_s, made.grace_s) == (every_s, grace_s)


def test_a_cron_line_in_its_zone():
    """Four o'clock is four o'clock there, before and after the clocks change, and once on the day they do."""
    made = parse("job", "0 4 * * *", "Europe/Berlin")
    since, until = at("2026-03-28T00:00:00"), at("2026-03-31T00:00:00")
    assert made.passed(since, until) == (3, at("2026-03-30T04:00:00", "Europe/Berlin"))
    assert parse("job", "0 4 * * *").passed(since, until) == (3, at("2026-03-30T04:00:00"))


def test_what_passed():
    """Runs after the first time and up to the second are due; the last of them is where the next look goes on."""
    made = parse("job", "0 4 * * *")
    assert made.passed(at("2026-11-01T04:00:00"), at("2026-11-03T04:00:00")) == (2, at("2026-11-03T04:00:00"))
    assert made.passed(at("2026-11-01T04:00:00"), at("2026-11-02T03:59:59")) == (0, at("2026-11-01T04:00:00"))
    assert made.passed(at("2026-11-02T00:00:00"), at("2026-11-01T00:00:00")) == (0, at("2026-11-02T00:00:00"))
    assert Interval(10.0).passed(100.0, 135.0) == (3, 130.0)
    assert Interval(10.0).passed(100.0, 90.0) == (0, 100.0)


def test_a_long_sleep_is_counted_bit_by_bit():
    """Years of minutes are not looked at in one go."""
    made = parse("job", "* * * * *")
    count, last = made.passed(0.0, 1e9)
    assert count == 1000
    assert last == 60_000.0
    assert Interval(1e-6).passed(0.0, 1e6)[0] > 1e11


def test_after_a_run():
    """The next run is looked for from its beginning on; what was due while it ran was not missed."""
    cron = Cron("0 4 * * *", timezone.utc, 86400, 300)
    assert cron.begun_s(1000.0) == 1300.0
    assert cron.ended_s(1300.0, 1200.0) == 1300.0
    assert cron.ended_s(1300.0, 5000.0) == 5000.0
    assert Interval(10.0).begun_s(5.0) == 5.0
    assert Interval(10.0).ended_s(5.0, 12.0) == 5.0
    assert Interval(10.0).ended_s(5.0, 25.0) == 25.0


def test_the_clocks():
    """Cron lines go by the time of day, intervals by the steady clock."""
    assert abs(parse("job", "0 4 * * *").now_s() - time.time()) < 60
    assert abs(Interval(1.0).now_s() - time.monotonic()) < 60
