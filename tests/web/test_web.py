"""The mounted page and API, over HTTP."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.applications import Starlette

import otel_perf
from otel_perf import measure
from otel_perf.web import mount

LOCAL = ("127.0.0.1", 5)
ELSEWHERE = ("10.1.2.3", 5)


def ask(app, path, client=LOCAL, headers=None, method="GET"):
    async def call():
        transport = httpx.ASGITransport(app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path, headers=headers)

    return asyncio.run(call())


@pytest.fixture(params=[FastAPI, Starlette])
def app(request, telemetry):
    app = request.param()
    mount(app)
    return app


def test_performance_is_json_of_what_was_measured(app):
    """/api/performance tells the count of a block that was measured."""
    with measure("load"):
        pass
    answer = ask(app, "/api/performance")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["steps"]["count"] == 1
    assert answer.json()["service"]["name"] == "test"


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=1.0.0", "*/*"])
def test_metrics_in_the_format_that_was_asked_for(app, accept):
    """/metrics answers OpenMetrics to those who ask for it, and the text format to others."""
    with measure("load"):
        pass
    answer = ask(app, "/metrics", headers={"accept": accept})
    wants_openmetrics = "openmetrics" in accept
    assert answer.headers["content-type"].startswith("application/openmetrics" if wants_openmetrics else "text/plain")
    assert "operation_duration_seconds_count" in answer.text
    if wants_openmetrics:
        assert any(
            family.name == "operation_duration_seconds" for family in text_string_to_metric_families(answer.text)
        )


def test_page_allows_only_its_own_script(app):
    """The page comes with a policy that names its script and style by hash and forbids everything else."""
    answer = ask(app, "/performance")
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert "http://" not in answer.text
    assert "https://" not in answer.text


@pytest.mark.parametrize("path", ["/performance", "/api/performance", "/metrics"])
def test_other_machines_need_the_token(app, telemetry, path):
    """Another machine gets 403 with the remedy, and the page with the token of the settings."""
    refused = ask(app, path, ELSEWHERE)
    assert refused.status_code == 403
    assert "OTEL_PERF_ACCESS_TOKEN" in refused.json()["error"]
    telemetry.restart(access_token="open-sesame-1")
    assert ask(app, path, ELSEWHERE, {"authorization": "Bearer open-sesame-1"}).status_code == 200
    assert ask(app, path, ELSEWHERE, {"authorization": "Bearer no"}).status_code == 403


def test_only_reading(app):
    """Nothing can be posted to the page."""
    assert ask(app, "/api/performance", method="POST").status_code == 405


def test_without_configure_it_says_so(app):
    """When otel_perf is not configured, the API says what to do instead of showing zeros."""
    otel_perf.shutdown()
    answer = ask(app, "/api/performance")
    assert answer.status_code == 503
    assert "otel_perf.configure()" in answer.json()["error"]


def test_an_own_check_and_an_own_token_win(telemetry):
    """mount(token=, allow=) decide for this app whatever the settings say."""
    app = FastAPI()
    mount(app, token="of-the-mount", allow=lambda request: request.headers.get("x-team") == "ops")
    telemetry.restart(access_token="of-the-settings")
    assert ask(app, "/metrics", ELSEWHERE, {"authorization": "Bearer of-the-mount"}).status_code == 200
    assert ask(app, "/metrics", ELSEWHERE, {"authorization": "Bearer of-the-settings"}).status_code == 403
    assert ask(app, "/metrics", ELSEWHERE, {"x-team": "ops"}).status_code == 200


def test_health_is_open_and_tells_no_figures(app, telemetry):
    """Everybody may ask for the health, which is 200 and words; when it is bad, too."""
    answer = ask(app, "/api/health", ELSEWHERE)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert set(answer.json()) == {"status", "services", "timestamp"}
    assert answer.json()["status"] == "healthy"
    telemetry.restart()
    for _ in range(5):
        with measure.query("SELECT", collection="users") as op:
            op.fail("timeout")
    bad = ask(app, "/api/health", ELSEWHERE)
    assert bad.status_code == 200
    assert bad.json()["status"] == "degraded"
    assert bad.json()["services"]["database"] == "degraded"
    otel_perf.shutdown()
    assert ask(app, "/api/health").json()["services"]["telemetry"] == "not_configured"


def test_health_is_judged_once_a_second(app, monkeypatch):
    """Whoever asks often costs nothing: the judgement is kept for a second."""
    made = []
    monkeypatch.setattr("otel_perf.web._snapshot", lambda: made.append(1))
    for _ in range(3):
        ask(app, "/api/health")
    assert len(made) == 1


def test_routes_stay_out_of_the_apps_schema(telemetry):
    """The mounted routes are not part of the app's own OpenAPI document."""
    app = FastAPI()
    mount(app)
    assert json.loads(ask(app, "/openapi.json").text)["paths"] == {}


def test_something_that_is_no_app_is_refused(telemetry):
    """mount() of a plain callable says what it takes."""
    with pytest.raises(TypeError, match="FastAPI or Starlette app, not 'function'"):
        mount(lambda scope, receive, send: None)


def test_without_starlette_the_extra_is_named(monkeypatch):
    """Importing otel_perf.web without Starlette says what to install."""
    for name in [name for name in sys.modules if name.startswith(("starlette", "otel_perf.web"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    with pytest.raises(ImportError, match=r"otel-perf\[web\]"):
        importlib.import_module("otel_perf.web")
