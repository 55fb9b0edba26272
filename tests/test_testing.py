"""The kit for tests: what was recorded is seen, and the collector is real and as bad as it is told to be."""

from __future__ import annotations

import datetime as dt
import gzip
import http.client
import importlib
import ipaddress
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.metrics import get_meter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import get_tracer

import otel_perf
from otel_perf import catalogue, measure
from otel_perf.telemetry import runtime
from otel_perf.testing import FakeCollector, attributes, behaviour, capture

# Capture --------------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_seen():
    """Spans in the order of their end and metrics with their labels, of ours and of any library."""
    with capture() as telemetry:
        with measure("outer", category="shop"), measure("inner"):
            pass
        get_tracer("a library").start_span("theirs").end()
        assert [each.name for each in telemetry.spans] == ["inner", "outer", "theirs"]
        assert telemetry.span("inner").parent.span_id == telemetry.span("outer").context.span_id
        assert telemetry.point("operation.duration", operation__category="shop").count == 1
        assert len(telemetry.points("operation.duration")) == len(telemetry.metrics()["operation.duration"]) == 2
        assert telemetry.metric("operation.duration").unit == "s"
    assert len(telemetry.spans) == 3
    assert len(telemetry.points("operation.duration")) == 2
    assert runtime.current is None


def test_what_is_missing_is_said():
    """An assertion that finds nothing, or too much, names what there is."""
    with capture() as telemetry:
        for _ in range(2):
            with measure("work"):
                pass
        with pytest.raises(AssertionError, match=r"0 spans named 'play' among \['work', 'work'\]"):
            telemetry.span("play")
        with pytest.raises(AssertionError, match="2 spans named 'work'"):
            telemetry.span("work")
        with pytest.raises(AssertionError, match=r"0 metrics named 'no\.such' among \[.*'operation\.duration'"):
            telemetry.metric("no.such")
        with pytest.raises(AssertionError, match=r"0 points of 'operation\.duration' with .* among .*'work'"):
            telemetry.point("operation.duration", operation__name="play")


def test_clear_starts_counting_anew():
    """After it only what comes later is there."""
    with capture() as telemetry:
        sold = catalogue.counter("kit.sold")
        with measure("before"):
            sold.add(3)
        telemetry.clear()
        assert telemetry.spans == []
        assert telemetry.points("kit.sold") == telemetry.points("operation.duration") == []
        sold.add(2)
        assert telemetry.point("kit.sold").value == 2


def test_what_was_configured_before_is_in_force_again():
    """Its settings come back, and an environment that names a collector gets nothing meanwhile."""
    with FakeCollector() as collector:
        otel_perf.configure("shop", endpoint=collector.url, slow_query_s=0.5)
        with capture(slow_query_s=0.1) as telemetry:
            assert telemetry.runtime.settings.slow_query_s == 0.1
            with measure("captured"):
                pass
            assert otel_perf.flush()
        in_force = runtime.current
        assert in_force is not None
        assert in_force.settings.service_name == "shop"
        assert in_force.settings.slow_query_s == 0.5
        with measure("sent"):
            pass
        assert otel_perf.shutdown()
    assert [each.name for each in collector.spans] == ["sent"]


def test_views_and_processors_are_in_force_again():
    """What the application gave to `configure` and to its provider comes back, and sees nothing of what is captured."""
    told = Told()
    otel_perf.configure("shop", views=[View(instrument_name="dropped", aggregation=DropAggregation())])
    runtime.current.tracer_provider.add_span_processor(told)
    with capture() as telemetry:
        get_meter("m").create_counter("dropped").add(1)
        with measure("captured"):
            pass
        assert telemetry.point("dropped").value == 1
    with measure("after"):
        pass
    assert told.names == ["after"]
    reader = InMemoryMetricReader()
    runtime.current.meter_provider.add_metric_reader(reader)
    get_meter("m").create_counter("dropped").add(1)
    get_meter("m").create_counter("kept").add(1)
    scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
    names = {each.name for scope in scopes for each in scope.metrics}
    assert "kept" in names
    assert "dropped" not in names


