"""Firestore clients of an emulator, and a gRPC server in front of it that fails or answers where a test wants it to."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import grpc
from google.cloud import firestore

__all__ = ["Front", "Lost", "async_client", "client", "front"]

_STREAMS = ("BatchGetDocuments", "RunQuery", "RunAggregationQuery")


@contextlib.contextmanager
def client(address: str, project: str = "tests", **options: Any) -> Iterator[firestore.Client]:
    """A sync client."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=address):
        made = firestore.Client(project=project, **options)
    try:
        yield made
    finally:
        made._firestore_api.transport.grpc_channel.close()


@contextlib.asynccontextmanager
async def async_client(address: str, project: str = "tests", **options: Any) -> Any:
    """An async client, of the loop that runs."""
    with mock.patch.dict(os.environ, FIRESTORE_EMULATOR_HOST=address):
        made = firestore.AsyncClient(project=project, **options)
    try:
        yield made
    finally:
        await made._firestore_api.transport.grpc_channel.close()


class Lost:
    """An answer that does not arrive: the call is made, and then fails with a status."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self.status = status


class Front(grpc.GenericRpcHandler):
    """Hands calls on to the emulator, unless there is something else planned for the next of that name."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.address = ""
        #: By the name of a call what becomes of the next ones: a status to fail with, a message to answer, an event
        #: to wait for, an answer that gets lost.
        self.planned: dict[str, list[Any]] = {}
        self.seen: list[str] = []
        self.requests: list[tuple[str, bytes]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = details.method.rpartition("/")[2]
        if name in _STREAMS:
            forward = self._channel.unary_stream(details.method)
            return grpc.unary_stream_rpc_method_handler(self._answer(name, forward, lambda found: iter([found])))
        return grpc.unary_unary_rpc_method_handler(self._answer(name, self._channel.unary_unary(details.method)))

    def _answer(self, name: str, forward: Any, shape: Callable[[bytes], Any] = bytes) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> Any:
            self.seen.append(name)
            self.requests.append((name, request))
            planned = self.planned.get(name)
            found = planned.pop(0) if planned else None
            if isinstance(found, grpc.StatusCode):
                context.abort(found, "planned for user@example.com")
            if isinstance(found, Lost):
                forward(request)
                context.abort(found.status, "planned for user@example.com")
            if isinstance(found, threading.Event):
                found.wait(10)
            elif found is not None:
                return shape(type(found).serialize(found))
            try:
                return forward(request)
            except grpc.RpcError as error:
                context.abort(error.code(), error.details())

        return answer


@contextlib.contextmanager
def front(emulator: str) -> Iterator[Front]:
    """A server in front of an emulator, on a free loopback port."""
    with grpc.insecure_channel(emulator) as channel:
        server = grpc.server(ThreadPoolExecutor(4))
        handler = Front(channel)
        server.add_generic_rpc_handlers((handler,))
        handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield handler
        finally:
            server.stop(None).wait()
