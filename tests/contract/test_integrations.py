"""What every integration keeps to, whatever its library is.

A case sets a library up, does one measured thing, and says what else there is to know: how to make it fail with a
given exception, and what an undo must leave as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import cashews
import httpx
import pytest
import redis
import redis.asyncio
import sqlalchemy as sa
from cashews import Cache
from opentelemetry.sdk.trace import SpanProcessor
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

import otel_perf
from otel_perf import guard, instrument, redaction
from otel_perf.integrations import registry
from otel_perf.telemetry import operation
from tests.conftest import Telemetry


class Case:
    """One library, set up and ready to be measured."""

    name = ""
    metric = "db.client.operation.duration"

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.target: Any = None
        #: The exception that the library meets below us, and whether it waits there.
        self.error: BaseException | None = None
        self.hangs = False

    def work(self) -> Any:
        """Do one measured thing and answer its result."""
        raise NotImplementedError

    def hostile(self) -> Any:
        """The same with input that is as odd as it gets."""
        raise NotImplementedError

    def state(self) -> list[Any]:
        """What an undo must leave as it was, object by object."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open."""


class SyncSQLAlchemy(Case):
    name = "sqlalchemy"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.target = self.engine = sa.create_engine("sqlite://")
        event.listen(self.engine, "do_execute", self._meet)

    def _meet(self, *_: Any) -> None:
        if self.error is not None:
            raise self.error

    def _run(self, statement: str) -> Any:
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(statement).scalar()

    def work(self) -> Any:
        return self._run("SELECT 42")

    def hostile(self) -> Any:
        return self._run("SELECT '\x1b[31m'\n-- " + "x" * 50_000)

    def state(self) -> list[Any]:
        listened: list[Any] = []
        for target in (sa.Engine, self.engine):
            from otel_perf.integrations import sqlalchemy

            listened += [event.contains(target, name, hook) for name, hook in sqlalchemy._QUERIES + sqlalchemy._ENDS]
        return listened

    def close(self) -> None:
        self.engine.dispose()


class AsyncCase(Case):
    """A case with a loop of its own."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.loop = asyncio.new_event_loop()

    async def do(self, *, odd: bool = False) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close what is open."""

    async def meet(self) -> None:
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.sleep(30)

    def work(self) -> Any:
        return self.loop.run_until_complete(self.do())

    def hostile(self) -> Any:
        return self.loop.run_until_complete(self.do(odd=True))

    def close(self) -> None:
        self.loop.run_until_complete(self.aclose())
        self.loop.close()


class AsyncSQLAlchemy(AsyncCase):
    name = "sqlalchemy"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.target = self.engine = create_async_engine("sqlite+aiosqlite://")
        event.listen(self.engine.sync_engine, "do_execute", self._meet)

    def _meet(self, *_: Any) -> None:
        from sqlalchemy.util import await_only

        await_only(self.meet())

    async def do(self, *, odd: bool = False) -> Any:
        async with self.engine.connect() as connection:
            return (await connection.exec_driver_sql("SELECT '\x1b'" if odd else "SELECT 42")).scalar()

    def state(self) -> list[Any]:
        from otel_perf.integrations import sqlalchemy

        engine = self.engine.sync_engine
        return [event.contains(engine, name, hook) for name, hook in sqlalchemy._QUERIES + sqlalchemy._ENDS]

    async def aclose(self) -> None:
        await self.engine.dispose()