class Told(SpanProcessor):
    """Keeps the names of what ended."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_end(self, span) -> None:
        self.names.append(span.name)


def test_an_outer_capture_goes_on_when_an_inner_one_ended():
    """Each has the spans of its own time, in the outer one those before too; its counts start anew."""
    with capture() as outer:
        with measure("one"):
            pass
        with capture() as inner, capture() as innermost, measure("two"):
            pass
        with measure("three"), measure("four"):
            pass
        assert [each.name for each in outer.spans] == ["one", "four", "three"]
        assert len(outer.points("operation.duration")) == 2
        outer.clear()
        with measure("five"):
            pass
    assert [each.name for each in outer.spans] == ["five"]
    assert len(outer.points("operation.duration")) == 1
    assert [each.name for each in innermost.spans] == ["two"]
    assert inner.spans == []
    assert runtime.current is None


def test_a_capture_that_cannot_begin_changes_nothing():
    """What was in force still is, or is again."""
    otel_perf.configure("shop")
    before = runtime.current
    with pytest.raises(otel_perf.SettingsError), capture(queue_size="many"):
        pass
    assert runtime.current is before
    with pytest.raises(RuntimeError, match="leave `disabled` out"), capture(disabled=True):
        pass
    assert runtime.current.settings.service_name == "shop"


def test_nothing_is_sent_whatever_the_environment_says(monkeypatch):
    """Neither an endpoint nor a switch in the environment changes what a test sees."""
    with FakeCollector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        with capture() as telemetry:
            with measure("work"):
                pass
            assert telemetry.span("work")
    assert collector.requests == []


def test_a_failing_test_leaves_nothing_configured():
    """The end comes also after an exception, which is not swallowed."""
    with pytest.raises(ZeroDivisionError), capture():
        _ = 1 / 0
    assert runtime.current is None


# The collector over HTTP ----------------------------------------------------------------------------------------------


def traces(*names: str) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope = resource.scope_spans.add()
    scope.scope.name = "kit"
    for name in names:
        span = scope.spans.add(name=name, trace_id=bytes(range(16)), span_id=b"12345678", parent_span_id=b"87654321")
        span.attributes.add(key="n").value.int_value = 7
        listed = span.attributes.add(key="list").value.array_value.values
        listed.add().bool_value = True
        listed.add().string_value = "x"
        span.attributes.add(key="none")
    return request


def post(url: str, body: bytes, path: str = "/v1/traces", context: ssl.SSLContext | None = None, **headers: str):
    """Status, headers and body of an answer."""
    kind = {"content-type": "application/x-protobuf"}
    request = urllib.request.Request(url + path, body, {**kind, **{k.replace("_", "-"): v for k, v in headers.items()}})
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _Stay
    )
    try:
        with opener.open(request, timeout=5) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


def test_the_collector_decodes_what_it_takes():
    """Spans with resource, scope and attributes; plain or packed; whole or in pieces; and the requests themselves."""
    body = traces("a", "b").SerializeToString()
    with FakeCollector() as collector:
        assert post(collector.url, body)[0] == 200
        assert post(collector.url, gzip.compress(body), content_encoding="gzip")[0] == 200
        host = urlsplit(collector.url).netloc
        with closing(http.client.HTTPConnection(host, timeout=5)) as client:
            headers = {"content-type": "application/x-protobuf", "X-Who": "me"}
            client.request("POST", "/v1/traces", iter([body[:9], body[9:]]), headers, encode_chunked=True)
            assert client.getresponse().read() == b""
        first = collector.spans[0]
        assert (first.name, first.scope, first.resource) == ("a", "kit", {"service.name": "shop"})
        assert first.attributes == {"n": 7, "list": [True, "x"], "none": None}
        assert (first.trace_id, first.span_id) == (bytes(range(16)).hex(), b"12345678".hex())
        assert first.parent_id == b"87654321".hex()
        assert [each.name for each in collector.spans] == 3 * ["a", "b"]
        assert [each.size_bytes for each in collector.requests][::2] == [len(body), len(body)]
        assert collector.requests[2].path == "/v1/traces"
        assert collector.requests[2].headers["x-who"] == "me"
        collector.clear()
        assert collector.spans == collector.requests == []


def test_what_we_send_arrives_by_both_protocols():
    """Spans and metrics of otel_perf itself, over HTTP and over gRPC."""
    for protocol in ("http/protobuf", "grpc"):
        with FakeCollector() as collector:
            endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.url
            otel_perf.configure("shop", endpoint=endpoint, protocol=protocol, span_interval_s=60)
            with measure("work"):
                pass
            assert otel_perf.flush()
            collector.wait_for(spans=1, metric="operation.duration", requests=2)
            assert [(each.name, each.resource["service.name"]) for each in collector.spans] == [("work", "shop")]
            metric = collector.metric("operation.duration")
            assert (metric.kind, metric.points[0].count) == ("histogram", 1)
            assert attributes(metric.points[0]) == {"operation.name": "work"}
            assert otel_perf.shutdown()
        with pytest.raises(AssertionError, match="no metric named 'x' among"):
            collector.metric("x")


def test_what_cannot_be_understood_is_said():
    """Rubbish, a wrong content type, a wrong packing and a wrong path get an error, and the test can see them."""
    with FakeCollector() as collector:
        assert post(collector.url, b"\xff\xff")[0] == 400
        assert post(collector.url, b"{}", content_type="application/json")[0] == 400
        assert post(collector.url, b"plain", content_encoding="gzip")[0] == 400
        assert post(collector.url, b"", path="/elsewhere")[0] == 404
        assert len(collector.errors) == 4
        with pytest.raises(AssertionError, match=r"0 of 1 spans came within 0 s; could not be understood: \["):
            collector.wait_for(spans=1, timeout_s=0)
        with pytest.raises(AssertionError, match="4 of 5 requests"):
            collector.wait_for(requests=5, timeout_s=0)
        with pytest.raises(AssertionError, match="no metric 'x'"):
            collector.wait_for(metric="x", timeout_s=0)


def test_errors_with_retry_after():
    """Seconds, a date, anything else as it stands; so many times, and then all is well."""
    when = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)
    body = traces("a").SerializeToString()
    with FakeCollector(behaviour.status(400, message="bad")) as collector:
        assert post(collector.url, body)[::2] == (400, b"bad")
        collector.behaviour = behaviour.status(429, retry_after=when)
        status, headers, _ = post(collector.url, body)
        assert (status, parsedate_to_datetime(headers["retry-after"])) == (429, when)
        collector.behaviour = behaviour.status(503, retry_after="soon")
        assert post(collector.url, body)[1]["retry-after"] == "soon"
        collector.behaviour = behaviour.status(503, retry_after=1.5).times(2)
        answers = [post(collector.url, body) for _ in range(3)]
        assert [(status, headers["retry-after"]) for status, headers, _ in answers] == [
            (503, "1.5"), (503, "1.5"), (200, None),
        ]  # fmt: skip
        assert len(collector.spans) == 1
        assert len(collector.requests) == 6


def test_partial_success_pages_and_redirects():
    """A 2xx may take only some, or be no answer of OTLP's at all; nothing is kept that was not taken."""
    body = traces("a", "b", "c").SerializeToString()
    with FakeCollector(behaviour.partial(2, "too old")) as collector:
        answer = ExportTraceServiceResponse.FromString(post(collector.url, body)[2])
        assert answer.partial_success.rejected_spans == 2
        assert answer.partial_success.error_message == "too old"
        assert [each.name for each in collector.spans] == ["a"]
        collector.behaviour = behaviour.html()
        status, headers, text = post(collector.url, body)
        assert (status, headers.get_content_type()) == (200, "text/html")
        assert b"<html>" in text
        collector.behaviour = behaviour.redirect("http://127.0.0.1:9/")
        status, headers, _ = post(collector.url, body)
        assert (status, headers["location"]) == (307, "http://127.0.0.1:9/")
        assert len(collector.spans) == 1


