"""The page in Chromium when something is wrong: refusals, a service that fails or is gone, a day that is over."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from examples.streak.auth import mint
from tests.conftest import Telemetry
from tests.streak.browsing import SECTIONS, Open, Site, open_browser, open_site, open_tabs
from tests.streak.conftest import NOW, SECRET

# What the page waits before it tries again by itself at first, and at most then.
RETRIED_AFTER_MS = (5_000, 6_250)


@pytest.fixture(scope="module")
def browser(chromium_binary: Path) -> Iterator[Browser]:
    with open_browser(chromium_binary) as opened:
        yield opened


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page") / "streak.db"


@pytest.fixture(scope="module")
def site(database: Path) -> Iterator[Site]:
    """A service without the demonstration: whoever comes has a token."""
    with open_site(database) as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    with open_tabs(browser) as open_tab:
        yield open_tab


def with_a_freeze(site: Site, name: str) -> None:
    """Let a user do something on each of seven days, the last of which was yesterday."""
    for back in range(7, 0, -1):
        site.clock.now = NOW - timedelta(days=back)
        site.ask("activities", name, "POST", json={"category": "learn"})
    site.clock.now = NOW


def test_a_freeze_that_is_refused(visit: Open, site: Site, telemetry: Telemetry) -> None:
    """What another tab has done meanwhile is told by the service's own words, with the trace, and then shown."""
    with_a_freeze(site, "refused")
    opened = visit(site)
    opened.sign_in(mint(SECRET, "refused"), "Token")
    button = opened.page.get_by_role("button", name="Use one today")
    expect(button).to_be_enabled()
    site.ask("freeze", "refused", "POST")
    button.click()
    said = opened.page.locator("#freeze-said")
    expect(said).to_have_text(re.compile(r"^today counts already \(trace [0-9a-f]{32}\)$"))
    opened.pass_ms()
    expect(button).to_be_disabled()
    expect(opened.page.locator("[data-held]")).to_have_text("0 of 3 held")
    expect(said).to_contain_text("today counts already")


def test_a_section_that_fails(visit: Open, site: Site) -> None:
    """It says what the problem detail says, with the trace, keeps its place, and is well again after another try."""
    opened = visit(site)
    page = opened.page
    problem = {"title": "Service Unavailable", "status": 503, "detail": "the database is away", "trace_id": "5" * 32}
    page.route(
        "**/api/leaderboard*",
        lambda route: route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(problem)),
    )
    opened.sign_in(mint(SECRET, "unlucky"), "Token")
    alert = page.locator("#leaderboard").get_by_role("alert")
    expect(alert).to_contain_text("the database is away")
    expect(alert).to_contain_text("trace " + "5" * 32)
    height = page.locator("#leaderboard").bounding_box()
    expect(page.locator("#streak .problem")).to_have_count(0)
    page.unroute("**/api/leaderboard*")
    alert.get_by_role("button", name="Try again").click()
    expect(alert).to_have_count(0)
    # Whoever used the keyboard is where the button was.
    expect(page.locator("#leaderboard-title")).to_be_focused()
    assert page.locator("#leaderboard").bounding_box() == height


def test_a_database_that_fails(visit: Open, site: Site, database: Path) -> None:
    """The page says that the service failed, asks again later each time, and is well without a press of a button."""
    opened = visit(site)
    opened.sign_in(mint(SECRET, "patient"), "Token")
    problems = opened.page.locator(".problem")
    expect(problems).to_have_count(0)

    def rename(table: str, to: str) -> None:
        with sqlite3.connect(database, isolation_level=None) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO {to}")
        connection.close()

    rename("streak_users", "gone")
    try:
        opened.page.get_by_role("button", name="Refresh").click()
        opened.pass_ms()
        expect(opened.page.locator("#freezes .problem")).to_contain_text(re.compile("fail|does not answer"))
        opened.log("Learn")
        expect(opened.page.locator("#log-said")).to_contain_text(re.compile("fail|does not answer"))
    finally:
        rename("gone", "streak_users")
    opened.has_loaded("#freezes")
    opened.asked.clear()
    opened.pass_ms(RETRIED_AFTER_MS[0] - 1)
    opened.looked()
    assert "/api/freeze" not in opened.asked
    opened.pass_ms(RETRIED_AFTER_MS[1] - RETRIED_AFTER_MS[0] + 1)
    expect(problems).to_have_count(0)
    opened.log("Learn")
    expect(opened.page.locator("#log-said")).to_contain_text("XP earned")


