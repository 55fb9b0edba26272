"""What is taken of a record: its level, text, place, extra fields, error and ids, in plain values of a bounded size."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pytest
from opentelemetry.sdk._logs import LoggingHandler

from otel_perf import measure
from otel_perf.telemetry import log_item, logs


def record(message: object = "m", *args: object, level: int = logging.INFO, exc_info: Any = None, **extra: Any) -> Any:
    return logging.getLogger("app").makeRecord("app", level, "/app/a.py", 7, message, args, exc_info, "f", extra)


def attributes(item: log_item.LogItem) -> dict[str, Any]:
    return dict(item.attributes)


@pytest.mark.parametrize("level", [*range(61), 100])
@pytest.mark.filterwarnings("ignore")
def test_severity(level):
    """Each level has the number that the SDK gives it."""
    made = LoggingHandler()._translate(record(level=level))
    assert log_item.severity(level) == made.severity_number.value


def test_a_record():
    """Text with its arguments, the place of the call, extra fields, and the level under OpenTelemetry's short name."""
    made = log_item.of_record(record("%s items", 3, level=logging.WARNING, user="u-1", empty=None))
    assert (made.body, made.severity, made.severity_text, made.scope) == ("3 items", 13, "WARN", "app")
    assert attributes(made) == {
        "user": "u-1", "empty": None, "code.file.path": "/app/a.py", "code.function.name": "f", "code.line.number": 7,
    }  # fmt: skip
    assert made.observed_ns >= made.time_ns > 0


def test_a_place_of_its_own():
    """A record with such fields keeps them, once; a function that is not known is left out."""
    made = record(**{"code.file.path": "/other.py"})
    made.funcName = None
    told = log_item.of_record(made).attributes
    assert sorted(told) == [("code.file.path", "/other.py"), ("code.line.number", 7)]


def test_the_ids(telemetry):
    """The trace, the span, its flags and the request; they are no attributes besides."""
    token = logs.request_id.set("r-1")
    with measure("work"):
        made = log_item.of_record(record())
    logs.request_id.reset(token)
    context = telemetry.span("work").context
    assert (made.trace_id, made.span_id, made.flags) == (context.trace_id, context.span_id, int(context.trace_flags))
    assert attributes(made)["http.request.header.x-request-id"] == "r-1"
    assert not {"trace_id", "span_id", "request_id"} & attributes(made).keys()


def test_an_error():
    """Its type, its redacted message, and its stack as places."""
    try:
        raise ValueError("no user 'geheim'")  # noqa: TRY301
    except ValueError:
        told = attributes(log_item.of_record(record(exc_info=sys.exc_info())))
        also = attributes(log_item.of_event({"event": "e", "exc_info": True}, "error", "app"))
    assert told["exception.type"] == also["exception.type"] == "ValueError"
    assert told["exception.message"] == "no user ?"
    assert "test_log_item.py" in told["exception.stacktrace"]
    assert "exception.type" not in attributes(log_item.of_record(record(exc_info=(None, None, None))))


def test_an_event_of_structlog():
    """A mapping that structlog hands to its formatter: its event is the body, the rest are attributes."""
    event = {"event": "bought", "user": "u-1", "level": "info", "timestamp": "now", "trace_id": "t"}
    for made in (log_item.of_record(record(event)), log_item.of_event(event, "info", "app")):
        assert made.body == "bought"
        assert attributes(made)["user"] == "u-1"
        assert not {"event", "level", "timestamp", "trace_id"} & attributes(made).keys()
    assert log_item.of_record(record({"a": 1})).body == {"a": 1}


def test_arguments_that_do_not_fit():
    """A message that cannot be formatted is sent as it was written."""
    assert log_item.of_record(record("%d items", "three")).body == "%d items"


def test_odd_values():
    """Objects are sent as text, what raises as its type; 1 MB, deep and long ones are cut, and nothing is shared."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    listed = [1]
    deep: Any = "end"
    for _ in range(100):
        deep = [deep]
    made = log_item.of_record(
        record("x" * 1_000_000, odd=Odd(), big="y" * 1_000_000, many=list(range(100_000)), deep=deep, listed=listed)
    )
    listed.append(2)
    told = attributes(made)
    assert len(made.body) < 40_000
    assert "Odd" in told["odd"]
    assert len(told["big"]) <= 4096
    assert len(told["many"]) <= 64
    assert len(repr(told["deep"])) < 5000
    assert told["listed"] == [1]


def test_many_fields():
    """The 129th field and those after it are counted as dropped."""
    made = log_item.of_record(record(**{f"f{number}": number for number in range(200)}))
    assert made.dropped == 72
    assert len(made.attributes) == 131


def test_an_argument_that_fails():
    """A message whose argument, or which itself, raises when it becomes a text is sent all the same."""

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError

    assert log_item.of_record(record("bad %s", Bad())).body == "bad %s"
    assert log_item.of_record(record(Bad())).body.endswith("Bad>")
