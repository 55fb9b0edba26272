"""The push API is told at most a hundred messages at a time, and left alone while it does not work."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import httpx
import pytest
from fastapi import FastAPI, Response

from examples.streak.push import MAX_MESSAGES, Answer, Message, PushClient, create_push_app
from tests.conftest import Telemetry
from tests.serving import served

pytestmark = pytest.mark.anyio

ONE = Message("ada", "bonus")
GAUGE = "streak.push.circuit_open"


class Api:
    """A push API that answers as it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.answer = 202
        self.app = FastAPI()
        self.waiting: asyncio.Event | None = None

        @self.app.post("/api/push")
        async def push() -> Response:
            self.calls += 1
            return Response(status_code=self.answer)


@contextmanager
def _serving() -> Iterator[tuple[Api, str]]:
    api = Api()
    with served(api.app) as url:
        yield api, url


async def test_messages_arrive() -> None:
    """What is sent is what the API was given, a hundred messages in a call and no more."""
    app = create_push_app(delay_s=0)
    many = [Message(f"u{number}", "at_risk") for number in range(MAX_MESSAGES)]
    with served(app) as url:
        client = PushClient(url)
        assert client.configured
        assert await client.send(*many)
        with pytest.raises(ValueError, match="100 at most"):
            await client.send(*many, ONE)
        await client.close()
    assert list(app.state.recent) == many


async def test_nobody_to_send_to() -> None:
    """Without an address nothing is sent, and nothing is amiss."""
    client = PushClient(None)
    assert not await client.send(ONE)
    assert client.available
    assert not client.configured
    await client.close()


async def test_circuit_opens_and_closes(telemetry: Telemetry) -> None:
    """After five failures in a row nothing is sent for a while; then one call tries for all."""
    with _serving() as (api, url):
        client = PushClient(url, try_again_after_s=0.2)
        api.answer = 503
        for failed in range(5):
            assert client.available, failed
            assert not await client.send(ONE)
        assert not client.available
        assert _circuit_open(telemetry) == 1
        assert not await client.send(ONE)
        assert api.calls == 5
        await asyncio.sleep(0.25)
        assert client.available
        api.answer = 202
        results = await asyncio.gather(*(client.send(ONE) for _ in range(8)))
        # The one that tries goes alone.
        assert sorted(results) == [False] * 7 + [True]
        assert api.calls == 6
        assert await client.send(ONE)
        assert _circuit_open(telemetry) == 0
        await client.close()


async def test_a_try_that_fails_opens_it_again() -> None:
    """One failure after the pause is enough to leave the API alone for another one."""
    with _serving() as (api, url):
        client = PushClient(url, try_again_after_s=0.2)
        api.answer = 503
        for _ in range(5):
            await client.send(ONE)
        await asyncio.sleep(0.25)
        assert client.available
        assert not await client.send(ONE)
        assert not client.available
        assert api.calls == 6
        await client.close()


async def test_success_in_between_starts_the_count_anew() -> None:
    """Four failures, a success and four failures more are not five in a row."""
    with _serving() as (api, url):
        client = PushClient(url)
        for answer in (503, 503, 503, 503, 202, 503, 503, 503, 503):
            api.answer = answer
            assert await client.send(ONE) is (answer == 202)
        assert client.available
        await client.close()


async def test_a_refusal_is_no_failure_of_the_api() -> None:
    """An API that answers 422 works: what it refuses is not taken, and others are sent; 429 says that it does not."""
    with _serving() as (api, url):
        client = PushClient(url)
        api.answer = 422
        for _ in range(10):
            assert not await client.send(ONE)
        assert client.available
        api.answer = 429
        for _ in range(5):
            await client.send(ONE)
        assert not client.available
        await client.close()


async def test_each_key_is_taken_once() -> None:
    """A call that is made again with its key is answered the same, and its messages arrive once."""
    app = create_push_app(delay_s=0)
    client = PushClient("http://push", transport=httpx.ASGITransport(app))
    for key in ("one", "one", "two", None, None):
        assert (await client.offer([ONE], key)).taken
    await client.close()
    assert len(app.state.recent) == 4


async def test_the_api_remembers_so_many_keys_and_no_more() -> None:
    """After ten thousand others a key is forgotten: memory is bounded."""
    app = create_push_app(delay_s=0)
    client = PushClient("http://push", transport=httpx.ASGITransport(app))
    with mock.patch("examples.streak.push._KEYS_REMEMBERED", 2):
        for key in ("one", "two", "three", "one"):
            await client.offer([ONE], key)
    await client.close()
    assert len(app.state.recent) == 4


@pytest.mark.parametrize(
    ("status", "given", "answer"),
    [
        (202, "", Answer(taken=True)),
        (400, "", Answer(taken=False, refused=True)),
        (422, "9", Answer(taken=False, refused=True)),
        (408, "", Answer(taken=False)),
        (429, "7", Answer(taken=False, retry_after_s=7)),
        (503, "Wed, 21 Oct 2026 07:28:00 GMT", Answer(taken=False)),
        (307, "", Answer(taken=False)),
    ],
)
async def test_what_an_answer_says(status: int, given: str, answer: Answer) -> None:
    """Too slow, too many and any trouble of the API's is for later; what it does not want is refused for good."""
    headers = {"Retry-After": given} if given else {}
    client = PushClient("http://push", transport=httpx.MockTransport(lambda _: httpx.Response(status, headers=headers)))
    assert await client.offer([ONE], "key") == answer
    await client.close()


async def test_dead_api(telemetry: Telemetry) -> None:
    """Nobody who listens is a failure too; each call that was made is measured, and none that was not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = PushClient(f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert [await client.send(ONE) for _ in range(7)] == [False] * 7
        await client.close()
    points = telemetry.points("external.api.duration")
    assert sum(point.count for point in points if "error.type" in (point.attributes or {})) == 5


async def test_cancelled_call_says_nothing_of_the_api() -> None:
    """A caller who gives up half-way is neither a failure nor the success that would close the circuit."""
    entered, never = asyncio.Event(), asyncio.Event()

    async def answer(_request: httpx.Request) -> httpx.Response:
        if not hanging:
            return httpx.Response(503)
        entered.set()
        await never.wait()
        raise AssertionError

    hanging = False
    client = PushClient("http://push", transport=httpx.MockTransport(answer))
    for _ in range(4):
        await client.send(ONE)
    hanging = True
    task = asyncio.create_task(client.send(ONE))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.available
    hanging = False
    await client.send(ONE)
    assert not client.available
    await client.close()


def _circuit_open(telemetry: Telemetry) -> float:
    (point,) = telemetry.points(GAUGE)
    value: float = point.value
    return value
