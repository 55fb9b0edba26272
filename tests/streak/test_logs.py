"""The log of a real service process has what an operator's queries look for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.streak.auth import mint
from tests.streak.conftest import SECRET

_ROOT = Path(__file__).parents[2]
_STREAK = _ROOT / "examples" / "streak"
_DOCS = [*sorted((_STREAK / "docs").glob("*.md")), _STREAK / "README.md"]
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_PROJECT = "some-project"
_CLAUSE = re.compile(r'([\w./-]+)\s*(=~|>=|<=|=|>|<)\s*("(?:[^"\\]|\\.)*"|\S+)|("(?:[^"\\]|\\.)*")')
_SECRETS = ("a-secret-query", "a-secret-note", "a-secret-path", SECRET)


def _matches(query: str, entry: dict[str, Any]) -> bool:
    """Evaluate a filter of Cloud Logging: clauses that must all hold. `resource` is what the platform adds."""
    rest = _CLAUSE.sub("", query).replace("AND", "").strip()
    assert not rest, f"the evaluator does not know {rest!r}"
    return all(_holds(*clause.groups(), entry) for clause in _CLAUSE.finditer(query))


def _holds(path: str | None, operator: str, value: str, text: str | None, entry: dict[str, Any]) -> bool:
    if path is None:
        assert text is not None
        return text[1:-1].lower() in json.dumps(entry).lower()
    if path.startswith("resource."):
        return True
    found: Any = entry
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if found is None:
        return False
    value = value.strip('"')
    if operator == "=~":
        return re.search(value, str(found)) is not None
    if operator == "=":
        return str(found) == value
    left, right = (_LEVELS.index(found), _LEVELS.index(value)) if path == "severity" else (found, float(value))
    return bool({">": left > right, ">=": left >= right, "<": left < right, "<=": left <= right}[operator])


# uvicorn closes the connection after an unhandled failure: what is sent on it next would get no answer.
_ALONE = {"Connection": "close"}


def _entry(line: str) -> dict[str, Any]:
    """What Cloud Run makes of a line on stdout."""
    if not line.startswith("{"):
        return {"textPayload": line}
    payload = json.loads(line)
    taken = {key: payload.pop(key) for key in ("severity", "time")}
    named = {"trace": "trace", "spanId": "spanId", "trace_sampled": "traceSampled"}
    for key, name in named.items():
        if (value := payload.pop(f"logging.googleapis.com/{key}", None)) is not None:
            taken[name] = value
    return {**taken, "jsonPayload": payload}


@dataclass
class Ran:
    """A service that ran, was asked for things, and said something."""

    text: str = ""
    answers: list[httpx.Response] = field(default_factory=list)

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [_entry(line) for line in self.text.splitlines()]

    def find(self, query: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if _matches(query, entry)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The service as a process, with a failure, a slow request, a maintenance run, and secrets that it was sent."""
    folder = tmp_path_factory.mktemp("logs")
    env = {
        **os.environ,
        "STREAK_SECRET": SECRET,
        "STREAK_DEMO": "1",
        "GOOGLE_CLOUD_PROJECT": _PROJECT,
        "DATABASE_URL": f"sqlite:///{folder}/streak.db",
        "OTEL_PERF_ENVIRONMENT": "test",
        # What goes on by itself would be slow as well while the service stands still.
        "STREAK_WARM_UP": "0",
        "STREAK_KPIS_EVERY_S": "0",
    }
    command = [sys.executable, "-m", "examples.streak", "--port", "0"]
    ran = Ran()
    with (
        (folder / "stderr").open("w+") as stderr,
        subprocess.Popen(command, cwd=_ROOT, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True) as service,
    ):
        try:
            assert service.stdout is not None
            url = service.stdout.readline().rpartition(" ")[2].strip()
            assert url.startswith("http"), (folder / "stderr").read_text()
            _ask(url, ran, service)
        finally:
            service.send_signal(signal.SIGTERM)
            ran.text = service.communicate(timeout=30)[0]
    return ran


def _ask(url: str, ran: Ran, service: subprocess.Popen[str]) -> None:
    admin, user = ({"Authorization": f"Bearer {mint(SECRET, name, admin=name == 'root')}"} for name in ("root", "ada"))
    with httpx.Client(base_url=url, timeout=30, headers=user) as client:
        deadline = time.monotonic() + 30
        while True:
            try:
                client.get("/api/health")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        body = {"category": "learn", "minutes": 5, "note": "a-secret-note"}
        ran.answers.append(client.post("/api/activities?x=a-secret-query", json=body))
        ran.answers += [client.get("/api/flaky", params={"q": "a-secret-query"}, headers=_ALONE) for _ in range(3)]
        ran.answers.append(client.get("/api/calendar", params={"days": 7}))
        ran.answers.append(client.get("/api/a-secret-path"))
        ran.answers.append(client.get("/"))
        ran.answers.append(client.post("/api/admin/maintenance", headers=admin))
        # Whoever is stopped in the middle of a request is slow.
        slow = threading.Thread(target=lambda: ran.answers.append(client.get("/api/report")))
        slow.start()
        time.sleep(0.15)
        service.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        service.send_signal(signal.SIGCONT)
        slow.join()