def test_a_service_that_is_gone(visit: Open, tmp_path: Path) -> None:
    """What was shown stays, each section says that nobody answers, and each is well when the service is back."""
    opened: Any = None
    with open_site(tmp_path / "streak.db") as first:
        first.ask("activities", "ada", "POST", json={"category": "learn"})
        opened = visit(first)
        opened.sign_in(mint(SECRET, "ada"), "Token")
        opened.has_loaded("#streak", "#week", "#freezes", "#calendar", "#leaderboard")
        port = int(first.url.rpartition(":")[2])
    page = opened.page
    page.get_by_role("button", name="Refresh").click()
    opened.pass_ms()
    expect(page.locator(".problem")).to_have_count(len(SECTIONS))
    expect(page.locator("#streak .problem")).to_contain_text("does not answer")
    expect(page.locator("[data-streak]")).to_have_text("1")
    expect(page.locator("#leaderboard tbody tr")).to_have_count(1)
    with open_site(tmp_path / "streak.db", port=port):
        opened.pass_ms(RETRIED_AFTER_MS[1])
        expect(page.locator(".problem")).to_have_count(0)
        page.goto("about:blank")  # its connections end before the service does


def test_asking_too_often(visit: Open, tmp_path: Path) -> None:
    """The page says when to try again, and does so by itself then, and not before."""
    with open_site(tmp_path / "streak.db", requests_per_minute=1) as site:
        opened = visit(site)
        opened.sign_in(mint(SECRET, "eager"), "Token")
        refused = opened.page.locator(".problem")
        expect(refused).to_have_count(len(SECTIONS) - 1)
        expect(refused.first).to_contain_text("you have asked too often: try again in 60 s")
        opened.log("Learn")
        expect(opened.page.locator("#log-said")).to_contain_text("try again in 60 s")
        opened.asked.clear()
        opened.pass_ms(59_900)
        opened.looked()
        assert opened.asked == []
        for _ in range(len(SECTIONS) + 1):  # one more is let through in each minute
            site.clock.now += timedelta(minutes=1)
            opened.pass_ms(75_100)
            opened.has_loaded("#streak", "#week", "#freezes", "#calendar", "#leaderboard")
        expect(refused).to_have_count(0)


def test_a_day_that_ends(visit: Open, site: Site) -> None:
    """At 4:00 UTC the page asks anew, and what it said of the day before is gone."""
    with_a_freeze(site, "nightowl")
    opened = visit(site)
    opened.sign_in(mint(SECRET, "nightowl"), "Token")
    page = opened.page
    opened.log("Learn")
    expect(page.locator("#log-said")).to_contain_text("XP earned")
    opened.pass_ms()
    expect(page.locator(".days .today")).to_have_attribute("title", re.compile("4 Mar 2026: 1 activity"))
    button = page.get_by_role("button", name="Use one today")
    expect(button).to_be_disabled()
    try:
        site.clock.now = NOW + timedelta(hours=16, seconds=1)
        page.clock.fast_forward("15:59:00")
        opened.looked()
        expect(page.locator("#log-said")).to_contain_text("XP earned")
        opened.pass_ms(80_000)
        expect(page.locator(".days .today")).to_have_attribute("title", re.compile("5 Mar 2026: nothing"))
        expect(button).to_be_enabled()
        expect(page.locator("#log-said")).to_have_text("")
        expect(page.locator("#freeze-said")).to_have_text("")
    finally:
        site.clock.now = NOW


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (lambda: mint("f" * 26, "ada"), "the token is malformed or was not signed by this service"),
        (lambda: mint(SECRET, "ada", until=NOW - timedelta(hours=1)), "the token has expired"),
    ],
    ids=["of-another-service", "expired"],
)
def test_a_token_that_is_not_taken(visit: Open, site: Site, token: Callable[[], str], why: str) -> None:
    """It leads back to where a token is asked for, with the reason; a good one then goes in."""
    opened = visit(site)
    page = opened.page
    page.goto(opened.url)
    page.get_by_label("Token").fill(token())
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text(f"Sign in again: {why}.")
    expect(page.locator("#sections")).to_be_hidden()
    page.get_by_label("Token").fill("nö")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("This is no token.")
    page.get_by_label("Token").fill(mint(SECRET, "welcome"))
    page.keyboard.press("Enter")
    expect(page.locator("#sections")).to_be_visible()
    opened.has_loaded()
    expect(page.locator(".problem")).to_have_count(0)


def test_somebody_else_in_the_same_tab(visit: Open, site: Site) -> None:
    """Nothing of the one before is left when the token of somebody else is given."""
    site.ask("activities", "before", "POST", json={"category": "move"})
    opened = visit(site)
    opened.sign_in(mint(SECRET, "before"), "Token")
    page = opened.page
    expect(page.locator("#name")).to_have_text("before")
    page.get_by_label("Note").fill("mine")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    opened.sign_in(mint(SECRET, "after"), "Token")
    opened.has_loaded("#streak", "#week", "#leaderboard")
    expect(page.locator("#name")).to_have_text("")  # only an activity makes them known
    expect(page.locator("[data-streak]")).to_have_text("0")
    expect(page.locator("#week .done")).to_have_count(0)
    expect(page.get_by_label("Note")).to_have_value("")
    expect(page.locator("#leaderboard tr.me")).to_have_count(0)
    opened.log("Learn")
    expect(page.locator("#log-said")).to_contain_text("XP earned")
    opened.pass_ms()
    expect(page.locator("#name")).to_have_text("after")
