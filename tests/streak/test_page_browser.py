"""The page in Chromium, on a service with the demonstration's users; the clock stands on a Wednesday at noon."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from examples.streak.app import create_app
from examples.streak.auth import mint
from examples.streak.demo import DEMO_USERS
from examples.streak.push import PushClient
from examples.streak.settings import Settings
from otel_perf import conventions as c
from tests.conftest import Telemetry
from tests.serving import served
from tests.streak.conftest import SECRET, Clock

DESKTOP = {"width": 1280, "height": 1600}  # all sections are in view
PHONE = {"width": 390, "height": 844}
SECTIONS = {"/api/profile", "/api/consistency", "/api/freeze", "/api/calendar", "/api/leaderboard"}
REFRESH_AFTER_MS = 1_000

# As patient as everything else here: on a busy machine a page takes its time.
expect.set_options(timeout=20_000)


@dataclass
class Visit:
    """A tab with the page, what it said on its console, and what it asked the API for."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self._note(request.method, request.url))

    def _note(self, method: str, url: str) -> None:
        path = urlsplit(url).path
        if path.startswith("/api/") and not path.startswith("/api/performance"):
            self.asked.append(path if method == "GET" else f"{method} {path}")

    def sign_in(self, name: str) -> None:
        self.page.goto(self.url)
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.locator("#streak")).to_have_attribute("aria-busy", "false")

    def log(self, category: str) -> None:
        self.page.get_by_role("radio", name=category).check(force=True)
        self.page.get_by_role("button", name="Log it").click()


Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser(chromium_binary: Path) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(chromium_binary), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def app(telemetry: Telemetry, tmp_path: Path) -> FastAPI:
    settings = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/streak.db", secret=SECRET, demo=True, warm_up=0)
    return create_app(settings, clock=Clock(), push=PushClient(None))


@pytest.fixture
def site(app: FastAPI) -> Iterator[str]:
    with served(app) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, site: str) -> Iterator[Open]:
    contexts: list[BrowserContext] = []

    def open_page(viewport: Any = DESKTOP, **options: Any) -> Visit:
        context = browser.new_context(viewport=viewport, timezone_id="Pacific/Auckland", **options)
        context.set_default_timeout(20_000)
        contexts.append(context)
        return Visit(context.new_page(), site)

    yield open_page
    for context in contexts:
        context.close()


def get(site: str, path: str, user: str) -> Any:
    answer = httpx.get(f"{site}/api/{path}", headers={"Authorization": f"Bearer {mint(SECRET, user)}"}, trust_env=False)
    answer.raise_for_status()
    return answer.json()


def who(site: str, fits: Callable[[dict[str, Any]], bool]) -> str:
    """A user of the demonstration whose freezes are as wanted."""
    return next(name for name in DEMO_USERS if fits(get(site, "freeze", name)))


def a_user_at_risk(site: str) -> str:
    return who(site, lambda freezes: bool(freezes["can_apply"]))


def test_sections_are_filled(visit: Open, site: str) -> None:
    """After signing in by name every section shows what the API says, and the browser has nothing to complain of."""
    name = a_user_at_risk(site)
    opened = visit()
    opened.sign_in(name)
    page = opened.page
    profile, freezes = get(site, "profile", name), get(site, "freeze", name)
    expect(page.locator("[data-streak]")).to_have_text(str(profile["streak"]))
    expect(page.locator("[data-xp]")).to_have_text(f"{profile['xp']:,}")
    expect(page.locator("#name")).to_have_text(name)
    expect(page.locator("[data-held]")).to_have_text(f"{freezes['held']} of 3 held")
    expect(page.locator("[data-next-freeze]")).to_contain_text(f"day {freezes['next_at_streak']} of")
    expect(page.locator(".slots i.full")).to_have_count(freezes["held"])
    done = get(site, "consistency", name)["categories"]
    expect(page.locator("#week progress")).to_have_js_property("value", sum(done.values()))
    for category, is_done in done.items():
        expect(page.locator(f"#week [data-category={category}] .state")).to_have_text("done" if is_done else "to do")
    calendar = get(site, "calendar?days=365", name)
    expect(page.locator(".days i")).to_have_count(365)
    expect(page.locator(".days i:not([data-level='0'])")).to_have_count(calendar["active_days"])
    # The day is the service's, whatever the time zone of the browser.
    expect(page.locator(".days .today")).to_have_attribute("title", re.compile("Wed, 4 Mar 2026: nothing"))
    board = get(site, "leaderboard?limit=10", name)
    expect(page.locator("#leaderboard tbody tr")).to_have_count(10)
    assert page.locator("#leaderboard td:nth-child(3)").all_inner_texts() == [str(each["streak"]) for each in board]
    assert opened.said == []


