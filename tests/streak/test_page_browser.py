"""The page in Chromium, on a service with the demonstration's users; test_page_trouble has what goes wrong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from otel_perf import conventions as c
from tests.conftest import Telemetry
from tests.streak.browsing import (
    DESKTOP,
    PHONE,
    REFRESH_AFTER_MS,
    SECTIONS,
    Open,
    Site,
    open_browser,
    open_site,
    open_tabs,
)


@pytest.fixture(scope="module")
def browser(chromium_binary: Path) -> Iterator[Browser]:
    with open_browser(chromium_binary) as opened:
        yield opened


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with open_site(tmp_path_factory.mktemp("page") / "streak.db", demo=True) as running:
        yield running


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    with open_tabs(browser) as open_tab:
        yield open_tab


def test_sections_are_filled(visit: Open, site: Site) -> None:
    """After signing in by name every section shows what the API says, and the browser has nothing to complain of."""
    name = site.next_at_risk()
    opened = visit(site)
    opened.sign_in(name)
    page = opened.page
    profile, freezes = site.ask("profile", name), site.ask("freeze", name)
    expect(page.locator("[data-streak]")).to_have_text(str(profile["streak"]))
    expect(page.locator("[data-xp]")).to_have_text(f"{profile['xp']:,}")
    expect(page.locator("#name")).to_have_text(name)
    expect(page.locator("[data-held]")).to_have_text(f"{freezes['held']} of 3 held")
    expect(page.locator("[data-next-freeze]")).to_contain_text(f"day {freezes['next_at_streak']} of")
    expect(page.locator(".slots i.full")).to_have_count(freezes["held"])
    done = site.ask("consistency", name)["categories"]
    expect(page.locator("#week progress")).to_have_js_property("value", sum(done.values()))
    for category, is_done in done.items():
        expect(page.locator(f"#week [data-category={category}] .state")).to_have_text("done" if is_done else "to do")
    calendar = site.ask("calendar?days=365", name)
    expect(page.locator(".days i")).to_have_count(365)
    expect(page.locator(".days i:not([data-level='0'])")).to_have_count(calendar["active_days"])
    # The day is the service's, whatever the time zone of the browser.
    expect(page.locator(".days .today")).to_have_attribute("title", re.compile("Wed, 4 Mar 2026: nothing"))
    board = site.ask("leaderboard?limit=10", name)
    expect(page.locator("#leaderboard tbody tr")).to_have_count(10)
    assert page.locator("#leaderboard td:nth-child(3)").all_inner_texts() == [str(each["streak"]) for each in board]
    assert opened.said == []


def test_logging_an_activity(visit: Open, site: Site) -> None:
    """The streak grows and the category is done without the page being loaded anew, and what was earned is said."""
    name = site.next_at_risk()
    before = site.ask("profile", name)["streak"]
    category = next(name for name, done in site.ask("consistency", name)["categories"].items() if not done)
    opened = visit(site)
    opened.sign_in(name)
    page = opened.page
    page.evaluate("window.same = true")
    page.get_by_label("Note").fill("<b>bold</b>")
    opened.log(category.title())
    expect(page.locator("#log-said")).to_contain_text("XP earned")
    expect(page.locator("[data-streak]")).to_have_text(str(before + 1))
    opened.pass_ms()
    expect(page.locator(f"#week [data-category={category}]")).to_have_class("done")
    expect(page.locator(".days .today")).to_have_attribute("title", re.compile(r"4 Mar 2026: 1 activity, \d+ XP"))
    expect(page.locator("#freeze-said")).to_have_text("Today counts already.")
    expect(page.get_by_label("Note")).to_have_value("")
    assert page.evaluate("window.same")
    assert site.ask("activities", name)["activities"][0]["note"] == "<b>bold</b>"
    assert opened.said == []


def test_a_second_try_logs_nothing_twice(visit: Open, site: Site) -> None:
    """When the answer is lost on its way, pressing the button again sends the same key."""
    name = site.next_at_risk()
    opened = visit(site)
    opened.sign_in(name)
    keys = []

    def lose(route: Any) -> None:
        keys.append(json.loads(route.request.post_data)["client_key"])
        if len(keys) == 1:
            route.fetch()
            route.abort()
        else:
            route.continue_()

    opened.page.route("**/api/activities", lose)
    opened.log("Move")
    expect(opened.page.locator("#log-said")).to_contain_text("does not answer")
    opened.log("Move")
    expect(opened.page.locator("#log-said")).to_contain_text("XP earned")
    opened.log("Move")
    expect(opened.page.locator("#log-said")).to_contain_text("XP earned")
    opened.pass_ms()
    expect(opened.page.locator(".days .today")).to_have_attribute("title", re.compile("2 activities"))
    assert keys[0] == keys[1] != keys[2]


def test_applying_a_freeze(visit: Open, site: Site) -> None:
    """A freeze is spent and today is held; the button is then of no use and says why."""
    name = site.next_at_risk()
    held = site.ask("freeze", name)["held"]
    opened = visit(site)
    opened.sign_in(name)
    opened.page.get_by_role("button", name="Use one today").click()
    expect(opened.page.locator("#freeze-said")).to_have_text("Today is held by a freeze.")
    opened.pass_ms()
    expect(opened.page.locator("[data-held]")).to_have_text(f"{held - 1} of 3 held")
    expect(opened.page.get_by_role("button", name="Use one today")).to_be_disabled()
    assert site.ask("freeze", name)["today_is_held"]
    assert opened.said == []


def test_someone_new(visit: Open, site: Site) -> None:
    """A user without a past sees zeros and what to do first, and their first activity starts a streak."""
    opened = visit(site)
    opened.sign_in("somebody-new")
    page = opened.page
    opened.has_loaded("#streak", "#week", "#freezes", "#calendar")
    for figure in ("streak", "longest", "xp"):
        expect(page.locator(f"[data-{figure}]")).to_have_text("0")
    expect(page.locator("[data-streak-hint]")).to_have_text("Log a first activity to start one.")
    expect(page.locator("[data-active]")).to_have_text("No active day yet.")
    expect(page.locator("#calendar details")).to_be_hidden()
    expect(page.locator("#freeze-said")).to_contain_text("There is no streak to keep")
    expect(page.locator(".problem")).to_have_count(0)
    opened.log("Learn")
    expect(page.locator("[data-streak]")).to_have_text("1")
    expect(page.locator("[data-streak-unit]")).to_have_text("day")
    opened.pass_ms()
    expect(page.locator("[data-joined]")).to_have_text("4 Mar 2026")
    expect(page.locator("#calendar details")).to_be_visible()
    expect(page.locator(".problem")).to_have_count(0)
    # Chromium itself complains of an answer that is a refusal.
    assert opened.said == []


def test_refresh_is_debounced(visit: Open, site: Site) -> None:
    """Ten presses ask for each section once, a second after the last of them."""
    opened = visit(site)
    opened.sign_in("user-001")
    opened.has_loaded("#leaderboard", "#calendar", "#freezes")
    opened.asked.clear()
    for _ in range(10):
        opened.pass_ms(REFRESH_AFTER_MS - 100)
        opened.page.get_by_role("button", name="Refresh").click()
    opened.pass_ms(REFRESH_AFTER_MS - 1)
    opened.looked()
    assert opened.asked == []
    opened.pass_ms(1)
    opened.has_loaded("#leaderboard", "#calendar", "#freezes", "#streak", "#week")
    opened.pass_ms(5 * REFRESH_AFTER_MS)
    opened.looked()
    assert sorted(opened.asked) == sorted(SECTIONS)


def test_sections_are_lazy(visit: Open, site: Site) -> None:
    """On a phone, what is below the fold is asked for only when it is scrolled to, and then once."""
    opened = visit(site, PHONE)
    opened.sign_in("user-001")
    page = opened.page
    assert set(opened.asked) == {"POST /api/demo/token", "/api/activities", "/api/profile", "/api/consistency"}
    for _ in range(2):
        page.locator("#leaderboard").scroll_into_view_if_needed()
        opened.has_loaded("#leaderboard")
        page.evaluate("scrollTo(0, 0)")
        opened.looked()
    assert opened.asked.count("/api/leaderboard") == 1
    # What was refreshed while it was away is asked for when it comes back.
    opened.asked.clear()
    page.get_by_role("button", name="Refresh").click()
    opened.pass_ms()
    opened.has_loaded()
    assert set(opened.asked) == {"/api/profile", "/api/consistency"}
    page.locator("#leaderboard").scroll_into_view_if_needed()
    opened.has_loaded("#leaderboard")
    assert "/api/leaderboard" in opened.asked
    # Nothing sticks out sideways.
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_policy_holds(visit: Open, site: Site) -> None:
    """The page runs no script and takes no style that is put into it."""
    opened = visit(site)
    opened.sign_in("user-001")
    page = opened.page
    page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.inside = true";
      document.body.append(script);
      document.body.setAttribute("style", "opacity: 0");
    }""")
    assert page.evaluate("window.inside") is None
    assert page.evaluate("getComputedStyle(document.body).opacity") == "1"
    assert len(opened.said) == 2
    assert all("Content Security Policy" in text for text in opened.said)


