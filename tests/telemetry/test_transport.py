"""The ways made from our settings: addresses, headers, compression, certificates, proxies, both protocols."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import grpc
import pytest

import otel_perf
from collector.certificate import make_certificate
from otel_perf import measure
from otel_perf.settings import Settings, SettingsError
from otel_perf.telemetry import delivery, runtime, transport
from otel_perf.telemetry.connection import Proxy
from otel_perf.testing import FakeCollector


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.setattr(delivery, "_said", {})


@pytest.mark.parametrize(
    ("given", "traces", "metrics"),
    [
        ({}, None, None),
        ({"endpoint": "http://h:4318"}, "http://h:4318/v1/traces", "http://h:4318/v1/metrics"),
        ({"endpoint": "http://h:4317", "protocol": "grpc"}, "http://h:4317", "http://h:4317"),
        ({"endpoint": "http://h", "traces_endpoint": "http://t/x"}, "http://t/x", "http://h/v1/metrics"),
        ({"metrics_endpoint": "http://m/x"}, None, "http://m/x"),
    ],
)
def test_where_signals_go(given, traces, metrics):
    """Below the endpoint by HTTP, the endpoint itself by gRPC, whole addresses as they are."""
    settings = Settings(**given)
    assert (transport.traces_endpoint(settings), transport.metrics_endpoint(settings)) == (traces, metrics)


def work(count: int = 1) -> None:
    for _ in range(count):
        with measure("work"):
            pass


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_headers_and_compression_reach_the_endpoint(compression):
    """Header names in lower case; what the sender decides about itself is not overwritten."""
    with FakeCollector() as collector:
        otel_perf.configure(
            service_name="t", endpoint=f"{collector.url}/base", compression=compression,
            headers={"X-Team": "a", "Content-Type": "text/plain", "content-length": "7"},
        )  # fmt: skip
        work(50)
        assert otel_perf.flush()
        otel_perf.shutdown()
    assert {each.path for each in collector.requests} == {"/base/v1/traces", "/base/v1/metrics"}
    assert collector.errors == []
    for each in collector.requests:
        assert each.headers["x-team"] == "a"
        assert each.headers["content-type"] == "application/x-protobuf"
        assert each.headers["user-agent"] == f"otel-perf/{otel_perf.__version__}"
        assert each.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
    assert len(collector.spans) == 50


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_grpc_to_a_real_server(compression):
    """Spans and metrics arrive decoded, with the headers as metadata."""
    with FakeCollector() as collector:
        otel_perf.configure(
            service_name="shop", endpoint=collector.grpc_endpoint, protocol="grpc", compression=compression,
            headers={"X-Team": "a"},
        )  # fmt: skip
        work(600)
        assert otel_perf.flush(20)
        otel_perf.shutdown()
    assert len(collector.spans) == 600
    assert collector.spans[0].resource["service.name"] == "shop"
    assert collector.metric("operation.duration").points[0].count == 600
    assert collector.requests[0].headers["x-team"] == "a"


def test_grpc_without_its_extra_stops_start_up(monkeypatch, telemetry):
    """The message says what to install; what was configured before goes on; without an endpoint nobody needs it."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.exporter", None)
    before = runtime.current
    with pytest.raises(SettingsError, match=r"protocol='grpc' cannot be used.*pip install 'otel-perf\[grpc\]'"):
        otel_perf.configure(protocol="grpc", endpoint="http://h:4317")
    assert runtime.current is before
    transport.check(Settings(protocol="grpc"))
    transport.check(Settings(protocol="grpc", endpoint="http://h", disabled=True))


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_stock_http_exporter_is_not_needed(monkeypatch, protocol):
    """Nothing of it is imported."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with FakeCollector() as collector:
        endpoint = collector.grpc_endpoint if protocol == "grpc" else collector.url
        otel_perf.configure(service_name="t", endpoint=endpoint, protocol=protocol)
        work()
        assert otel_perf.shutdown()
        assert len(collector.spans) == 1


def test_a_signal_that_is_switched_off(caplog):
    """An exporter that is not OTLP's sends nothing, which is said once at the start."""
    caplog.set_level("INFO")
    settings = Settings(endpoint="http://h:4318", traces_exporter=("none",), metrics_exporter=("console",))
    assert (transport.traces_endpoint(settings), transport.metrics_endpoint(settings)) == (None, None)
    transport.check(settings)
    assert [record.message for record in caplog.records] == [
        "otel_perf: traces_exporter is none, so no traces are sent",
        "otel_perf: metrics_exporter is console, so no metrics are sent",
    ]


