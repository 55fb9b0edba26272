"""What a line of the log is made of, and what becomes of strange ones."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import logging.config
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import LOGGING_CONFIG

from examples.streak import logs
from examples.streak.logs import RequestLog, configure_logging
from examples.streak.settings import Settings
from examples.streak.stores import StoreUnavailableError
from otel_perf import flush, measure
from tests.conftest import Telemetry
from tests.streak.conftest import Start


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


class Lines:
    """What was written to stdout."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream = io.StringIO()
        self._monkeypatch = monkeypatch

    def configure(self, **settings: Any) -> None:
        with self._monkeypatch.context() as patched:
            patched.setattr("sys.stdout", self.stream)
            configure_logging(Settings(**settings))

    def clear(self) -> None:
        self.stream.seek(0)
        self.stream.truncate()

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that `configure_logging` changes is put back."""
    root, ours, slow = map(logging.getLogger, (None, "examples.streak", "otel_perf.slow_query"))
    before = list(root.handlers), root.level, ours.level
    servers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access")]
    said = [(list(each.handlers), each.propagate, each.level) for each in servers]
    undo: list[Callable[[], None]] = []
    instrument = logs.instrument

    def noted(target: Any) -> Any:
        handle = instrument(target)
        undo.append(handle.undo)
        return handle

    monkeypatch.setattr(logs, "instrument", noted)
    yield
    for each in undo:
        each()
    structlog.reset_defaults()
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])
    slow.propagate = False
    for server, (handlers, propagate, level) in zip(servers, said, strict=True):
        server.handlers[:], server.propagate = handlers, propagate
        server.setLevel(level)


@pytest.fixture
def lines(restored: None, monkeypatch: pytest.MonkeyPatch) -> Lines:
    """The log is configured, and its lines are kept."""
    kept = Lines(monkeypatch)
    kept.configure()
    return kept


def test_both_kinds_of_loggers_say_the_same(lines: Lines) -> None:
    """An event of structlog and a record of logging come out with the same fields."""
    structlog.get_logger("examples.streak.some").warning("tea is ready", cups=2)
    logging.getLogger("examples.streak.some").warning("tea is %s", "ready")
    event, record = lines.all
    assert event.pop("cups") == 2
    assert event.pop("time") <= record.pop("time")
    assert event == record
    assert event == {
        "severity": "WARNING",
        "message": "tea is ready",
        "service": "streak",
        "logger": "examples.streak.some",
    }


def test_ids_of_the_trace(lines: Lines, telemetry: Telemetry) -> None:
    """Within a span both have its ids; outside they have none."""
    with measure("brew"):
        structlog.get_logger("x").info("event")
        logging.getLogger("examples.streak").info("record")
    structlog.get_logger("x").info("outside")
    event, record, outside = lines.all
    span = telemetry.span("brew")
    for line in (event, record):
        assert line["trace_id"] == f"{span.context.trace_id:032x}"
        assert line["span_id"] == line["logging.googleapis.com/spanId"] == f"{span.context.span_id:016x}"
        assert line["logging.googleapis.com/trace_sampled"] is True
        assert "logging.googleapis.com/trace" not in line  # without a project there is no such name
    assert not {"trace_id", "span_id", "request"} & outside.keys()


def _fail() -> None:
    raise LookupError("hunter2")


def test_exceptions_have_type_and_place_and_no_text(lines: Lines) -> None:
    """However an exception is logged, its text, which may repeat what was sent, is left out."""
    try:
        _fail()
    except LookupError as error:
        structlog.get_logger("x").exception("one")
        structlog.get_logger("x").error("two", exc_info=error)
        structlog.get_logger("x").error("three", exc_info=(LookupError, error, error.__traceback__))
        logging.getLogger("y").exception("four")
    structlog.get_logger("x").exception("nothing went wrong")
    *failed, fine = lines.all
    assert [line["message"] for line in failed] == ["one", "two", "three", "four"]
    for line in failed:
        assert line["severity"] == "ERROR"
        assert line["error"] == "LookupError"
        assert line["stack_trace"].startswith("Traceback (most recent call last):\n")
        assert "in _fail" in line["stack_trace"]
    assert "error" not in fine
    assert "hunter2" not in lines.stream.getvalue()


def test_deep_stacks_are_cut(lines: Lines) -> None:
    """Of a deep stack there are the last frames."""

    def dig(depth: int) -> None:
        if depth:
            dig(depth - 1)
        raise ValueError

    try:
        dig(200)
    except ValueError:
        structlog.get_logger("x").exception("deep")
    assert lines.all[0]["stack_trace"].count("File ") == 20


def test_long_and_strange_values(lines: Lines) -> None:
    """A line is one line, whatever is in it, and no longer than is good."""
    structlog.get_logger("x").info("a\nb" * 1_000_000, note="é" * 1_000_000, odd=object(), moment={1, 2}, none=None)
    (line,) = lines.all
    assert len(lines.stream.getvalue()) < 100_000
    assert line["odd"].startswith("<object")
    assert line["none"] is None


def test_values_that_cannot_be_told(lines: Lines) -> None:
    """A value that fails when it is shown costs its event, never its caller."""

    class Broken:
        def __str__(self) -> str:
            raise ValueError

    circle: list[Any] = []
    circle.append(circle)
    for odd in (Broken(), circle, float("nan"), "\ud800"):
        structlog.get_logger("x").info("odd", odd=odd, kept=1)
    assert [(line["message"], line["kept"]) for line in lines.all] == [("odd", 1)] * 4
    assert [line["odd"] for line in lines.all] == ["(Broken)", "(list)", "(float)", "\ud800"]


def test_levels(lines: Lines) -> None:
    """At debug the service tells more; what drivers tell at debug, values of queries, stays out."""
    for level, told in (("error", ["error"]), ("info", ["info", "error"]), ("debug", ["debug", "info", "error"])):
        lines.clear()
        lines.configure(log_level=level)
        for name in ("debug", "info", "error"):
            getattr(structlog.get_logger("x"), name)(name)
            getattr(logging.getLogger("examples.streak.cache"), name)(name)
        for name in ("aiosqlite", "httpcore.http11", "sqlalchemy.engine.Engine"):
            logging.getLogger(name).debug("a value")
            logging.getLogger(name).info("a value")
        assert [line["message"] for line in lines.all] == [name for name in told for _ in range(2)]


def test_configured_again(lines: Lines) -> None:
    """Configured once more, each line still comes once, and other handlers are left alone."""
    others = [handler for handler in logging.getLogger().handlers if not isinstance(handler, logs._Handler)]
    for _ in range(3):
        lines.configure()
    logging.getLogger("x").warning("once")
    assert [line["message"] for line in lines.all] == ["once"]
    assert [h for h in logging.getLogger().handlers if not isinstance(h, logs._Handler)] == others


def test_text_for_a_terminal(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody watches, lines are text, and a stack is readable."""
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", Screen())
    configure_logging(Settings())
    structlog.get_logger("x").info("tea is ready", cups=2)
    try:
        _fail()
    except LookupError:
        logging.getLogger("y").exception("no tea")
    shown = screen.getvalue().splitlines()
    assert "INFO     tea is ready  cups=2" in shown[0]
    assert "ERROR    no tea" in shown[1]
    assert shown[-1] == "LookupError"


