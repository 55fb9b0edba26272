"""Upstream instrumentors (redis, httpx, sqlalchemy on SQLAlchemy < 2.1) on our providers, in their own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from collector import servers
from otel_perf import redaction
from otel_perf.testing import FakeCollector, attributes
from tests.serving import served
from tests.upstream.environment import EnvironmentMissingError, python

ROOT = Path(__file__).resolve().parents[2]

# Making the environment takes longer than a test usually may.
pytestmark = pytest.mark.timeout(300)

HTTPX, REDIS, SQLALCHEMY = (f"opentelemetry.instrumentation.{each}" for each in ("httpx", "redis", "sqlalchemy"))


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.headers.get("traceparent", ""))


@dataclass(frozen=True, slots=True)
class Ran:
    """What the scenario says it made, and what arrived of it."""

    said: dict[str, Any]
    arrived: FakeCollector

    @property
    def spans(self) -> list[dict[str, Any]]:
        return list(self.said["spans"])

    def of(self, scope: str, parent: str) -> list[dict[str, Any]]:
        """The spans of a library below our span of this name, in the order of their start."""
        (above,) = (each["span_id"] for each in self.spans if each["name"] == parent)
        found = [each for each in self.spans if each["scope"] == scope and each["parent_id"] == above]
        return sorted(found, key=lambda each: each["times"])


@pytest.fixture(scope="module")
def ran(redis_server: servers.Redis) -> Iterator[Ran]:
    try:
        interpreter = python()
    except EnvironmentMissingError as error:
        if os.environ.get("OTEL_PERF_REQUIRE") == "all":
            pytest.fail(f"OTEL_PERF_REQUIRE=all: {error}", pytrace=False)
        pytest.skip(str(error))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "PYTHON"))}
    with served(Starlette(routes=[Route("/echo", echo)])) as url, FakeCollector() as arrived:
        done = subprocess.run(
            [interpreter, str(ROOT / "tests" / "upstream" / "scenario.py"), url, redis_server.url, arrived.url],
            capture_output=True, text=True, timeout=60, check=False, env={**environment, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield Ran(json.loads(done.stdout), arrived)


def test_it_is_the_checkout_that_is_tried(ran):
    """The scenario ran against this checkout, without a fault of ours, and everything was delivered."""
    assert ran.said["from"] == str(ROOT / "otel_perf")
    assert ran.said["sqlalchemy"] < "2.1"
    assert ran.said["errors"] == 0
    assert ran.said["flushed"] is True


def test_their_spans_are_lean_spans(ran):
    """What upstream instrumentors start are our spans, without their knowing."""
    assert {each["class"] for each in ran.spans} == {"otel_perf.telemetry.span.LeanSpan"}
    assert {HTTPX, REDIS, SQLALCHEMY} < {each["scope"] for each in ran.spans}


def test_all_are_one_trace_with_the_right_parents(ran):
    """Their spans are below ours, blocking and in tasks at once; what they send on names their own span."""
    assert len({each["trace_id"] for each in ran.spans}) == 1
    assert len(ran.of(SQLALCHEMY, "statements")) == 5
    assert [each["name"] for each in ran.of(HTTPX, "requests")] == ["GET", "GET"]
    assert len(ran.of(REDIS, "commands")) == 4
    for task in ("task 1", "task 2"):
        assert len(ran.of(HTTPX, task)) == 1
        assert len(ran.of(REDIS, task)) == 1
    told = {each.split("-")[2] for each in ran.said["arrived"]}
    assert told == {
        ran.of(HTTPX, "requests")[0]["span_id"], ran.of(HTTPX, "task 1")[0]["span_id"],
        ran.of(HTTPX, "task 2")[0]["span_id"],
    }  # fmt: skip


def test_kinds_attributes_and_failures_are_theirs(ran):
    """Kind, attributes, status and exceptions arrive on the spans as the instrumentors set them."""
    clients = [each for each in ran.spans if each["scope"].startswith("opentelemetry.")]
    assert {each["kind"] for each in clients} == {"CLIENT"}
    _, _, insert, select, failed = ran.of(SQLALCHEMY, "statements")
    assert insert["attributes"]["db.query.text"] == "INSERT INTO trips VALUES (?)"
    assert select["attributes"]["db.system.name"] == "sqlite"
    assert (select["status"], failed["status"]) == ("UNSET", "ERROR")
    good, missing = ran.of(HTTPX, "requests")
    assert good["attributes"]["http.response.status_code"] == 200
    assert good["attributes"]["url.full"].endswith("/echo?q=1")
    assert (missing["attributes"]["http.response.status_code"], missing["status"]) == (404, "ERROR")
    put, got, refused, together = ran.of(REDIS, "commands")
    assert (put["name"], got["name"], refused["name"]) == ("SET", "GET", "LPUSH")
    assert put["attributes"]["db.query.text"] == "SET ? ?"
    assert refused["status"] == "ERROR"
    assert refused["events"] == ["exception"]
    assert together["attributes"]["db.query.text"] == "GET ?\nDEL ?"


def test_their_metrics_land_in_our_registry(ran):
    """Their instruments are series of our registry, beside ours, and leave with them."""
    found = {(each["scope"], each["name"]): each["series"] for each in ran.said["registry"]}
    assert found[HTTPX, "http.client.request.duration"] == 2
    assert found[SQLALCHEMY, "db.client.connections.usage"] == 2
    duration = ran.arrived.metric("http.client.request.duration").points
    by_status = {attributes(each)["http.response.status_code"]: each.count for each in duration}
    assert by_status == {200: 3, 404: 1}
    usage = ran.arrived.metric("db.client.connections.usage").points
    assert {attributes(each)["state"] for each in usage} == {"idle", "used"}
    assert sum(each.count for each in ran.arrived.metric("operation.duration").points) == 6


def test_what_arrives_is_what_ended(ran):
    """The exported bytes decode to the very spans, redacted: ids, names, attributes, times, status, events."""
    arrived = {
        span.span_id: (
            span.trace_id, span.parent_id or None, span.name, span.attributes,
            [span.data.start_time_unix_nano, span.data.end_time_unix_nano], span.data.status.code,
            [each.name for each in span.data.events],
        )
        for span in ran.arrived.spans
        if span.resource["service.name"] == "upstream"
    }  # fmt: skip
    urls = {span.attributes.get("url.full", "") for span in ran.arrived.spans}
    assert [each for each in urls if each.endswith("/echo?q=REDACTED")]
    codes = {"UNSET": 0, "OK": 1, "ERROR": 2}
    assert arrived == {
        each["span_id"]: (
            each["trace_id"], each["parent_id"], each["name"], redaction.redact(each["attributes"]), each["times"],
            codes[each["status"]], each["events"],
        )
        for each in ran.spans
    }  # fmt: skip