def test_logging_an_activity(visit: Open, site: str) -> None:
    """The streak grows and the category is done without the page being loaded anew, and what was earned is said."""
    name = a_user_at_risk(site)
    before = get(site, "profile", name)["streak"]
    category = next(name for name, done in get(site, "consistency", name)["categories"].items() if not done)
    opened = visit()
    opened.sign_in(name)
    page = opened.page
    page.evaluate("window.same = true")
    page.get_by_label("Note").fill("<b>bold</b>")
    opened.log(category.title())
    expect(page.locator("#log-said")).to_contain_text("XP earned")
    expect(page.locator("[data-streak]")).to_have_text(str(before + 1))
    expect(page.locator(f"#week [data-category={category}]")).to_have_class("done")
    expect(page.locator(".days .today")).to_have_attribute("title", re.compile(r"4 Mar 2026: 1 activity, \d+ XP"))
    expect(page.locator("#freeze-said")).to_have_text("Today counts already.")
    expect(page.get_by_label("Note")).to_have_value("")
    assert page.evaluate("window.same")
    assert get(site, "activities", name)["activities"][0]["note"] == "<b>bold</b>"
    assert opened.said == []


def test_a_second_try_logs_nothing_twice(visit: Open, site: str) -> None:
    """When the answer is lost on its way, pressing the button again sends the same key."""
    name = a_user_at_risk(site)
    opened = visit()
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
    expect(opened.page.locator(".days .today")).to_have_attribute("title", re.compile("2 activities"))
    assert keys[0] == keys[1] != keys[2]


def test_applying_a_freeze(visit: Open, site: str) -> None:
    """A freeze is spent and today is held; the button is then of no use and says why."""
    name = a_user_at_risk(site)
    held = get(site, "freeze", name)["held"]
    opened = visit()
    opened.sign_in(name)
    opened.page.get_by_role("button", name="Use one today").click()
    expect(opened.page.locator("#freeze-said")).to_have_text("Today is held by a freeze.")
    expect(opened.page.locator("[data-held]")).to_have_text(f"{held - 1} of 3 held")
    expect(opened.page.get_by_role("button", name="Use one today")).to_be_disabled()
    assert get(site, "freeze", name)["today_is_held"]
    assert opened.said == []


def test_a_freeze_that_is_refused(visit: Open, site: str) -> None:
    """What another tab has done meanwhile is told by the service's own words, with the trace."""
    name = a_user_at_risk(site)
    opened = visit()
    opened.sign_in(name)
    httpx.post(f"{site}/api/freeze", headers={"Authorization": f"Bearer {mint(SECRET, name)}"}, trust_env=False)
    opened.page.get_by_role("button", name="Use one today").click()
    expect(opened.page.locator("#freeze-said")).to_have_text(
        re.compile(r"^today counts already \(trace [0-9a-f]{32}\)$")
    )


def test_someone_new(visit: Open) -> None:
    """A user without a past sees what to do first, and their first activity starts a streak."""
    opened = visit()
    opened.sign_in("somebody-new")
    page = opened.page
    expect(page.locator("[data-active]")).to_have_text("No active day yet.")
    expect(page.locator("#freeze-said")).to_contain_text("There is no streak to keep")
    expect(page.locator("#streak")).to_contain_text("Log an activity to start one.")
    expect(page.locator("[data-streak]")).to_have_text("0")
    expect(page.locator("#streak .problem")).to_have_count(0)
    opened.log("Learn")
    expect(page.locator("[data-streak]")).to_have_text("1")
    expect(page.locator("[data-streak-unit]")).to_have_text("day")
    expect(page.locator("#streak .problem")).to_have_count(0)


def test_refresh_is_debounced(visit: Open) -> None:
    """Ten quick presses ask for each section once."""
    opened = visit()
    opened.sign_in("user-001")
    expect(opened.page.locator("#leaderboard tbody tr")).to_have_count(10)
    opened.asked.clear()
    for _ in range(10):
        opened.page.get_by_role("button", name="Refresh").click()
    assert opened.asked == []
    opened.page.wait_for_timeout(2 * REFRESH_AFTER_MS)
    assert sorted(opened.asked) == sorted(SECTIONS)


def test_sections_are_lazy(visit: Open) -> None:
    """On a phone, what is below the fold is asked for only when it is scrolled to, and then once."""
    opened = visit(PHONE)
    opened.sign_in("user-001")
    page = opened.page
    page.wait_for_timeout(300)
    assert set(opened.asked) == {"POST /api/demo/token", "/api/profile", "/api/consistency"}
    page.locator("#leaderboard").scroll_into_view_if_needed()
    expect(page.locator("#leaderboard tbody tr")).to_have_count(10)
    page.evaluate("scrollTo(0, 0)")
    page.locator("#leaderboard").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert opened.asked.count("/api/leaderboard") == 1
    # What was refreshed while it was away is asked for when it comes back.
    page.evaluate("scrollTo(0, 0)")
    opened.asked.clear()
    page.get_by_role("button", name="Refresh").click()
    page.wait_for_timeout(2 * REFRESH_AFTER_MS)
    assert set(opened.asked) == {"/api/profile", "/api/consistency"}
    page.locator("#leaderboard").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert "/api/leaderboard" in opened.asked
    # Nothing sticks out sideways.
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_section_that_fails(visit: Open) -> None:
    """It says what the problem detail says, with the trace, keeps its place, and is well again after another try."""
    opened = visit()
    page = opened.page
    problem = {"title": "Service Unavailable", "status": 503, "detail": "the database is away", "trace_id": "5" * 32}
    page.route(
        "**/api/leaderboard*",
        lambda route: route.fulfill(status=503, content_type="application/problem+json", body=json.dumps(problem)),
    )
    opened.sign_in("user-001")
    alert = page.locator("#leaderboard").get_by_role("alert")
    expect(alert).to_contain_text("the database is away")
    expect(alert).to_contain_text("trace " + "5" * 32)
    height = page.locator("#leaderboard").bounding_box()
    expect(page.locator("#streak .problem")).to_have_count(0)
    page.unroute("**/api/leaderboard*")
    alert.get_by_role("button", name="Try again").click()
    expect(page.locator("#leaderboard tbody tr")).to_have_count(10)
    expect(alert).to_have_count(0)
    assert page.locator("#leaderboard").bounding_box() == height