class SyncRedis(Case):
    name = "redis"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.target = self.client = redis.Redis.from_url(redis_url)
        self.client.set("contract", "42")
        self._send, self.client._send_command_parse_response = self.client._send_command_parse_response, self._meet

    def _meet(self, *args: Any, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self._send(*args, **options)

    def work(self) -> Any:
        return self.client.get("contract")

    def hostile(self) -> Any:
        return self.client.get(b"\xff\x00" * 10_000)

    def state(self) -> list[Any]:
        return [redis.Redis.execute_command, redis.client.Pipeline.execute, redis.RedisCluster.execute_command]

    def close(self) -> None:
        self.client.close()


class AsyncRedis(AsyncCase):
    name = "redis"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.target = self.client = redis.asyncio.Redis.from_url(redis_url)
        self.loop.run_until_complete(self.client.set("contract", "42"))
        self._send, self.client._send_command_parse_response = self.client._send_command_parse_response, self._meet

    async def _meet(self, *args: Any, **options: Any) -> Any:
        await self.meet()
        return await self._send(*args, **options)

    async def do(self, *, odd: bool = False) -> Any:
        return await self.client.get(b"\xff\x00" * 10_000 if odd else "contract")

    def state(self) -> list[Any]:
        return [redis.asyncio.Redis.execute_command, redis.asyncio.client.Pipeline.execute]

    async def aclose(self) -> None:
        await self.client.aclose()


class Cashews(AsyncCase):
    name = "cashews"
    metric = "cache.operation.duration"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.target = self.cache = Cache()
        self.cache.setup("mem://")
        self.value = object()
        self.loop.run_until_complete(self.cache.set("contract", self.value))
        self.cache.add_middleware(self._meet)

    async def _meet(self, call: Any, _cmd: Any, _backend: Any, *args: Any, **kwargs: Any) -> Any:
        await self.meet()
        return await call(*args, **kwargs)

    async def do(self, *, odd: bool = False) -> Any:
        return await self.cache.get("\ud800\x1b" * 10_000 if odd else "contract")

    async def aclose(self) -> None:
        await self.cache.close()

    def state(self) -> list[Any]:
        logger = logging.getLogger("cashews.backends.redis.client")
        return [*self.cache._default_middlewares, *logger.filters, cashews.Cache.get]


class SyncHTTPX(Case):
    name = "httpx"
    metric = "http.client.request.duration"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.answer = httpx.Response(200, text="42")
        self.target = self.client = httpx.Client(transport=httpx.MockTransport(self._meet))

    def _meet(self, _request: httpx.Request) -> httpx.Response:
        if self.error is not None:
            raise self.error
        return self.answer

    def work(self) -> Any:
        return self.client.get("http://contract.test/")

    def hostile(self) -> Any:
        return self.client.request("\x7f" * 100, "http://u:p@\u00fc.test:0/?" + "q=\x1b&" * 10_000)

    def state(self) -> list[Any]:
        return [httpx.Client.send, self.client._transport, *vars(self.client)]

    def close(self) -> None:
        self.client.close()


class AsyncHTTPX(AsyncCase):
    name = "httpx"
    metric = "http.client.request.duration"

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        self.answer = httpx.Response(200, text="42")
        self.target = self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._meet))

    async def _meet(self, _request: httpx.Request) -> httpx.Response:
        await self.meet()
        return self.answer

    async def do(self, *, odd: bool = False) -> Any:
        return await self.client.request("\x7f" if odd else "GET", "http://contract.test/")

    def state(self) -> list[Any]:
        return [httpx.AsyncClient.send, self.client._transport, *vars(self.client)]

    async def aclose(self) -> None:
        await self.client.aclose()


CASES = (SyncSQLAlchemy, AsyncSQLAlchemy, SyncRedis, AsyncRedis, Cashews, SyncHTTPX, AsyncHTTPX)
#: Servers: what comes in has a contract of its own, in their tests.
SERVERS = {"fastapi", "asgi"}


def _made(kind: type[Case], redis_server: Any) -> Iterator[Any]:
    made = kind(redis_server.url)
    yield made
    made.error, made.hangs = None, False
    made.close()


@pytest.fixture(params=CASES, ids=lambda each: each.__name__)
def case(request: pytest.FixtureRequest, redis_server: Any) -> Iterator[Case]:
    """Each library in turn."""
    yield from _made(request.param, redis_server)


@pytest.fixture(params=[each for each in CASES if issubclass(each, AsyncCase)], ids=lambda each: each.__name__)
def async_case(request: pytest.FixtureRequest, redis_server: Any) -> Iterator[AsyncCase]:
    """Each async library in turn."""
    yield from _made(request.param, redis_server)


def _count(telemetry: Telemetry, case: Case, **attributes: Any) -> int:
    return sum(point.count for point in telemetry.points(case.metric, **attributes))


def test_every_client_library_has_a_case() -> None:
    """A new integration comes with a case here."""
    assert {each.name for each in CASES} | SERVERS == {each.name for each in registry.INTEGRATIONS}


def test_success(telemetry: Telemetry, case: Case) -> None:
    """The result is the very same, one thing is counted once, and one span ended without an error."""
    plain = case.work()
    with instrument(case.target):
        measured = case.work()

    assert type(measured) is type(plain)
    assert measured is plain or measured == plain
    assert _count(telemetry, case) == 1
    (span,) = telemetry.spans
    assert "error.type" not in (span.attributes or {})