def test_token_stays_in_the_tab(visit: Open, site: Site) -> None:
    """It is kept over a reload, is in no address, and goes with signing out; so does what was shown."""
    opened = visit(site)
    addresses: list[str] = []
    opened.page.on("request", lambda request: addresses.append(request.url))
    opened.sign_in("user-001")
    page = opened.page
    token = page.evaluate("sessionStorage.getItem('streak.token')")
    page.reload()
    expect(page.locator("#leaderboard tbody tr")).to_have_count(10)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Name")).to_be_visible()
    expect(page.locator("#sections")).to_be_hidden()
    expect(page.locator("#leaderboard tbody tr")).to_have_count(0)
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
    assert not [address for address in addresses if token in address]


def test_keyboard_only(visit: Open, site: Site) -> None:
    """Signing in, logging and the calendar can be reached and used by keys alone."""
    name = site.next_at_risk()
    opened = visit(site)
    page = opened.page
    page.goto(opened.url)
    for key in ("Tab", "Tab"):  # over the link to the content
        page.keyboard.press(key)
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    opened.has_loaded("#streak", "#week", "#freezes", "#calendar")
    expect(page.get_by_role("button", name="Use one today")).to_be_enabled()
    page.get_by_role("radio", name="Learn").focus()
    for key in ("ArrowRight", "Tab", "Tab", "Tab", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#log-said")).to_contain_text("XP earned")
    opened.pass_ms()
    expect(page.locator("#week [data-category=move]")).to_have_class("done")
    expect(page.get_by_role("button", name="Use one today")).to_be_disabled()
    page.keyboard.press("Tab")
    expect(page.locator(".year")).to_be_focused()


def arrived(telemetry: Telemetry) -> dict[tuple[str, str], Any]:
    """The points by name and route, as soon as there is a report."""
    deadline = time.monotonic() + 20
    # The server records in a thread of its own, a figure after the other; this one is the last of a report.
    while not telemetry.points("web_vital.cls") and time.monotonic() < deadline:
        time.sleep(0.02)
    return {
        (metric.name, p.attributes[c.HTTP_ROUTE]): p for metric in c.WEB_VITALS for p in telemetry.points(metric.name)
    }


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_web_vitals(visit: Open, telemetry: Telemetry, site: Site, viewport: Any) -> None:
    """A real visit becomes each figure of the page's route; hardly anything moves while it loads."""
    opened = visit(site, viewport, real_time=True)
    opened.sign_in("user-001")
    page = opened.page
    page.reload()
    opened.has_loaded()
    for section in ("#freezes", "#calendar", "#leaderboard"):
        page.locator(section).scroll_into_view_if_needed()
        opened.has_loaded(section)
    # A press that is painted is an interaction; what comes a second later is to move nothing.
    with page.expect_response("**/api/profile"):
        page.get_by_role("button", name="Refresh").click()
    opened.has_loaded()
    page.goto("about:blank")
    points = arrived(telemetry)
    assert set(points) == {(metric.name, "/") for metric in c.WEB_VITALS}
    value = {name.removeprefix("web_vital."): point.sum for (name, _), point in points.items()}
    assert 0 < value["ttfb"] <= value["fcp"] <= value["lcp"] < 60
    assert value["cls"] < 0.1
    assert opened.said == []
