"""OTLP over HTTP: what is sent once more, what counts as delivered, and what is said about a dead endpoint.

Only a 2xx answer that parses is success; of a partial success the rejected part is a loss.
Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

from __future__ import annotations

import json
import logging
import math
import random
import threading
import time
import zlib
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from otel_perf import redaction
from otel_perf.telemetry.connection import Connection, Failed, Response

__all__ = ["LOST", "Answer", "Delivery", "Payload", "packed", "partial_success", "say"]

_REJECTED = ("rejectedSpans", "rejectedDataPoints", "rejectedLogRecords")
_RETRIED = frozenset((429, 502, 503, 504))
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 5.0
_LONGEST_HOLD_S = 300.0  # nobody is waited for longer, whatever he asks for
_SAID_EVERY_S = 60.0
_WORTH_PACKING = 512

_log = logging.getLogger("otel_perf")
_said: dict[tuple[str, str], float] = {}


class Payload(NamedTuple):
    """A request as it goes over the wire."""

    body: bytes
    gzip: bool

    @property
    def size_bytes(self) -> int:
        """What it takes while it waits."""
        return len(self.body)


class Answer(NamedTuple):
    """What became of a payload: items that a delivery rejected, and those of its requests that were not delivered."""

    delivered: bool
    rejected: int = 0
    failed: int = 0


LOST = Answer(False)


def packed(body: bytes, gzip: bool) -> Payload:
    """A request body, compressed where that is wanted and worth it."""
    if not gzip or len(body) < _WORTH_PACKING:
        return Payload(body, False)
    # Level 1: the others take several times as long for a few per cent less.
    packing = zlib.compressobj(1, zlib.DEFLATED, 31)  # 31: in gzip's form
    return Payload(packing.compress(body) + packing.flush(), True)


class Delivery:
    """Sends payloads of one signal to one endpoint, one after the other; `stop` and `abort` may come from outside."""

    def __init__(self, connection: Connection, signal: str, address: str, timeout_s: float) -> None:
        self._connection = connection
        self._signal = signal
        self._address = redaction.url(address)
        self._server = urlsplit(address).netloc  # of which one line is said, whatever the signal
        self.timeout_s = timeout_s
        self._not_before = -math.inf  # when the server wants to be asked again
        self._stopping = threading.Event()
        self._end = math.inf

    @property
    def held_s(self) -> float:
        """For how long the server asked to be left alone, from now on; after `stop` it is asked all the same."""
        return 0.0 if self._stopping.is_set() else max(0.0, self._not_before - time.monotonic())

    def send(self, payload: Payload, within_s: float = math.inf, *, patient: bool = False) -> Answer:
        """Sends a payload, more than once where that may help, within the time of one export.

        Who asks for a longer wait than that gets no request until it is over. A payload that has no such time is lost,
        a patient one waits, for five minutes at most.
        """
        now = time.monotonic()
        deadline, patience = now + min(self.timeout_s, within_s), now + _LONGEST_HOLD_S
        at, attempts, why = self._not_before, 0, "it asked to be left alone for a while"
        while True:
            if not self._stopping.is_set():
                if at >= deadline:
                    if not (patient and self._not_before >= deadline and at < patience):
                        break
                    deadline = at + self.timeout_s
                # Whoever shuts down ends the wait, or keeps it from beginning; one more attempt is made then.
                self._stopping.wait(max(0.0, at - time.monotonic()))
            last = self._stopping.is_set()
            answer, wait_s, why = self._attempt(payload, min(deadline, self._end), attempts)
            if answer is not None:
                return answer
            if last or wait_s is None:
                break
            attempts += 1
            at = time.monotonic() + wait_s
        say("refused", self._server, f"{self._signal} could not be sent to {self._address}: {why}")
        return LOST

    def _attempt(self, payload: Payload, deadline: float, before: int) -> tuple[Answer | None, float | None, str]:
        """The answer, or how long to wait until the next attempt (None: it would not help), and why."""
        try:
            response = self._connection.post(
                payload.body, {"content-encoding": "gzip"} if payload.gzip else {}, deadline
            )
        except Failed as error:
            return None, _backoff(before), str(error)
        if response.status in _RETRIED:
            asked_s = _retry_after(response.headers.get("retry-after"))
            wait_s = max(_backoff(before), asked_s)
            if asked_s:
                self._not_before = time.monotonic() + wait_s
            return None, wait_s, f"it answered {response.status}"
        if not 200 <= response.status < 300:
            more = " and redirects are not followed" if 300 <= response.status < 400 else ""
            return None, None, f"it answered {response.status}{more}"
        try:
            rejected, message = _read(response)
        except ValueError:
            return None, None, f"it answered {response.status} with what is not OTLP; is the address right?"
        if rejected or message:
            told = f"{self._address} rejected {rejected} of the {self._signal}: {redaction.message(message)}"
            say("rejected", self._server, told)
        return Answer(True, rejected), None, ""

    def stop(self, deadline: float) -> None:
        """Ends waits at once: from now on one attempt is made for each payload, and none after the deadline."""
        self._end = deadline
        self._stopping.set()

    def abort(self) -> None:
        """Ends what is on its way."""
        self._end = -math.inf
        self._stopping.set()
        self._connection.abort()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def say(what: str, server: str, message: str) -> None:
    """Logs one line a minute for each thing that can happen with a server."""
    now = time.monotonic()
    if now - _said.get((what, server), -math.inf) >= _SAID_EVERY_S:
        _said[what, server] = now
        _log.warning("otel_perf: %s", message)


def _backoff(before: int) -> float:
    longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * (1 << min(before, 10)))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  # so that many processes do not come back at once


def _retry_after(value: str | None) -> float:
    """How many seconds a server asks for; none where it does not, or where nobody understands it."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
            zoned = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
            seconds = (zoned - datetime.now(timezone.utc)).total_seconds()
        except (ValueError, OverflowError, TypeError):
            return 0.0
    return 0.0 if math.isnan(seconds) else min(max(0.0, seconds), _LONGEST_HOLD_S)