def test_each_request_has_one_line(ran: Ran) -> None:
    """What was asked for is there, in order, by template, method and status; health, page and paths are not."""
    payloads = [entry["jsonPayload"] for entry in ran.entries if "method" in entry.get("jsonPayload", ())]
    lines = [(payload["method"], payload["endpoint"], payload["status"]) for payload in payloads]
    assert lines == [
        ("POST", "/api/activities", 201),
        ("GET", "/api/flaky", 200),
        ("GET", "/api/flaky", 200),
        ("GET", "/api/flaky", 500),
        ("GET", "/api/calendar", 200),
        ("GET", None, 404),
        ("POST", "/api/admin/maintenance", 200),
        ("GET", "/api/report", 200),
    ]


def test_api_errors_are_found(ran: Ran) -> None:
    """The query for errors of the API finds the failure, its type and its place, and nothing else."""
    (failed,) = ran.find('resource.type="cloud_run_revision" severity>=ERROR jsonPayload.endpoint=~"/api/"')
    payload = failed["jsonPayload"]
    assert failed["severity"] == "ERROR"
    assert payload["error"] == "RuntimeError"
    assert "in get_flaky" in payload["stack_trace"]
    assert "on purpose" not in json.dumps(payload)
    assert ran.find("severity>=ERROR") == [failed]


def test_slow_requests_are_found(ran: Ran) -> None:
    """The query for slow requests finds the one that was, by numbers."""
    slow = ran.find('jsonPayload.duration_ms>500 AND jsonPayload.endpoint=~"/api/"')
    assert "/api/report" in {entry["jsonPayload"]["endpoint"] for entry in slow}
    assert "/api/calendar" not in {entry["jsonPayload"]["endpoint"] for entry in slow}


def test_the_maintenance_is_found(ran: Ran) -> None:
    """The query for the maintenance finds its one line, with its figures."""
    for query in (
        '"Daily streak maintenance completed"',
        'jsonPayload.message=~"Daily streak maintenance completed"',
        'jsonPayload.message="Daily streak maintenance completed"',
    ):
        (completed,) = ran.find(query)
        figures = completed["jsonPayload"]
        wanted = {
            "users_processed",
            "freezes_applied",
            "streaks_broken",
            "at_risk",
            "notified",
            "errors",
            "duration_ms",
        }
        assert wanted <= figures.keys()
        assert figures["users_processed"] > 0
        assert completed["severity"] == "INFO"


def test_lines_lead_to_traces_and_requests(ran: Ran) -> None:
    """Each request's line names the trace and the request that its answer names, as Cloud Logging wants them."""
    entries = [entry for entry in ran.entries if "method" in entry.get("jsonPayload", ())]
    by_request = {entry["jsonPayload"]["request"]: entry for entry in entries}
    for answer in ran.answers:
        if answer.request.url.path == "/":
            continue
        entry = by_request[answer.headers["x-request-id"]]
        trace_id = entry["jsonPayload"]["trace_id"]
        assert re.fullmatch("[0-9a-f]{32}", trace_id)
        assert entry["trace"] == f"projects/{_PROJECT}/traces/{trace_id}"
        assert entry["spanId"] == entry["jsonPayload"]["span_id"]
        assert entry["traceSampled"] is True
        assert entry["jsonPayload"]["service"] == "streak"


def test_nothing_that_was_sent_is_told(ran: Ran) -> None:
    """No query, body, path, token or secret is in the log."""
    assert ran.text
    for secret in _SECRETS:
        assert secret not in ran.text
    assert "Bearer" not in ran.text


def test_fields_in_the_pages_are_there(ran: Ran) -> None:
    """Every field of a log query in the service's pages is one that lines have."""
    queries = [query for page in _DOCS for query in re.findall(r"logging read\s+\\?\s*'([^']*)'", page.read_text())]
    assert queries
    used = {name for query in queries for name in re.findall(r"jsonPayload\.(\w+)", query)}
    assert "duration" not in used
    assert used - {key for entry in ran.entries for key in entry.get("jsonPayload", ())} == set()


def test_the_evaluator_can_say_no() -> None:
    """The evaluator of these tests does not find what is not there."""
    entry = {"severity": "INFO", "jsonPayload": {"endpoint": "/api/x", "duration_ms": 500.0, "message": "done"}}
    assert _matches('severity>=INFO AND jsonPayload.endpoint=~"/api/" "done"', entry)
    for query in ("severity>=ERROR", "jsonPayload.duration_ms>500", 'jsonPayload.nothing=~"x"', '"failed"'):
        assert not _matches(query, entry)
