"""requests, and what only it has: prepared requests, adapters that retry, streams, redirects followed by hand."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from otel_perf import instrument, measure
from otel_perf.telemetry import operation
from tests.conftest import Telemetry
from tests.integrations.http_server import Server

_HTTP = "http.client.request.duration"
_EXTERNAL = "external.api.duration"


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    """One server for all tests of this file."""
    with Server.run() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    """The server, which has seen nothing yet."""
    running.forget()
    return running


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A measured session."""
    with requests.Session() as made, instrument(made):
        made.trust_env = False
        yield made


def _error(telemetry: Telemetry) -> Any:
    (point,) = telemetry.points(_HTTP)
    assert point.count == 1
    return point.attributes.get("error.type")


def test_a_prepared_request(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """What is prepared and sent by hand is a call as well."""
    session.send(session.prepare_request(requests.Request("POST", f"{server.url}/ok", data={"a": "1"})))
    assert telemetry.span("POST").end_time
    assert telemetry.points(_HTTP)[0].count == 1


def test_an_adapter_that_retries(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """Retries of an adapter are within the call: one span, and the last attempt decides."""
    retry = Retry(2, status_forcelist=[503], backoff_factor=0, raise_on_status=False)
    session.mount("http://", HTTPAdapter(max_retries=retry))
    session.get(f"{server.url}/flaky")
    assert (_error(telemetry), len(server.paths), len(telemetry.spans)) == (None, 2, 1)
    session.get(f"{server.url}/status/503")
    assert (len(server.paths), len(telemetry.spans)) == (5, 2)
    assert telemetry.points(_HTTP, error__type="503")[0].count == 1


def test_retries_that_are_spent(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """Where the adapter gives up with an exception, that is the error."""
    session.mount("http://", HTTPAdapter(max_retries=Retry(1, status_forcelist=[500], backoff_factor=0)))
    with pytest.raises(requests.exceptions.RetryError):
        session.get(f"{server.url}/status/500")
    assert _error(telemetry) == "requests.exceptions.RetryError"


def test_a_redirect_followed_by_hand(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """The request that `Response.next` offers carries no context to a host that may not have it."""
    telemetry.restart(propagate_to="127.0.0.1")
    first = session.get(f"{server.url}/redirect?to={server.other}/ok", allow_redirects=False)
    assert first.next is not None
    session.send(first.next)

    assert [len(each) for each in server.sent("traceparent")] == [1, 0]
    assert len(telemetry.spans) == 2


def test_a_stream_ends_with_its_body(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """A streamed response is in flight until it is read, without being current meanwhile."""
    answer = session.get(f"{server.url}/ok", stream=True)
    assert (operation.current(), telemetry.spans) == (None, [])
    assert b"".join(answer.iter_content(2)) == b"one,two"
    assert (_error(telemetry), len(telemetry.spans)) == (None, 1)
    answer.close()
    assert len(telemetry.spans) == 1
    assert pickle.loads(pickle.dumps(answer)).status_code == 200


@pytest.mark.parametrize("how", ["content", "lines", "closed", "left", "raw"])
def test_ways_to_end_a_stream(telemetry: Telemetry, server: Server, session: requests.Session, how: str) -> None:
    """However a stream is read or left, it is one call without a failure."""
    with measure("step"), session.get(f"{server.url}/ok", stream=True) as answer:
        if how == "content":
            assert answer.text == "one,two"
        elif how == "lines":
            assert list(answer.iter_lines()) == [b"one,two"]
        elif how == "left":
            for _ in answer.iter_content(1):
                break
        elif how == "raw":
            assert answer.raw.read() == b"one,two"

    assert _error(telemetry) is None
    assert [span.name for span in telemetry.spans].count("GET") == 1


def test_a_stream_that_breaks(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """The body belongs to the call, also within a block."""
    with (
        measure.external("stripe", "export"), session.get(f"{server.url}/reset", stream=True) as answer,
        suppress(requests.exceptions.ChunkedEncodingError),
    ):  # fmt: skip
        assert answer.content

    assert _error(telemetry) == "requests.exceptions.ChunkedEncodingError"
    (point,) = telemetry.points(_EXTERNAL)
    assert point.attributes["error.type"] == "requests.exceptions.ChunkedEncodingError"


def test_a_stream_that_is_too_slow(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """A timeout within the body is the error of the call."""
    with (
        session.get(f"{server.url}/part", stream=True, timeout=0.1) as answer,
        pytest.raises(requests.exceptions.ConnectionError),
    ):  # fmt: skip
        assert answer.content
    assert _error(telemetry) == "requests.exceptions.ConnectionError"


def test_a_stream_that_nobody_closes(telemetry: Telemetry, server: Server, session: requests.Session) -> None:
    """A response that is left alone is counted once nobody holds it, with the status that it had."""
    session.get(f"{server.url}/status/404", stream=True)
    gc.collect()
    assert _error(telemetry) == "404"


def test_all_sessions_and_undo(telemetry: Telemetry, server: Server) -> None:
    """The library as a whole takes old sessions, new ones and `requests.get`; undo puts the functions back."""
    before = (requests.Session.send, requests.Response.iter_content, requests.Response.close)
    with requests.Session() as old:
        with instrument("requests"), instrument("requests"):
            old.get(f"{server.url}/ok")
            requests.get(f"{server.url}/ok", timeout=5)
            left = old.get(f"{server.url}/ok", stream=True)
        assert telemetry.points(_HTTP)[0].count == 2
        old.get(f"{server.url}/ok")
        del left
        gc.collect()
    assert telemetry.points(_HTTP)[0].count == 3
    assert (requests.Session.send, requests.Response.iter_content, requests.Response.close) == before


def test_an_address_that_is_none_is_no_call(telemetry: Telemetry, session: requests.Session) -> None:
    """What requests refuses before anything is sent is no call; what no adapter takes is one that failed."""
    with pytest.raises(requests.exceptions.MissingSchema):
        session.get("nowhere")
    assert telemetry.points(_HTTP) == []
    with pytest.raises(requests.exceptions.InvalidSchema):
        session.get("ftp://127.0.0.1/")
    assert _error(telemetry) == "requests.exceptions.InvalidSchema"