def test_no_answer_in_time():
    """Hanging, slow and dripping: the client's time runs out, and nothing is kept; slow enough is taken."""
    body = traces("a").SerializeToString()
    with FakeCollector() as collector:
        host = urlsplit(collector.url).netloc
        for act in (behaviour.hang(), behaviour.slow(30), behaviour.drip(0.01)):
            collector.behaviour = act
            with closing(http.client.HTTPConnection(host, timeout=0.2)) as client:
                client.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf"})
                client.sock.settimeout(0.2)
                if act.drip_s:
                    # Each read is answered in time, by a byte.
                    assert client.sock.recv(1) == b"H"
                    assert client.sock.recv(1) == b"T"
                else:
                    with pytest.raises(TimeoutError):
                        client.sock.recv(1)
        assert len(collector.requests) == 3
        assert collector.spans == []
        collector.behaviour = behaviour.slow(0.01)
        assert post(collector.url, body)[0] == 200
        collector.behaviour = behaviour.drip(0)
        assert post(collector.url, body)[0] == 200
        collector.wait_for(spans=2)


def test_refusing():
    """The port is closed and live connections are reset, until it opens again; or requests are read and reset."""
    body = traces("a").SerializeToString()
    with FakeCollector() as collector:
        address = urlsplit(collector.url).hostname, urlsplit(collector.url).port
        with socket.create_connection(address, timeout=5) as live:
            live.sendall(b"POST /v1/traces HTTP/1.1\r\n")
            collector.behaviour = behaviour.refuse()
            with suppress(ConnectionResetError):
                assert live.recv(1) == b""
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=5)
        collector.behaviour = behaviour.refuse().times(1)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            post(collector.url, body)
        assert post(collector.url, body)[0] == 200
        assert len(collector.requests) == 2
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def test_tls(tmp_path):
    """With a context it speaks HTTPS; a client that does not is turned away and harms nobody."""
    context, trusted = certificates(tmp_path)
    body = traces("a").SerializeToString()
    with FakeCollector(ssl_context=context) as collector:
        assert collector.url.startswith("https://")
        assert post(collector.url, body, context=trusted)[0] == 200
        with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
            post(collector.url.replace("https", "http"), body)
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            post(collector.url, body, context=ssl.create_default_context())
        collector.behaviour = behaviour.drip(0)
        assert post(collector.url, body, context=trusted)[0] == 200
        collector.wait_for(spans=2)