def test_an_exception_is_the_very_same(telemetry: Telemetry, case: Case) -> None:
    """What the library raises reaches the user as the same object; span and metric name its type."""
    case.error = LookupError("boom")
    with instrument(case.target), pytest.raises(LookupError) as caught:
        case.work()

    assert caught.value is case.error
    assert _count(telemetry, case, error__type="LookupError") == 1
    assert (telemetry.spans[0].attributes or {})["error.type"] == "LookupError"


class _Begun(SpanProcessor):
    """Tells when a span has begun."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.event.set()


def test_cancelled(telemetry: Telemetry, async_case: AsyncCase) -> None:
    """A task that is cancelled while it waits leaves nothing current, and is counted as cancelled."""
    case = async_case
    case.hangs = True
    left: list[Any] = []
    begun = _Begun()
    telemetry.runtime.tracer_provider.add_span_processor(begun)  # type: ignore[attr-defined]  # the SDK's, and ours

    async def main() -> None:
        async def run() -> None:
            try:
                await case.do()
            finally:
                left.append(operation.current())

        task = asyncio.ensure_future(run())
        await asyncio.wait_for(begun.event.wait(), 10)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with instrument(case.target):
        case.loop.run_until_complete(main())
    assert left == [None]
    assert _count(telemetry, case, error__type="asyncio.exceptions.CancelledError") == 1


def test_twice(telemetry: Telemetry, case: Case) -> None:
    """Instrumented twice, and as a whole where that can be, one thing is still counted once."""
    whole = next(each.whole for each in registry.INTEGRATIONS if each.name == case.name)
    with contextlib.ExitStack() as stack:
        for target in [case.target, case.target, *([case.name] if whole else [])]:
            stack.enter_context(instrument(target))
        case.work()

    assert _count(telemetry, case) == 1
    assert len(telemetry.spans) == 1


def test_undo(telemetry: Telemetry, case: Case) -> None:
    """Undo puts back exactly what was there, in whichever order, and a second undo changes nothing."""
    before = case.state()
    first, second = instrument(case.target), instrument(case.target)
    for handle in (first, second, first, second):
        handle.undo()

    assert all(one is other for one, other in zip(before, case.state(), strict=True))
    case.work()
    assert _count(telemetry, case) == 0


def test_configured_afterwards_and_again(case: Case, telemetry: Telemetry) -> None:
    """Instrumenting comes before `configure()` as well as after; a second `configure()` counts anew."""
    otel_perf.shutdown()
    with instrument(case.target):
        case.work()
        telemetry.restart()
        case.work()
        assert _count(telemetry, case) == 1
        telemetry.restart()
        case.work()
        case.work()
        assert _count(telemetry, case) == 2
        assert len(telemetry.spans) == 2


def test_hostile_input(telemetry: Telemetry, case: Case) -> None:
    """Odd input has the outcome that it has without us, and spans stay bounded and printable."""

    def outcome() -> Any:
        try:
            return type(case.hostile())
        except Exception as error:
            return type(error)

    plain = outcome()
    with instrument(case.target):
        assert outcome() is plain
    for span in telemetry.spans:
        assert span.name.isprintable()
        values = [value for value in (span.attributes or {}).values() if isinstance(value, str)]
        assert all(len(value) <= 2048 and "\x1b" not in value for value in values)


@pytest.mark.parametrize(
    ("where", "what"),
    [(operation, "start"), (operation, "current"), (redaction, "redact"), (operation.Operation, "_record")],
)
def test_our_faults_stay_ours(
    telemetry: Telemetry, case: Case, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    """A fault of ours is counted and kept from the user, whose results and exceptions stay what they are."""
    plain = case.work()

    def fault(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a fault of ours")

    with instrument(case.target), monkeypatch.context() as patch:
        patch.setattr(guard, "strict", False)
        patch.setattr(where, what, fault)
        measured = case.work()
        case.error = LookupError("boom")
        with pytest.raises(LookupError) as caught:
            case.work()

    assert measured is plain or measured == plain
    assert caught.value is case.error
    assert guard.errors > 0


@pytest.mark.parametrize("each", [each for each in registry.INTEGRATIONS if each.whole], ids=lambda each: each.name)
def test_a_missing_library(
    each: registry.Integration, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library that is not installed is no exception: a warning names the extra to install."""
    monkeypatch.setattr(registry.Integration, "found", lambda _self: None)
    instrument(each.name).undo()
    assert f"pip install 'otel-perf[{each.name}]'" in caplog.text
