"""A local stand-in for Google Cloud Trace that speaks the real services, for tests of both ways out.

It serves OTLP's `TraceService/Export` and Cloud Trace's `BatchWriteSpans` by gRPC over TLS, both again without TLS for
the older exporter, and OAuth's token endpoint, which checks a signed assertion as Google's does. Certificate, key and
service account are made when it starts and are worth nothing elsewhere. What arrived is read as JSON:
`GET /traces` gives the trace ids of both ways, `GET /traces/<id>` the spans of one trace.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from google.cloud.trace_v2.types import BatchWriteSpansRequest
from google.protobuf import empty_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

from collector.certificate import make_certificate, pem

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["PROJECT", "CloudTrace", "Received"]

PROJECT = "otel-perf-local"
_ACCOUNT = f"streak@{PROJECT}.iam.gserviceaccount.com"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_OTLP = "opentelemetry.proto.collector.trace.v1.TraceService"
_LEGACY = "google.devtools.cloudtrace.v2.TraceService"

_Spans = dict[str, list[dict[str, Any]]]


@dataclass(slots=True)
class Received:
    """What arrived, by way (`otlp`, `legacy`) and trace id."""

    by_way: dict[str, _Spans] = field(default_factory=lambda: {"otlp": defaultdict(list), "legacy": defaultdict(list)})
    refused: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, way: str, trace_id: str, span: dict[str, Any]) -> None:
        """Keep a span."""
        with self._lock:
            self.by_way[way][trace_id].append(span)

    def refuse(self) -> None:
        """Count a call that brought no token of ours."""
        with self._lock:
            self.refused += 1

    def trace_ids(self, way: str) -> set[str]:
        """Return the ids of all traces that arrived by the way."""
        with self._lock:
            return set(self.by_way[way])

    def span_count(self, way: str) -> int:
        """Return how many spans arrived by the way; one that was sent twice counts once."""
        with self._lock:
            return sum(len({span["span_id"] for span in spans}) for spans in self.by_way[way].values())

    def trace(self, trace_id: str) -> dict[str, list[dict[str, Any]]]:
        """Return the spans of one trace, by way."""
        with self._lock:
            return {way: list(traces.get(trace_id, ())) for way, traces in self.by_way.items()}


class CloudTrace:
    """The started server; a context manager. `env` is what a Collector's environment needs to send here."""

    def __init__(self, directory: Path, *, secure_port: int = 0, plain_port: int = 0, http_port: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.received = Received()
        self._tokens: set[str] = set()
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ca_file = directory / "cloudtrace-ca.pem"
        self.credentials_file = directory / "service-account.json"
        key_pem, certificate_pem = make_certificate()
        self.ca_file.write_bytes(certificate_pem)
        self._http = ThreadingHTTPServer(("127.0.0.1", http_port), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._write_account()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        self._grpc.add_generic_rpc_handlers((self._otlp_service(), self._legacy_service()))
        tls = grpc.ssl_server_credentials([(key_pem, certificate_pem)])
        self.secure_endpoint = f"127.0.0.1:{self._grpc.add_secure_port(f'127.0.0.1:{secure_port}', tls)}"
        self.plain_endpoint = f"127.0.0.1:{self._grpc.add_insecure_port(f'127.0.0.1:{plain_port}')}"
        self._grpc.start()
        self._thread = threading.Thread(target=self._http.serve_forever, name="cloudtrace-http", daemon=True)
        self._thread.start()

    @property
    def env(self) -> dict[str, str]:
        """The variables of the two Cloud Trace profiles of the Collector."""
        return {
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.credentials_file),
            "CLOUDTRACE_OTLP_ENDPOINT": self.secure_endpoint,
            "CLOUDTRACE_CA_FILE": str(self.ca_file),
            "CLOUDTRACE_LEGACY_ENDPOINT": self.plain_endpoint,
            "CLOUDTRACE_LEGACY_INSECURE": "true",
        }

    def stop(self) -> None:
        """Stop both servers."""
        self._grpc.stop(grace=1.0).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def issue_token(self, form: str) -> dict[str, Any] | None:
        """Return an access token for a form that holds a well-signed assertion for us, None for any other."""
        fields = dict(urllib.parse.parse_qsl(form))
        if fields.get("grant_type") != _GRANT or not self._well_signed(fields.get("assertion", "")):
            return None
        token = secrets.token_urlsafe(24)
        self._tokens.add(token)
        return {"access_token": token, "token_type": "Bearer", "expires_in": 3600}

    def _well_signed(self, assertion: str) -> bool:
        try:
            head, claims, signature = assertion.split(".")
            signed = f"{head}.{claims}".encode()
            self._key.public_key().verify(_decoded(signature), signed, padding.PKCS1v15(), hashes.SHA256())
            said = json.loads(_decoded(claims))
        except (InvalidSignature, ValueError, binascii.Error):
            return False
        return bool(
            said.get("iss") == _ACCOUNT and said.get("aud") == f"{self.url}/token" and said["exp"] > time.time()
        )

    def _write_account(self) -> None:
        account = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "local",
            "private_key": pem(self._key).decode(),
            "client_email": _ACCOUNT,
            "client_id": "0",
            "token_uri": f"{self.url}/token",
        }
        self.credentials_file.touch(mode=0o600)
        self.credentials_file.write_text(json.dumps(account), encoding="utf-8")

    def _otlp_service(self) -> grpc.GenericRpcHandler:
        def export(
            request: otlp.ExportTraceServiceRequest, context: grpc.ServicerContext
        ) -> otlp.ExportTraceServiceResponse:
            metadata = dict(context.invocation_metadata())
            if str(metadata.get("authorization", "")).removeprefix("Bearer ") not in self._tokens:
                self.received.refuse()
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no access token that the token endpoint gave")
            _keep_otlp(self.received, request)
            return otlp.ExportTraceServiceResponse()

        return _service(_OTLP, "Export", export, otlp.ExportTraceServiceRequest.FromString)

    def _legacy_service(self) -> grpc.GenericRpcHandler:
        def write(request: BatchWriteSpansRequest, context: grpc.ServicerContext) -> empty_pb2.Empty:
            if request.name != f"projects/{PROJECT}":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"name is not projects/{PROJECT}")
            _keep_legacy(self.received, request)
            return empty_pb2.Empty()

        return _service(_LEGACY, "BatchWriteSpans", write, BatchWriteSpansRequest.deserialize)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = [part for part in self.path.split("/") if part]
                if parts == ["traces"]:
                    ways = ("otlp", "legacy")
                    self._answer(200, {way: sorted(cloud.received.trace_ids(way)) for way in ways})
                elif len(parts) == 2 and parts[0] == "traces":
                    self._answer(200, cloud.received.trace(parts[1]))
                else:
                    self._answer(404, {"error": "GET /traces or /traces/<id>"})

            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
                token = cloud.issue_token(form) if self.path == "/token" else None
                self._answer(200 if token else 400, token or {"error": "invalid_grant"})

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the signature of http.server
                """Say nothing: requests would clutter the terminal of whoever runs the check."""

            def _answer(self, status: int, body: object) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler


