"""The page in a browser: a tab with it, and services that it is a page of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from examples.streak.app import create_app
from examples.streak.auth import mint
from examples.streak.demo import DEMO_USERS
from examples.streak.push import PushClient
from examples.streak.settings import Settings
from tests.serving import served
from tests.streak.conftest import NOW, SECRET, Clock

DESKTOP = {"width": 1280, "height": 1600}  # all sections are in view
PHONE = {"width": 390, "height": 844}
SECTIONS = {"/api/profile", "/api/consistency", "/api/freeze", "/api/calendar", "/api/leaderboard"}
REFRESH_AFTER_MS = 1_000
# On a busy machine a page takes its time; a test that passes waits no longer for it.
PATIENCE_MS = 20_000
# One process for all pages, and none for the picture: tabs open sooner.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--in-process-gpu", "--renderer-process-limit=1"]
# Resolves when the page's own observer has been told what is in view: it is older than this one.
_LOOKED = """() => new Promise((resolve) => new IntersectionObserver((_, observer) => {
  observer.disconnect();
  resolve();
}).observe(document.querySelector("#leaderboard")))"""


@dataclass
class Site:
    """A running service."""

    app: FastAPI
    url: str
    clock: Clock
    _taken: int = 0

    def ask(self, path: str, user: str, method: str = "GET", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {mint(SECRET, user)}"}
        answer = httpx.request(method, f"{self.url}/api/{path}", headers=headers, trust_env=False, **more)
        answer.raise_for_status()
        return answer.json()

    def next_at_risk(self) -> str:
        """A user of the demonstration whom no test had yet, who could hold today by a freeze."""
        while True:
            name = DEMO_USERS[self._taken]
            self._taken += 1
            if self.ask("freeze", name)["can_apply"]:
                return name


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

    def sign_in(self, given: str, label: str = "Name") -> None:
        self.page.goto(self.url)
        self.page.get_by_label(label).fill(given)
        self.page.get_by_role("button", name="Sign in").click()
        self.has_loaded()

    def has_loaded(self, *sections: str) -> None:
        """Wait until what is in view, or these sections, have their answers."""
        self.looked()
        for section in sections or ("#streak", "#week"):
            expect(self.page.locator(section)).to_have_attribute("aria-busy", "false")

    def looked(self) -> None:
        """Wait until the page knows what is in view."""
        self.page.evaluate(_LOOKED)

    def log(self, category: str) -> None:
        self.page.get_by_role("radio", name=category).check(force=True)
        self.page.get_by_role("button", name="Log it").click()

    def pass_ms(self, duration_ms: int = REFRESH_AFTER_MS) -> None:
        """Let the page's time pass, and what waits for it happen."""
        self.page.clock.run_for(duration_ms)


Open = Callable[..., Visit]


@contextmanager
def open_browser(binary: Path) -> Iterator[Browser]:
    """Chromium for a module; expectations get their patience back afterwards."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(binary), args=_FLAGS)
        yield opened
        opened.close()
    expect.set_options(timeout=None)


@contextmanager
def open_site(database: Path, *, port: int = 0, **settings: Any) -> Iterator[Site]:
    """A service in this process, on a clock that stands on a Wednesday at noon."""
    given = {"secret": SECRET, "warm_up": 0, "kpis_every_s": 0, **settings}
    clock = Clock()
    url = f"sqlite+aiosqlite:///{database}"
    app = create_app(Settings(database_url=url, **given), clock=clock, push=PushClient(None))
    with served(app, port=port) as address:
        yield Site(app, address, clock)


@contextmanager
def open_tabs(browser: Browser) -> Iterator[Open]:
    """Open tabs that share nothing; their clocks stand still at the services' time, unless real time is wanted."""
    contexts: list[BrowserContext] = []

    def open_tab(site: Site, viewport: Any = DESKTOP, *, real_time: bool = False, **options: Any) -> Visit:
        context = browser.new_context(viewport=viewport, timezone_id="Pacific/Auckland", **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        if not real_time:
            # Standing still: what waits for a moment waits until the test lets it pass.
            context.clock.install(time=NOW - timedelta(seconds=1))
            context.clock.pause_at(NOW)
        return Visit(context.new_page(), site.url)

    yield open_tab
    for context in contexts:
        context.close()