# The answer ----------------------------------------------------------------------------------------------------------


def _read(response: Response) -> tuple[int, str]:
    if response.body is None:
        raise ValueError("too long")
    if response.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        return _partial_success_of_json(response.body)
    return partial_success(response.body)


def partial_success(body: bytes) -> tuple[int, str]:
    """How many items an Export...ServiceResponse rejects, and why.

    Raises:
        ValueError: for what is none.
    """
    rejected, message = 0, ""
    for number, value in _fields(body):
        if number == 1:
            if not isinstance(value, bytes):
                raise ValueError("no message")
            for inner, each in _fields(value):
                if inner == 1 and isinstance(each, int):
                    rejected = each if each < 1 << 63 else 0  # a negative number is nonsense
                elif inner == 2 and isinstance(each, bytes):
                    message = each.decode("utf-8", "replace")
    return rejected, message


def _partial_success_of_json(body: bytes) -> tuple[int, str]:
    try:
        told: Any = json.loads(body) if body else {}
        # Much is JSON: only who says nothing else than this is an OTLP receiver.
        if set(told) - {"partialSuccess"}:
            raise ValueError("no message")
        partly: Any = told.get("partialSuccess") or {}
        rejected: Any = next((partly[key] for key in _REJECTED if partly.get(key)), 0)
        return max(0, int(rejected)), str(partly.get("errorMessage") or "")
    except (AttributeError, TypeError, OverflowError, RecursionError) as error:  # JSON, but not of this form
        raise ValueError("no message") from error


def _fields(body: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message by their number."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(body):
        tag, at = _varint(body, at)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError("no field")
        if kind == 0:
            value, at = _varint(body, at)
            found.append((number, value))
            continue
        if kind == 2:
            size, at = _varint(body, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("no field")
        if at + size > len(body):
            raise ValueError("cut off")
        found.append((number, body[at : at + size]))
        at += size
    return found


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(body):
            raise ValueError("cut off")
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("no number")
