"""The service is measured through the public API: one trace per request, named steps, its own metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind

from otel_perf import instrument
from tests.conftest import Telemetry
from tests.streak.conftest import Service, Start

pytestmark = pytest.mark.anyio


def _trace(spans: Iterable[ReadableSpan], root: str) -> list[ReadableSpan]:
    """All spans of the last trace whose request has this name."""
    roots = [span for span in spans if span.name == root and span.parent is None]
    return [span for span in spans if span.context.trace_id == roots[-1].context.trace_id]


def _named(spans: Iterable[ReadableSpan], **attributes: Any) -> list[ReadableSpan]:
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    return [span for span in spans if wanted.items() <= dict(span.attributes or {}).items()]


async def test_logging_is_one_trace_through_both_services(telemetry: Telemetry, service: Service) -> None:
    """Logging an activity is one trace: request, steps, queries, forgotten values, external call, its request."""
    with instrument(service.push):
        assert (await service.log()).status_code == 201
    trace = _trace(telemetry.spans, "POST /api/activities")
    assert {"log_activity", "update_weekly_consistency"} <= {span.name for span in trace}
    assert _named(trace, cache__operation__name="delete_many")
    assert _named(trace, db__operation__name="SELECT", db__collection__name="streak_users")
    assert _named(trace, db__operation__name="INSERT", db__collection__name="streak_activities")
    (external,) = _named(trace, external__operation="send", service__peer__name="push")
    servers = [span for span in trace if span.kind is SpanKind.SERVER]
    assert sorted(span.name for span in servers) == ["POST /api/activities", "POST /api/push"]
    (pushed,) = (span for span in servers if span.name == "POST /api/push")
    (called,) = (span for span in trace if span.parent is not None and span.parent.span_id == external.context.span_id)
    assert pushed.parent is not None
    assert pushed.parent.span_id == called.context.span_id


async def test_the_push_api_is_called_when_there_is_something_to_say(telemetry: Telemetry, service: Service) -> None:
    """The first activity of all and of a day are told; another one of the same day makes no external call."""
    kinds = []
    for pass_day in (False, False, True, False):
        if pass_day:
            service.clock.pass_days()
        calls = len(_named(telemetry.spans, external__operation="send"))
        await service.log()
        kinds.append(len(_named(telemetry.spans, external__operation="send")) - calls)
    assert kinds == [1, 0, 1, 0]
    assert service.told() == ["welcome", "first_today"]


async def test_the_four_steps_have_spans_and_times(telemetry: Telemetry, service: Service) -> None:
    """Each of the four steps is a span within the request that it is part of, and is timed."""
    await service.log()
    await service.get("/api/activities")
    service.clock.pass_days(2)
    await service.maintain()
    roots = {
        "log_activity": "POST /api/activities",
        "update_weekly_consistency": "POST /api/activities",
        "get_user_activities": "GET /api/activities",
        "run_daily_maintenance": "POST /api/admin/maintenance",
    }
    for step, root in roots.items():
        assert step in {span.name for span in _trace(telemetry.spans, root)}, step
    timed = {point.attributes["operation.name"] for point in telemetry.points("operation.duration")}
    assert set(roots) - {"run_daily_maintenance"} <= timed


async def test_requests_are_counted_by_route(telemetry: Telemetry, start: Start) -> None:
    """Each answer is counted once, under its template and status; health is not."""
    # The push API is not an app of this process here: FastAPI would count its requests by itself.
    async with start(push_transport=httpx.MockTransport(lambda _: httpx.Response(202))) as service:
        written = (await service.log()).json()["id"]
        paths = (f"/api/activities/{written}", f"/api/activities/{'0' * 32}", "/api/nowhere", "/api/health")
        for path in paths:
            await service.get(path)
        await service.get("/api/calendar", days=0)
    points = telemetry.points("http.server.request.duration")
    counted = {(p.attributes.get("http.route"), p.attributes["http.response.status_code"]): p.count for p in points}
    assert counted == {
        ("/api/activities", 201): 1,
        ("/api/activities/{activity_id}", 200): 1,
        ("/api/activities/{activity_id}", 404): 1,
        ("/api/calendar", 422): 1,
        (None, 404): 1,
    }


async def test_refusal_is_on_the_span(telemetry: Telemetry, service: Service) -> None:
    """The span of a refused request has the status and the reason, and is no error of the service."""
    await service.log("sleep")
    (span,) = _trace(telemetry.spans, "POST /api/activities")
    attributes = dict(span.attributes or {})
    assert attributes["http.response.status_code"] == 422
    assert "category" in str(attributes["streak.refused"])
    assert span.status.is_unset


async def test_failure_is_on_the_span(telemetry: Telemetry, start: Start) -> None:
    """An unhandled failure is an error on the span and on the metric."""
    async with start(demo=True) as service:
        answers = [(await service.get("/api/flaky")).status_code for _ in range(3)]
    assert answers == [200, 200, 500]
    failed = [span for span in telemetry.spans if span.name == "GET /api/flaky" and not span.status.is_unset]
    assert len(failed) == 1
    (point,) = telemetry.points("http.server.request.duration", http__route="/api/flaky", error__type="RuntimeError")
    assert point.count == 1


async def test_reads_hit_and_miss(telemetry: Telemetry, service: Service) -> None:
    """The first read of a calendar is a miss with the step `get_user_activities` in it, the second a hit."""
    for _ in range(3):
        await service.get("/api/calendar")
    assert telemetry.span("get_user_activities")
    reads = telemetry.points("cache.operation.duration", cache__operation__name="get", cache__strategy="CALENDAR")
    assert {p.attributes["cache.result"]: p.count for p in reads} == {"miss": 1, "hit": 2}


async def test_maintenance_is_a_job(telemetry: Telemetry, service: Service) -> None:
    """Maintenance is a run of the job with its users as items; a dry run is not a run."""
    await service.log()
    service.clock.pass_days(2)
    await service.maintain(dry_run=True)
    assert telemetry.points("background.job.duration") == []
    await service.maintain()
    (run,) = telemetry.points("background.job.duration", background__job__name="streak.maintenance")
    assert run.count == 1
    (items,) = telemetry.points("background.job.items", background__job__name="streak.maintenance")
    assert getattr(items, "value", None) == 1 or items.sum == 1
    assert "run_daily_maintenance" in {span.name for span in telemetry.spans}


async def test_maintenance_of_a_day_is_one_trace(telemetry: Telemetry, service: Service) -> None:
    """Its queries and its calls of the push API belong to the request that asked for it."""
    await service.log()
    service.clock.pass_days()
    with instrument(service.push):
        await service.maintain()
    trace = _trace(telemetry.spans, "POST /api/admin/maintenance")
    assert _named(trace, db__operation__name="UPDATE")
    assert _named(trace, external__operation="send", service__peer__name="push")


async def test_kpis_of_the_app(telemetry: Telemetry, service: Service) -> None:
    """The KPIs that were counted last are shown as numerator and denominator."""
    await service.log()
    parts = service.app.state.parts
    await parts.kpis.count(service.clock(), parts.today)
    (active,) = telemetry.points("streak.kpi.numerator", kpi="active_streaks")
    (users,) = telemetry.points("streak.kpi.denominator", kpi="active_streaks")
    assert (active.value, users.value) == (1, 1)


async def test_own_metrics(telemetry: Telemetry, service: Service) -> None:
    """Broken streaks, freezes, bonuses and XP are counted as the catalogue declares them."""
    for _ in range(7):
        await service.log("learn", minutes=10)
        service.clock.pass_days()
    for category in ("learn", "move", "create", "connect"):
        await service.log(category, minutes=10)
    service.clock.pass_days(4)
    await service.maintain()
    assert [p.value for p in telemetry.points("streak.freezes", change="earned")] == [1]
    assert [p.value for p in telemetry.points("streak.freezes", change="spent")] == [1]
    assert [p.value for p in telemetry.points("streak.bonuses")] == [1]
    assert [p.value for p in telemetry.points("streak.broken", reason="freezes_exhausted")] == [1]
    assert [p.value for p in telemetry.points("streak.xp", category="learn")] == [8 * 20]
    assert [p.value for p in telemetry.points("streak.xp", category="connect")] == [30]
