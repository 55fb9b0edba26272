"""What every refusal of the service has in common."""

from __future__ import annotations

from typing import Any

import httpx

__all__ = ["assert_refused"]

_MEMBERS = {"type", "title", "status", "detail", "instance"}


def assert_refused(answer: httpx.Response, status: int | None = None) -> dict[str, Any]:
    """Return the problem details of a refusal, which has all that RFC 9457 and the service promise."""
    assert status in (None, answer.status_code), answer.text
    assert answer.status_code >= 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "no-store" in answer.headers["cache-control"]
    problem: dict[str, Any] = answer.json()
    assert problem.keys() >= _MEMBERS
    # Where a request is not traced there is no such member, rather than one that says nothing.
    assert "trace_id" not in problem or len(problem["trace_id"]) == 32
    assert problem["status"] == answer.status_code
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == answer.request.url.raw_path.partition(b"?")[0].decode()
    return problem