@pytest.mark.parametrize(
    "headers", [{"a b": "x"}, {"": "x"}, {"a": "x\r\nevil: y"}, {"a": "\u20ac"}, {"a:": "x"}, {"a": "x\x00"}]
)
def test_a_header_that_cannot_be_sent_stops_start_up(headers):
    """No header is made of a value; the message does not repeat it."""
    with pytest.raises(
        SettingsError, match=r"^traces_headers: the header .* cannot be sent; remove line breaks"
    ) as said:
        transport.check(Settings(endpoint="http://h", traces_headers=headers))
    assert "evil" not in str(said.value)


def test_an_endpoint_without_a_usable_host_stops_start_up():
    """A label of a host name has an end."""
    with pytest.raises(SettingsError, match="has no usable host"):
        transport.check(Settings(endpoint=f"http://{'a' * 70}.example"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"endpoint": "http://h/?token=geheim"}, r"^endpoint='http://h/\?token=REDACTED' has a query.*traces_endpoint"),
        ({"endpoint": "localhost:4318"}, r"^endpoint='localhost:4318' has no scheme; write http://localhost:4318, or"),
        ({"traces_endpoint": "h:1"}, r"^traces_endpoint='h:1' has no scheme"),
    ],
)
def test_an_address_that_cannot_work_stops_start_up(given, said):
    """With what to do about it; whole addresses may have a query."""
    with pytest.raises(SettingsError, match=said):
        transport.check(Settings.load(**given))
    transport.check(Settings.load(traces_endpoint="http://h/v1/traces?key=1", metrics_exporter="none"))


@pytest.mark.parametrize(
    ("environment", "scheme"),
    [({}, "https"), ({"OTEL_EXPORTER_OTLP_INSECURE": "true"}, "http"),
     ({"OTEL_EXPORTER_OTLP_TRACES_INSECURE": "false", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "https")],
)  # fmt: skip
def test_a_bare_host_for_grpc(monkeypatch, environment, scheme):
    """Over TLS unless the standard variable says otherwise, as OpenTelemetry specifies; certificates are looked at."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load(endpoint="localhost:4317", protocol="grpc")
    transport.check(settings)
    assert transport.traces_endpoint(settings) == f"{scheme}://localhost:4317"


def test_a_bare_host_is_reached_by_grpc(monkeypatch):
    """A real server without TLS."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    with FakeCollector() as collector:
        bare = collector.grpc_endpoint.removeprefix("http://")
        otel_perf.configure(service_name="t", endpoint=bare, protocol="grpc")
        work()
        assert otel_perf.shutdown()
        assert [span.name for span in collector.spans] == ["work"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("[::1]", True), ("[::ffff:127.0.0.1]", True), ("0.0.0.0", True), ("[::]", True),
     ("a.localhost", True), ("10.0.0.1", False), ("[::ffff:10.0.0.1]", False), ("localhost.example", False)],
)  # fmt: skip
def test_what_is_this_machine(host, expected):
    """By name or by number, in each of its forms."""
    assert transport._is_loopback(f"http://{host}:4318") is expected


# Proxies -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://u:geheim@proxy:3128")
    monkeypatch.setenv("http_proxy", "http://u:geheim@proxy:3128")
    return monkeypatch


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_no_way_to_loopback(proxied, host):
    """A proxy of the environment is left aside where the endpoint is on this machine."""
    with FakeCollector() as collector:
        otel_perf.configure(service_name="t", endpoint=collector.url.replace("127.0.0.1", host))
        work()
        assert otel_perf.shutdown()
        assert [span.name for span in collector.spans] == ["work"]


def test_a_proxy_is_used_for_other_hosts(proxied, caplog):
    """By scheme, unless `NO_PROXY` or its kind says otherwise; a proxy of an unknown kind is left aside and told."""
    assert transport._proxy("http://collector:4318/v1") == Proxy("proxy", 3128, "Basic dTpnZWhlaW0=")
    assert transport._proxy("https://collector:4318/v1") is None
    proxied.setenv("ALL_PROXY", "http://all")
    assert transport._proxy("https://collector:4318/v1") == Proxy("all", 80)
    proxied.setenv("NO_PROXY", "collector:4318, .inside")
    for direct in ("http://collector:4318", "http://a.inside"):
        assert transport._proxy(direct) is None
    assert transport._proxy("http://collector:9999") is not None
    assert not caplog.records
    proxied.setenv("ALL_PROXY", "socks5://u:geheim@s:1")
    assert transport._proxy("https://elsewhere") is None
    assert "is left aside" in caplog.text
    assert "geheim" not in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "no_proxy", "direct"),
    [
        ("http://col", "col:80", True),
        ("https://col", "col:443", True),
        ("https://col", "col:80", False),
        ("http://10.1.2.3:4318", "a, 10.0.0.0/8", True),
        ("http://10.1.2.3:4318", "10.1.2.3/8", True),
        ("http://[::ffff:10.1.2.3]:4318", "10.0.0.0/8", True),
        ("http://11.1.2.3:4318", "10.0.0.0/8", False),
        ("http://[fd00::1]:4318", "10.0.0.0/8,fd00::/8", True),
        ("http://col:4318", "10.0.0.0/8,nonsense/99", False),
        ("http://anything:4318", "*", True),
    ],
)
def test_forms_of_no_proxy(proxied, endpoint, no_proxy, direct):
    """The port that a scheme stands for, and networks, as curl and Go take them."""
    proxied.setenv("ALL_PROXY", "http://all")
    proxied.setenv("NO_PROXY", no_proxy)
    assert (transport._proxy(endpoint) is None) is direct


