"""What the push API does not take at once is tried again, a part at a time; what it refuses keeps nobody waiting."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from examples.streak import rules
from examples.streak.push import IDEMPOTENCY_KEY
from examples.streak.stores import Database
from tests.streak.maintaining import maintaining
from tests.streak.seeding import expected, seed_users

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)]

NOW = datetime(2026, 3, 4, 12, tzinfo=timezone.utc)
TODAY = rules.day_of(NOW)
COUNT = 480
PROCESSED = expected(COUNT, TODAY)[0].processed


class Api(httpx.AsyncBaseTransport):
    """A push API that answers each call as it is told to."""

    def __init__(self, answer: Callable[[int, list[str]], httpx.Response]) -> None:
        self._answer = answer
        self.calls = 0
        self.taken: Counter[str] = Counter()
        self.keys: Counter[str] = Counter()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        users = [message["user"] for message in json.loads(request.content)["messages"]]
        self.calls += 1
        self.keys[request.headers[IDEMPOTENCY_KEY]] += 1
        answer = self._answer(self.calls, users)
        if answer.is_success:
            self.taken.update(users)
        return answer


async def test_only_what_is_left_is_sent_again(database: Database) -> None:
    """Of a batch of four calls the second fails: the first is not made again, and the second has the key it had."""
    await seed_users(database, COUNT, TODAY)
    api = Api(lambda call, _: httpx.Response(503 if call == 2 else 202))
    async with maintaining(database, transport=api, batch_size=1_000) as kit:
        summary = await kit.maintenance.run(NOW)
    assert (summary.tally.notified, summary.unsent) == (PROCESSED, 0)
    assert set(api.taken.values()) == {1}
    assert len(api.taken) == PROCESSED
    assert sorted(api.keys.values()) == [1] * (len(api.keys) - 1) + [2]


async def test_what_is_refused_is_given_up(database: Database) -> None:
    """A call that the API will never take is counted, told once, and dropped; all others arrive."""
    await seed_users(database, COUNT, TODAY)
    refused: list[str] = []

    def answer(call: int, users: list[str]) -> httpx.Response:
        if call == 1:
            refused.extend(users)
        return httpx.Response(422 if users == refused else 202)

    api = Api(answer)
    async with maintaining(database, transport=api, batch_size=10) as kit:
        with capture_logs() as lines:
            summary = await kit.maintenance.run(NOW)
    assert (summary.tally.notified, summary.unsent) == (PROCESSED - 10, 0)
    assert api.calls == PROCESSED / 10
    (line,) = [line for line in lines if line["event"] == "Notifications given up"]
    assert line["messages"] == 10
    assert lines[-1]["errors"] == 1


async def test_more_than_a_page_is_kept(database: Database) -> None:
    """However many batches were not taken, and though the first are not taken still, those behind them are."""
    await seed_users(database, COUNT, TODAY)
    down, poison = True, set(await database.runs.due(TODAY, after="", until=None, limit=30))

    def answer(_: int, users: list[str]) -> httpx.Response:
        return httpx.Response(503 if down or poison & set(users) else 202)

    async with maintaining(database, transport=Api(answer), batch_size=10) as kit:
        summary = await kit.maintenance.run(NOW)
    assert summary.unsent == PROCESSED
    down = False
    async with maintaining(database, transport=Api(answer), batch_size=10) as kit:
        again = await kit.maintenance.run(NOW)
    assert again.repeated
    assert (again.tally.notified, again.unsent) == (PROCESSED - 30, 30)


async def test_a_short_outage_ends_within_the_run(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on trying for a while, no sooner than the API wants, and then nobody has to start anything."""
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    await seed_users(database, COUNT, TODAY)
    api = Api(lambda call, _: httpx.Response(429, headers={"Retry-After": "9"}) if call <= 4 else httpx.Response(202))
    async with maintaining(database, transport=api, batch_size=1_000, outbox_for_s=60) as kit:
        monkeypatch.setattr("examples.streak.outbox._pause", sleep)
        summary = await kit.maintenance.run(NOW)
    assert (summary.tally.notified, summary.unsent) == (PROCESSED, 0)
    assert waits == [9, 9, 9, 9][: len(waits)]
    assert waits


async def test_unsent_is_shown(database: Database) -> None:
    """The summary, the history and the log say how many messages are left."""
    await seed_users(database, COUNT, TODAY)
    async with maintaining(database, transport=Api(lambda *_: httpx.Response(503)), outbox_for_s=0.5) as kit:
        with capture_logs() as lines:
            summary = await kit.maintenance.run(NOW)
        (run,) = await kit.maintenance.history(5)
    left: Any = lines[-1]["unsent"]
    assert summary.unsent == run.unsent == left == PROCESSED