def test_a_service_that_is_gone(visit: Open, app: FastAPI, browser: Browser) -> None:
    """What was shown stays, and each section says that nobody answers."""
    with served(app, lifespan="off") as other:
        opened = visit()
        opened.url = other
        opened.sign_in("user-001")
        expect(opened.page.locator("#leaderboard tbody tr")).to_have_count(10)
        opened.page.context.set_offline(True)
    opened.page.get_by_role("button", name="Refresh").click()
    expect(opened.page.locator(".problem")).to_have_count(len(SECTIONS))
    expect(opened.page.locator("#streak .problem")).to_contain_text("does not answer")
    expect(opened.page.locator("#leaderboard tbody tr")).to_have_count(10)


def test_policy_holds(visit: Open) -> None:
    """The page runs no script and takes no style that is put into it."""
    opened = visit()
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


def test_token_stays_in_the_tab(visit: Open) -> None:
    """It is kept over a reload, is in no address, and goes with signing out; so does what was shown."""
    opened = visit()
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


def test_a_token_that_is_not_taken(visit: Open, app: FastAPI) -> None:
    """Without the demonstration a token is asked for; one that is wrong leads back to where it is asked for."""
    object.__setattr__(app.state.parts.settings, "demo", False)
    opened = visit()
    page = opened.page
    page.goto(opened.url)
    page.get_by_label("Token").fill("user.ada.0000")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Sign in again")
    page.get_by_label("Token").fill("nö")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("This is no token.")
    page.get_by_label("Token").fill(mint(SECRET, "user-001"))
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("user-001")


def test_keyboard_only(visit: Open, site: str) -> None:
    """Signing in, logging and the calendar can be reached and used by keys alone."""
    name = a_user_at_risk(site)
    opened = visit()
    page = opened.page
    page.goto(opened.url)
    for key in ("Tab", "Tab"):  # over the link to the content
        page.keyboard.press(key)
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    expect(page.locator("#streak")).to_have_attribute("aria-busy", "false")
    page.get_by_role("radio", name="Learn").focus()
    for key in ("ArrowRight", "Tab", "Tab", "Tab", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#log-said")).to_contain_text("XP earned")
    expect(page.locator("#week [data-category=move]")).to_have_class("done")
    expect(page.get_by_role("button", name="Use one today")).to_be_disabled()
    page.keyboard.press("Tab")
    expect(page.locator(".year")).to_be_focused()


def arrived(telemetry: Telemetry) -> dict[tuple[str, str], Any]:
    """The points by name and route, as soon as there is a report."""
    deadline = time.monotonic() + 10
    # The server records in a thread of its own, a figure after the other; this one is the last of a report.
    while not telemetry.points("web_vital.cls") and time.monotonic() < deadline:
        time.sleep(0.02)
    return {
        (metric.name, p.attributes[c.HTTP_ROUTE]): p for metric in c.WEB_VITALS for p in telemetry.points(metric.name)
    }


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_web_vitals(visit: Open, telemetry: Telemetry, viewport: Any) -> None:
    """A real visit becomes each figure of the page's route; hardly anything moves while it loads."""
    opened = visit(viewport)
    opened.sign_in("user-001")
    page = opened.page
    page.reload()
    expect(page.locator("#streak")).to_have_attribute("aria-busy", "false")
    for section in ("#freezes", "#calendar", "#leaderboard"):
        page.locator(section).scroll_into_view_if_needed()
        expect(page.locator(section)).to_have_attribute("aria-busy", "false")
    page.get_by_role("button", name="Refresh").click()
    page.wait_for_timeout(2 * REFRESH_AFTER_MS)
    page.goto("about:blank")
    points = arrived(telemetry)
    assert set(points) == {(metric.name, "/") for metric in c.WEB_VITALS}
    value = {name.removeprefix("web_vital."): point.sum for (name, _), point in points.items()}
    assert 0 < value["ttfb"] <= value["fcp"] <= value["lcp"] < 20
    assert value["cls"] < 0.1
    assert opened.said == []
