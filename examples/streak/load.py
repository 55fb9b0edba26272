"""Users of the streak service, for Locust, and the shapes of load they make.

    STREAK_SECRET=... locust -f examples/streak/load.py --host http://127.0.0.1:8000

`make load` and `load_run` drive them without a page. Importing this imports Locust, which makes sockets and locks
gevent's: a process that does so should do nothing else.

Latency is taken from the moment at which a request was due, not from when it could be sent. When requests are due is
settled without regard to the answers: when the service stalls, those that come due meanwhile are sent late and count
their wait, and none is left out because the one before it was late. (But for `closed`, which has no schedule.)
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.exception import StopUser

from examples.streak.auth import mint
from examples.streak.load_targets import require_loopback
from examples.streak.rules import CATEGORIES

__all__ = ["COLD_SHARE", "SHAPES", "BurstingReader", "CalendarReader", "EagerReader", "Logger", "Record", "record"]

#: This share of the reads asks for somebody whom nobody asked for lately, so that the cache cannot know.
COLD_SHARE = 1 / 5
_EACH_COLD = round(1 / COLD_SHARE)
_TIMEOUT_S = 10.0
_MAX_TEXTS = 20
_THINKS_S = (1.0, 3.0)
_PERIOD_S = 1.0


@dataclass(slots=True)
class Record:
    """What the users did. One for the process: gevent's users take turns, so nothing here is locked."""

    secret: str = ""
    #: Cold readers are taken by turns from so many users, `cold-00000` on.
    cold_users: int = 10_000
    cold_next: int = 0
    reads: int = 0
    #: What comes due from the one moment until the other counts; users leave after it.
    since: float = float("inf")
    until: float = float("inf")
    #: By name: seconds from due until answered, and from sent until answered.
    from_due: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    from_sent: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    #: How much later than due a request was sent, unless the user still waited for the answer before.
    late: list[float] = field(default_factory=list)
    #: Every request that was sent, counted or not.
    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    #: What failures said; also of those that are not counted.
    texts: Counter[str] = field(default_factory=Counter)
    numbers: int = 0

    def name_of_reader(self, own: str) -> str:
        """Return who reads now: each fifth time it is somebody cold."""
        self.reads += 1
        if self.reads % _EACH_COLD:
            return own
        self.cold_next += 1
        return f"cold-{self.cold_next % self.cold_users:05}"

    def failure(self, name: str, text: str, *, counted: bool) -> None:
        """Count a failure; different texts are kept up to a bound."""
        self.failed[name] += counted
        if text in self.texts or len(self.texts) < _MAX_TEXTS:
            self.texts[text] += 1


record = Record(secret=os.environ.get("STREAK_SECRET", ""))


class _Person(FastHttpUser):
    """Somebody with a name and a token, who knows when the next request is due."""

    abstract = True
    connection_timeout = _TIMEOUT_S
    network_timeout = _TIMEOUT_S

    def on_start(self) -> None:
        """Take a name, and wait for the first request to come due: Locust waits after tasks only."""
        record.numbers += 1
        self.own = f"load-{record.numbers % 1_000:03}"
        self._tokens = {self.own: mint(record.secret, self.own)}
        self._free_at = 0.0
        self.due = self.first_due()
        time.sleep(max(0.0, self.due - perf_counter()))

    def first_due(self) -> float:
        """Return when the first request is due: at some moment of the first period."""
        return perf_counter() + random.uniform(0, _PERIOD_S)

    def next_due(self) -> float:
        """Return when the next request is due, also when that has passed: no answer moves it."""
        return self.due + random.uniform(*_THINKS_S)

    def wait_time(self) -> float:
        """Return how long it is until the next request is due; Locust asks after each task."""
        self.due = self.next_due()
        if self.due >= record.until:
            raise StopUser
        return max(0.0, self.due - perf_counter())

    def ask(
        self, name: str, method: str, path: str, *, who: str, expected: int, body: Mapping[str, Any] | None = None
    ) -> None:
        """Send one request and take down how it went."""
        headers = {"Authorization": f"Bearer {self._token(who)}"}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body)
        counted = record.since <= self.due < record.until
        record.sent[name] += 1
        began = perf_counter()
        with self.client.request(method, path, name=name, data=data, headers=headers, catch_response=True) as answer:
            ended = perf_counter()
            if answer.status_code != expected:
                text = f"{name}: {answer.status_code or answer.error}"
                answer.failure(text)
                record.failure(name, text, counted=counted)
        if counted:
            record.from_due[name].append(ended - self.due)
            record.from_sent[name].append(ended - began)
            record.late.append(began - max(self.due, self._free_at))
        self._free_at = ended

    def _token(self, who: str) -> str:
        return self._tokens.get(who) or mint(record.secret, who)


class CalendarReader(_Person):
    """Looks at the calendar, and again 1 to 3 seconds after that was due."""

    @task
    def calendar(self) -> None:
        """Read the last 30 days."""
        who = record.name_of_reader(self.own)
        self.ask("calendar", "GET", "/api/calendar?days=30", who=who, expected=200)


class BurstingReader(CalendarReader):
    """Looks at the calendar on the second, at the same moment as all the others."""

    def first_due(self) -> float:
        """Return the second after next."""
        return float(int(perf_counter()) + 2)

    def next_due(self) -> float:
        """Return the next second, also when it has passed."""
        return self.due + _PERIOD_S


class EagerReader(CalendarReader):
    """Looks at the calendar again as soon as it is there. The load is what the service lets it be."""

    def next_due(self) -> float:
        """Return now."""
        return perf_counter()


class Logger(_Person):
    """Logs an activity each second, whether or not the last one took long."""

    @task
    def log(self) -> None:
        """Log one activity."""
        body = {"category": random.choice(CATEGORIES), "minutes": random.randint(5, 90)}
        self.ask("log", "POST", "/api/activities", who=self.own, expected=201, body=body)

    def next_due(self) -> float:
        """Return when the schedule has the next one, also when that has passed."""
        return self.due + _PERIOD_S


#: What may be driven, and by whom; of each kind there are as many users as are asked for.
SHAPES: dict[str, tuple[type[_Person], ...]] = {
    "calendar": (CalendarReader,),
    "burst": (BurstingReader,),
    "closed": (EagerReader,),
    "log": (Logger, CalendarReader),
}


@events.init.add_listener  # type: ignore[untyped-decorator]  # Locust has no types for it
def _refuse_strangers(environment: Environment, **_: Any) -> None:
    if environment.host is not None:
        require_loopback(environment.host)