def _service(
    service: str, method: str, handle: Callable[..., Any], decode: Callable[[bytes], Any]
) -> grpc.GenericRpcHandler:
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        handle, request_deserializer=decode, response_serializer=lambda answer: answer.SerializeToString()
    )
    return grpc.method_handlers_generic_handler(service, {method: handler})


def _keep_otlp(received: Received, request: otlp.ExportTraceServiceRequest) -> None:
    for resource_spans in request.resource_spans:
        resource = {pair.key: pair.value.string_value for pair in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                kept = {
                    "span_id": span.span_id.hex(),
                    "parent_id": span.parent_span_id.hex(),
                    "name": span.name,
                    "service": resource.get("service.name", ""),
                    "project": resource.get("gcp.project_id", ""),
                    "attributes": {pair.key: pair.value.string_value for pair in span.attributes},
                }
                received.add("otlp", span.trace_id.hex(), kept)


def _keep_legacy(received: Received, request: BatchWriteSpansRequest) -> None:
    for span in request.spans:
        # projects/P/traces/<32 hex>/spans/<16 hex>
        _, project, _, trace_id, _, span_id = span.name.split("/")
        attributes = {key: value.string_value.value for key, value in span.attributes.attribute_map.items()}
        kept = {
            "span_id": span_id,
            "parent_id": span.parent_span_id,
            "name": span.display_name.value,
            "service": attributes.get("service.name", ""),
            "project": project,
            "attributes": attributes,
        }
        received.add("legacy", trace_id, kept)


def _decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def main() -> int:
    """Serve until Ctrl-C or SIGTERM, and print the variables that point a Collector here."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: ended.set())
    with tempfile.TemporaryDirectory(prefix="otel_perf-cloudtrace-") as folder, CloudTrace(Path(folder)) as cloud:
        for name, value in cloud.env.items():
            print(f"export {name}={value}")
        print(f"# what arrived: {cloud.url}/traces", flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