def test_nobody_reads(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed stdout fails nobody."""
    closed = io.StringIO()
    monkeypatch.setattr("sys.stdout", closed)
    configure_logging(Settings())
    closed.close()
    structlog.get_logger("x").info("into the void")
    logging.getLogger("x").warning("into the void")


def _asked(app: Any, **scope: Any) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Message) -> None:
        pass

    given = {
        "type": "http",
        "method": "GET",
        "path": "/api/x",
        "query_string": b"token=hunter2",
        "headers": [],
        **scope,
    }
    asyncio.run(RequestLog(app)(given, receive, send))


def _answering(status: int | None, error: BaseException | None = None) -> Any:
    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("path", "status", "severity"),
    [
        ("/api/x", 200, "INFO"),
        ("/api/x", 404, "INFO"),
        ("/api/x", 503, "ERROR"),
        ("/api/health", 200, None),
        ("/api/health", 503, "WARNING"),
        ("/", 200, None),
        ("/page/page.js", 200, None),
        ("/performance", 500, "ERROR"),
    ],
)
def test_severity_of_requests(lines: Lines, path: str, status: int, severity: str | None) -> None:
    """Requests of the API are told, others only when they fail."""
    _asked(_answering(status), path=path)
    assert [line["severity"] for line in lines.all] == ([severity] if severity else [])


@pytest.mark.usefixtures("telemetry")  # it records
@pytest.mark.parametrize(("path", "severity"), [("/api/profile", "ERROR"), ("/api/health", "WARNING")])
def test_a_database_that_is_away_is_one_line(
    lines: Lines, start: Start, monkeypatch: pytest.MonkeyPatch, path: str, severity: str
) -> None:
    """A failed request is one line with the kind of failure, a failed probe a warning; the SDK says nothing."""

    async def fail(*_arguments: Any) -> None:
        raise StoreUnavailableError("ConnectionRefusedError") from OSError("hunter2" * 10_000)

    async def ask() -> None:
        async with start() as service:
            for method in ("profile", "ping"):
                monkeypatch.setattr(type(service.app.state.parts.database.store), method, fail)
            lines.clear()
            assert (await service.get(path)).status_code == 503

    asyncio.run(ask())
    (line,) = lines.all
    assert (line["severity"], line["message"]) == (severity, f"GET {path} 503")
    assert line["error"] == "ConnectionRefusedError"
    assert "hunter2" not in lines.stream.getvalue()


def test_failed_requests(lines: Lines) -> None:
    """A failure before and after the answer has begun is an error with the status that was sent, and goes on."""
    for status, told in ((None, 500), (200, 200)):
        with pytest.raises(LookupError):
            _asked(_answering(status, LookupError("hunter2")))
        assert lines.all[-1]["status"] == told
        assert lines.all[-1]["severity"] == "ERROR"
        assert lines.all[-1]["error"] == "LookupError"
    assert "hunter2" not in lines.stream.getvalue()


def test_a_failure_is_told_once(lines: Lines) -> None:
    """What the server says of an exception that the request's line told already is left out; of others it is not."""
    error = LookupError()
    with pytest.raises(LookupError):
        _asked(_answering(None, error))
    server = logging.getLogger("uvicorn.error")
    server.error("Exception in ASGI application\n", exc_info=error)
    server.error("Exception in ASGI application\n", exc_info=ValueError())
    assert [line["error"] for line in lines.all] == ["LookupError", "ValueError"]


def test_a_server_that_has_set_up_its_own(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `uvicorn module:app` what the server says is in the service's form, once, and its access log is silent."""
    logging.config.dictConfig(LOGGING_CONFIG)
    kept = Lines(monkeypatch)
    kept.configure()
    logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=ValueError())
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "127.0.0.1", "GET", "/", "1.1", 200)
    assert [line["error"] for line in kept.all] == ["ValueError"]