def test_grpc_asks_for_a_proxy_itself():
    """It knows the environment's; on loopback it is told not to look."""
    assert "channel_options" not in transport._by_grpc(Settings(), "traces", "http://collector:4317")
    assert transport._by_grpc(Settings(), "traces", "http://app.localhost:4317")["channel_options"]


# Certificates --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    """Two pairs of a key and a certificate for loopback, as files."""
    place = tmp_path_factory.mktemp("tls")
    for name in ("server", "client"):
        key, certificate = make_certificate()
        (place / f"{name}.key").write_bytes(key)
        (place / f"{name}.pem").write_bytes(certificate)
    (place / "broken.pem").write_text("no certificate")
    return {each.name: str(each) for each in place.iterdir()}


def over_tls(pems, *, mutual: bool = False) -> FakeCollector:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems["server.pem"], pems["server.key"])
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(pems["client.pem"])
    contents = {name: Path(path).read_bytes() for name, path in pems.items()}
    pair = [(contents["server.key"], contents["server.pem"])]
    credentials = grpc.ssl_server_credentials(pair, contents["client.pem"] if mutual else None, mutual)
    return FakeCollector(ssl_context=context, grpc_credentials=credentials)


def delivered(collector: FakeCollector, protocol: str, **settings) -> bool:
    address = collector.grpc_endpoint if protocol == "grpc" else collector.url
    otel_perf.configure(
        service_name="t", endpoint=address.replace("127.0.0.1", "localhost"), protocol=protocol, export_timeout_s=2,
        **settings,
    )  # fmt: skip
    work()
    return otel_perf.shutdown(2)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_tls_by_a_certificate_of_ones_own(pems, protocol):
    """Spans and metrics go to who is trusted; that of a signal wins."""
    with over_tls(pems) as collector:
        assert delivered(collector, protocol, certificate=pems["server.pem"])
        assert [span.name for span in collector.spans] == ["work"]
        assert collector.metrics
        own = {"traces_certificate": pems["server.pem"], "metrics_certificate": pems["server.pem"]}
        assert delivered(collector, protocol, certificate=pems["client.pem"], **own)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nothing_goes_to_a_stranger(pems, protocol):
    """The system's certificates do not know it, and no other certificate does."""
    with over_tls(pems) as collector:
        assert not delivered(collector, protocol, certificate=pems["client.pem"])
        assert collector.requests == []
        if protocol != "grpc":
            assert not delivered(collector, protocol)
            assert collector.requests == []


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_mutual_tls(pems, protocol):
    """The endpoint asks who we are; without an answer it takes nothing."""
    ours = {"client_certificate": pems["client.pem"], "client_key": pems["client.key"]}
    with over_tls(pems, mutual=True) as collector:
        assert delivered(collector, protocol, certificate=pems["server.pem"], **ours)
        assert len(collector.spans) == 1
        assert not delivered(collector, protocol, certificate=pems["server.pem"])
        assert len(collector.spans) == 1


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"certificate": "/no/such.pem"},
            r"^certificate='/no/such.pem' cannot be used: no such file or directory\. Name",
        ),
        ({"traces_certificate": "broken.pem"}, r"^traces_certificate='.*' cannot be used: it is not PEM"),
        (
            {"client_certificate": "client.pem"},
            "^client_certificate='.*' cannot be used: it is not PEM, or does not fit",
        ),
        ({"client_certificate": "client.pem", "metrics_client_key": "server.key"}, "^client_certificate='.*'"),
        ({"client_key": "client.key"}, "^client_key is of no use without client_certificate; set both, or none"),
    ],
)
def test_a_bad_certificate_stops_start_up(pems, protocol, given, said):
    """The message names the setting and what to do; without TLS nobody looks at the files."""
    files = {name: pems.get(value, value) for name, value in given.items()}
    with pytest.raises(SettingsError, match=said):
        transport.check(Settings(endpoint="https://h", protocol=protocol, **files))
    transport.check(Settings(endpoint="http://h", protocol=protocol, **files))