def certificates(folder):
    """A server's context of TLS, and a client's that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    alternatives = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(alternatives, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file = folder / "server.pem"
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    file.write_bytes(key.private_bytes(pem, *private) + made.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, ssl.create_default_context(cadata=made.public_bytes(pem).decode())


def test_the_end_comes_whatever_clients_do():
    """Idle, half-sent and hanging requests do not hold it up, and no thread and no port is left."""
    body = traces("a").SerializeToString()
    with FakeCollector(behaviour.hang()) as collector:
        address = urlsplit(collector.url).hostname, urlsplit(collector.url).port
        clients = [socket.create_connection(address, timeout=5) for _ in range(3)]
        clients[0].sendall(b"POST /v1/traces HTTP/1.1\r\n")
        clients[1].sendall(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf")
        head = f"POST /v1/traces HTTP/1.1\r\ncontent-length: {len(body)}\r\n\r\n"
        clients[2].sendall(head.encode() + body)
        collector.wait_for(requests=1)
    for client in clients:
        with closing(client), suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert [each.name for each in threading.enumerate() if each.name.startswith("otel_perf")] == []
    assert len(collector.requests) == 1
    collector.stop()


# The collector over gRPC ----------------------------------------------------------------------------------------------


def test_behaviours_over_grpc():
    """The same behaviours, as gRPC says them."""
    request = traces("a", "b")
    with FakeCollector() as collector:
        target = urlsplit(collector.grpc_endpoint).netloc
        with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
            export = TraceServiceStub(channel).Export

            def code(timeout_s=5):
                with pytest.raises(grpc.RpcError) as raised:
                    export(request, timeout=timeout_s)
                return raised.value

            assert export(request, timeout=5, metadata=(("x-who", "me"),)).partial_success.rejected_spans == 0
            collector.behaviour = behaviour.partial(1, "old")
            assert export(request, timeout=5).partial_success.rejected_spans == 1
            collector.behaviour = behaviour.slow(0.01)
            export(request, timeout=5)
            assert [each.name for each in collector.spans] == ["a", "b", "a", "a", "b"]
            assert collector.requests[0].headers["x-who"] == "me"
            for act, wanted in (
                (behaviour.refuse(), grpc.StatusCode.UNAVAILABLE),
                (behaviour.html(), grpc.StatusCode.UNKNOWN),
                (behaviour.status(400), grpc.StatusCode.INVALID_ARGUMENT),
                (behaviour.status(429), grpc.StatusCode.RESOURCE_EXHAUSTED),
            ):
                collector.behaviour = act
                assert code().code() is wanted
            for act in (behaviour.hang(), behaviour.drip(), behaviour.slow(60)):
                collector.behaviour = act
                assert code(0.1).code() is grpc.StatusCode.DEADLINE_EXCEEDED
            collector.behaviour = behaviour.status(503, retry_after=2.5, message="later").times(1)
            error = code()
            status = importlib.import_module("grpc_status.rpc_status").from_call(error)
            wait = importlib.import_module("google.rpc.error_details_pb2").RetryInfo()
            assert status.details[0].Unpack(wait)
            assert (error.details(), wait.retry_delay.ToMilliseconds()) == ("later", 2500)
            export(request, timeout=5)
            assert len(collector.spans) == 7
            collector.behaviour = behaviour.hang()
            pending = export.future(request)
            collector.wait_for(requests=13)
    assert pending.exception(5) is not None


def test_metrics_and_logs_are_kept_as_well():
    """Each signal has its list."""
    metrics = ExportMetricsServiceRequest()
    made = metrics.resource_metrics.add().scope_metrics.add().metrics.add(name="kit.sold")
    made.sum.data_points.add(as_int=3)
    service = importlib.import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    logs = service.ExportLogsServiceRequest()
    record = logs.resource_logs.add().scope_logs.add().log_records.add()
    record.body.string_value = "hello"
    with FakeCollector() as collector:
        assert post(collector.url, metrics.SerializeToString(), "/v1/metrics")[0] == 200
        assert post(collector.url, logs.SerializeToString(), "/v1/logs")[0] == 200
        assert collector.metric("kit.sold").points[0].as_int == 3
        assert [(each.name, each.attributes) for each in collector.logs] == [("hello", {})]


# Without the extras ---------------------------------------------------------------------------------------------------


def test_without_the_extras_the_remedy_is_named(monkeypatch):
    """Whoever lacks a library is told what to install; capture works without."""
    monkeypatch.setitem(sys.modules, "opentelemetry.proto.collector.trace.v1.trace_service_pb2", None)
    with pytest.raises(ImportError, match=r"pip install 'otel-perf\[testing\]'"):
        FakeCollector()
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "otel_perf.testing.calls", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with FakeCollector() as collector, pytest.raises(ImportError, match=r"pip install 'otel-perf\[testing,grpc\]'"):
        _ = collector.grpc_endpoint