def test_cancelled_requests(lines: Lines) -> None:
    """A request whose client went away has a line without a status, and is cancelled all the same."""
    with pytest.raises(asyncio.CancelledError):
        _asked(_answering(None, asyncio.CancelledError()))
    assert [(line["severity"], line["status"]) for line in lines.all] == [("INFO", None)]


def test_other_protocols_pass(lines: Lines) -> None:
    """What is no HTTP request is handed on as it is."""
    seen = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    _asked(app, type="lifespan")
    _asked(app, type="websocket")
    assert seen == ["lifespan", "websocket"]
    assert lines.all == []


def test_slow_queries_are_in_the_log(lines: Lines, telemetry: Telemetry) -> None:
    """What otel_perf says of a slow query is in the same form, with its figures and the trace that it belongs to."""
    telemetry.restart(slow_query_s=0.01, critical_query_s=60.0)
    with measure("brew"), measure.query("SELECT", collection="tea", text="x = 'hunter2'"):
        time.sleep(0.02)
    flush()
    (line,) = lines.all
    assert line["logger"] == "otel_perf.slow_query"
    assert line["severity"] == "WARNING"
    assert line["trace_id"] == f"{telemetry.span('brew').context.trace_id:032x}"
    assert line["db.collection.name"] == "tea"
    assert "hunter2" not in lines.stream.getvalue()


def test_extras_and_ids_of_records(lines: Lines) -> None:
    """What is given as `extra` is in the line, and nothing that each record has."""
    logging.getLogger("examples.streak").info("tea", extra={"cups": 2, "color_message": "red"})
    (line,) = lines.all
    assert line.pop("cups") == 2
    assert line.keys() == {"severity", "message", "time", "service", "logger"}
