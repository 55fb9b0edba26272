"""The gRPC side of a fake collector; importing it needs grpcio."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from otel_perf.testing.behaviour import Behaviour
from otel_perf.testing.received import Inbox, ReceivedRequest, messages, success

__all__ = ["Calls"]

# Generated code without types; it comes with the extra `grpc`.
_details_pb2: Any = importlib.import_module("google.rpc.error_details_pb2")
_status_pb2: Any = importlib.import_module("google.rpc.status_pb2")

_SERVICES = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
}
# As the OTLP specification pairs them; what is missing is UNKNOWN.
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}


class Calls:
    """A gRPC server on a free port that treats calls as the behaviour of the moment says."""

    def __init__(self, inbox: Inbox, behave: Callable[[], Behaviour], credentials: Any) -> None:
        self._inbox = inbox
        self._behave = behave
        self._pool = futures.ThreadPoolExecutor(8, thread_name_prefix="otel_perf-testing-grpc")
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers([self._service(name) for name in _SERVICES])
        if credentials is None:
            self.port: int = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def close(self) -> None:
        """Ends every call and waits for the threads."""
        self._server.stop(0).wait(5)
        self._pool.shutdown(wait=True)

    def _service(self, name: str) -> grpc.GenericRpcHandler:
        signal = _SERVICES[name]
        path = f"/{name}/Export"

        def export(request: Any, call: grpc.ServicerContext) -> Any:
            return self._export(signal, path, request, call)

        method = grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=messages(signal)[0].FromString,
            response_serializer=messages(signal)[1].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(name, {"Export": method})

    def _export(self, signal: str, path: str, request: Any, call: grpc.ServicerContext) -> Any:
        headers = {
            key: value.decode() if isinstance(value, bytes) else value for key, value in call.invocation_metadata()
        }
        act = self._behave()
        self._inbox.note(ReceivedRequest(path, headers, request.ByteSize()))
        if act.refuses:
            call.abort(grpc.StatusCode.UNAVAILABLE, "connection refused")
        if act.hangs or act.drip_s is not None:
            _left(call, None)
            call.abort(grpc.StatusCode.CANCELLED, "nobody waits any more")
        if act.delay_s and _left(call, act.delay_s):
            call.abort(grpc.StatusCode.CANCELLED, "nobody waits any more")
        if not act.takes:
            if act.retry_after_s is not None:
                call.set_trailing_metadata((("grpc-status-details-bin", _details(act)),))
            call.abort(_CODES.get(act.status, grpc.StatusCode.UNKNOWN), act.message)
        self._inbox.take(signal, request, act.rejected)
        return success(signal, act.rejected, act.message)


def _left(call: grpc.ServicerContext, within_s: float | None) -> bool:
    """Waits so long, or for ever, and says whether the client left meanwhile, or all is being closed."""
    left = threading.Event()
    return not call.add_callback(left.set) or left.wait(within_s)


def _details(act: Behaviour) -> bytes:
    wait = _details_pb2.RetryInfo()
    wait.retry_delay.FromNanoseconds(int((act.retry_after_s or 0) * 1e9))
    code = _CODES.get(act.status, grpc.StatusCode.UNKNOWN)
    told = _status_pb2.Status(code=code.value[0], message=act.message)
    told.details.add().Pack(wait)
    packed: bytes = told.SerializeToString()
    return packed
