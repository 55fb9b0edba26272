"""What is counted beside requests: one query, one Redis command, one outgoing call, one cache operation, one block.

Each is made ready in a process of its own kind, with otel_perf or without, and gives something to do once. None needs a
server of its own: SQLite in memory, a stub that speaks just enough RESP, a transport of httpx that answers by itself.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

__all__ = ["SUBJECTS", "Do"]

Do = Callable[[], Any]


@contextlib.contextmanager
def query(measured: bool) -> Generator[Do, None, None]:
    """A SELECT by SQLAlchemy Core, its row read."""
    from sqlalchemy import create_engine, text

    engine = create_engine("sqlite://")
    statement = text("SELECT id FROM streaks WHERE user_id = :user")
    if measured:
        import otel_perf

        otel_perf.instrument(engine)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE streaks (id INTEGER, user_id INTEGER)"))
        yield lambda: connection.execute(statement, {"user": 1}).all()
    engine.dispose()


@contextlib.contextmanager
def redis_command(measured: bool) -> Generator[Do, None, None]:
    """A GET by redis-py."""
    import redis

    with _stub() as port:
        client = redis.Redis(port=port, protocol=2, lib_name=None, lib_version=None)
        if measured:
            import otel_perf

            otel_perf.instrument(client)
        yield lambda: client.get("streak:42")
        client.close()


@contextlib.contextmanager
def httpx_call(measured: bool) -> Generator[Do, None, None]:
    """A GET by httpx."""
    import httpx

    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200)))
    if measured:
        import otel_perf

        otel_perf.instrument(client)
    with client:
        yield lambda: client.get("http://127.0.0.1/rates")


@contextlib.contextmanager
def cashews_get(measured: bool) -> Generator[Do, None, None]:
    """A hit in a cashews cache in memory; a coroutine function."""
    from cashews import Cache

    cache = Cache()
    cache.setup("mem://", check_interval=3600)
    if measured:
        import otel_perf

        otel_perf.instrument(cache)
    made = False

    async def get() -> object:
        nonlocal made
        if not made:
            made = True
            await cache.set("streak:42", 1)
        return await cache.get("streak:42")

    yield get


@contextlib.contextmanager
def measured_block(measured: bool) -> Generator[Do, None, None]:
    """`with measure("step"): ...` against an empty block."""
    if not measured:
        yield lambda: None
        return
    from otel_perf import measure

    def block() -> None:
        with measure("step", category="processing"):
            pass

    yield block


@contextlib.contextmanager
def bound_record(measured: bool) -> Generator[Do, None, None]:
    """One value recorded into a bound histogram."""
    if not measured:
        yield lambda: None
        return
    record = bound_histogram()
    yield lambda: record(0.2)


def bound_histogram() -> Callable[[float], None]:
    """The `record` of a histogram of ours that is bound to five attributes."""
    from opentelemetry import metrics

    histogram: Any = metrics.get_meter_provider().get_meter("bench").create_histogram("bench.duration", "s")
    record: Callable[[float], None] = histogram.bind(FIVE).record
    return record


#: Attributes of a request, for spans and metrics alike.
FIVE: dict[str, Any] = {
    "http.request.method": "GET", "http.route": "/items/{item}", "http.response.status_code": 200,
    "url.scheme": "http", "network.protocol.version": "1.1",
}  # fmt: skip

SUBJECTS: dict[str, Callable[[bool], contextlib.AbstractContextManager[Do]]] = {
    "sqlalchemy_query": query,
    "redis_command": redis_command,
    "httpx_call": httpx_call,
    "cashews_get": cashews_get,
    "measure_block": measured_block,
    "bound_record": bound_record,
}


@contextlib.contextmanager
def _stub() -> Generator[int, None, None]:
    """Answers a GET with a value and all else with OK, on a free loopback port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:  # otel_perf looks at the server's figures over a connection of its own
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as incoming:
            while line := incoming.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int(incoming.readline()[1:])
                    words.append(incoming.read(size + 2)[:-2])
                connection.sendall(b"$2\r\n42\r\n" if words[0].upper() == b"GET" else b"+OK\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)  # or `accept` would go on waiting
        listening.close()
        thread.join(5)
