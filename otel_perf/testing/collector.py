"""A real OTLP endpoint on loopback, over HTTP and gRPC, that behaves as it is told."""

from __future__ import annotations

import importlib
import ssl
import threading
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from otel_perf.testing import behaviour as behaviours
from otel_perf.testing.behaviour import Behaviour
from otel_perf.testing.listener import Connection, Listener
from otel_perf.testing.received import (
    Inbox,
    ReceivedLog,
    ReceivedMetric,
    ReceivedRequest,
    ReceivedSpan,
    decoded,
    messages,
    success,
)

if TYPE_CHECKING:
    from otel_perf.testing.calls import Calls

__all__ = ["FakeCollector"]


class FakeCollector:
    """Receives OTLP on free ports of loopback for the length of a `with` block.

    Args:
        behaviour: how requests are treated from the start; `collector.behaviour` can be set at any time.
        ssl_context: makes HTTP into HTTPS.
        grpc_credentials: `grpc.ServerCredentials`, which make gRPC use TLS.

    Raises:
        ImportError: without opentelemetry-proto (extra `testing`), or, for gRPC, without grpcio (extra `grpc`).
    """

    def __init__(
        self, behaviour: Behaviour | None = None, *, ssl_context: ssl.SSLContext | None = None,
        grpc_credentials: Any = None,
    ) -> None:  # fmt: skip
        messages("traces")
        self._inbox = Inbox()
        self._ssl_context = ssl_context
        self._grpc_credentials = grpc_credentials
        self._lock = threading.Lock()
        self._behaviour = behaviour or behaviours.ok()
        self._listener: Listener | None = None
        self._calls: Calls | None = None

    def __enter__(self) -> FakeCollector:
        self._listener = Listener(self._handle, self._ssl_context)
        self.behaviour = self._behaviour
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the ports and every connection; what was received stays. A second call does nothing."""
        listener, self._listener = self._listener, None
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.close()
        if listener is not None:
            self._address = listener.address
            listener.close()

    @property
    def url(self) -> str:
        """The address to give as `endpoint` or OTEL_EXPORTER_OTLP_ENDPOINT."""
        host, port = self._address if self._listener is None else self._listener.address
        return f"http{'s' if self._ssl_context else ''}://{host}:{port}"

    @property
    def grpc_endpoint(self) -> str:
        """The same for protocol `grpc`; its port is opened when this is first read."""
        calls = self._calls
        if calls is None:
            try:
                module = importlib.import_module("otel_perf.testing.calls")
            except ImportError as error:
                raise ImportError(
                    "FakeCollector takes gRPC with grpcio, which is not installed: "
                    "pip install 'otel-perf[testing,grpc]'"
                ) from error
            calls = self._calls = cast("Calls", module.Calls(self._inbox, self._next, self._grpc_credentials))
        return f"http{'s' if self._grpc_credentials else ''}://127.0.0.1:{calls.port}"

    @property
    def behaviour(self) -> Behaviour:
        """How the next request is treated."""
        return self._behaviour

    @behaviour.setter
    def behaviour(self, wanted: Behaviour) -> None:
        with self._lock:
            self._behaviour = wanted
        if self._listener is not None:
            self._listener.open_port(not (wanted.refuses and wanted.count is None))

    @property
    def spans(self) -> list[ReceivedSpan]:
        """The spans that were taken, in the order of their arrival."""
        return list(self._inbox.spans)

    @property
    def metrics(self) -> list[ReceivedMetric]:
        """The metrics that were taken, one for each export."""
        return list(self._inbox.metrics)

    @property
    def logs(self) -> list[ReceivedLog]:
        """The log records that were taken."""
        return list(self._inbox.logs)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """Every request that could be read, also those that were not taken."""
        return list(self._inbox.requests)

    @property
    def errors(self) -> list[str]:
        """What could not be understood: bodies that do not decode, paths that are none of OTLP's."""
        return list(self._inbox.errors)

    def metric(self, name: str) -> ReceivedMetric:
        """The newest export of this metric."""
        found = [each for each in self.metrics if each.name == name]
        if not found:
            raise AssertionError(f"no metric named {name!r} among {sorted({each.name for each in self.metrics})}")
        return found[-1]

    def clear(self) -> None:
        """Forgets what was received so far."""
        self._inbox.clear()

    def wait_for(
        self, *, spans: int = 0, metric: str | None = None, requests: int = 0, timeout_s: float = 10.0
    ) -> None:
        """Waits for so many spans and requests, and for a metric; raises AssertionError when the time is over."""

        def missing() -> str | None:
            inbox = self._inbox
            if len(inbox.spans) < spans:
                return f"{len(inbox.spans)} of {spans} spans"
            if len(inbox.requests) < requests:
                return f"{len(inbox.requests)} of {requests} requests"
            if metric is not None and not any(each.name == metric for each in inbox.metrics):
                return f"no metric {metric!r}"
            return None

        if (lacking := self._inbox.wait_for(missing, timeout_s)) is not None:
            told = f"; could not be understood: {self.errors}" if self.errors else ""
            raise AssertionError(f"{lacking} came within {timeout_s:g} s{told}")

    def _next(self) -> Behaviour:
        with self._lock:
            current = self._behaviour
            if current.count is not None:
                left = current.count - 1
                self._behaviour = replace(current, count=left) if left > 0 else behaviours.ok()
            return current

    def _handle(self, client: Connection, path: str, body: bytes) -> None:
        headers = {name.lower(): value for name, value in client.headers.items()}
        act = self._next()
        self._inbox.note(ReceivedRequest(path, headers, len(body)))
        if act.refuses:
            client.reset()
        elif act.hangs:
            client.client_left(None)
            client.close_connection = True
        elif act.delay_s and client.client_left(act.delay_s):
            client.close_connection = True
        elif not act.takes:
            content_type, text = act.page or ("text/plain", act.message)
            client.answer(act.status, content_type, text.encode(), headers=act.headers)
        else:
            self._take(client, path, headers, body, act)

    def _take(self, client: Connection, path: str, headers: dict[str, str], body: bytes, act: Behaviour) -> None:
        signal = path.rpartition("/v1/")[2]
        if signal not in ("traces", "metrics", "logs"):
            self._inbox.complain(f"{path} is no path of OTLP")
            client.answer(404, "text/plain", b"")
            return
        try:
            request = decoded(signal, body, headers)
        except ValueError as error:
            self._inbox.complain(f"{path}: {error}")
            client.answer(400, "text/plain", str(error).encode())
            return
        answer = success(signal, act.rejected, act.message).SerializeToString()
        if act.drip_s is None:
            # Before the answer, so that who has the answer finds it here.
            self._inbox.take(signal, request, act.rejected)
            client.answer(200, "application/x-protobuf", answer)
        elif client.answer(200, "application/x-protobuf", answer, drip_s=act.drip_s):
            self._inbox.take(signal, request, act.rejected)
