"""What each call of google-cloud-firestore is: its operation, its collection, its documents, its outcome.

Nothing of the library is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, ref

import grpc
from opentelemetry.trace import SpanKind

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations.firestore_query import collection as template
from otel_perf.integrations.firestore_query import shape
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.kind import Kind
from otel_perf.telemetry.operation import QUERY, Operation

__all__ = [
    "Call",
    "Transactions",
    "attempt",
    "copied",
    "of_aggregation",
    "of_batch",
    "of_client",
    "of_collection",
    "of_document",
    "of_query",
    "of_vector",
]

#: The conventions have no value for Firestore; this one is ours, by their pattern for the other clouds.
_SYSTEM = "gcp.firestore"
_GCP_SERVICE = "gcp.client.service"
_RETRIES = "db.transaction.retries"

_TRANSACTION = Kind("transaction", c.TRANSACTION_DURATION, SpanKind.INTERNAL)
_CODES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}
_servers: MutableMapping[Any, _Server] = WeakKeyDictionary()
#: What measures the functions that run in transactions, by their transaction.
_running: MutableMapping[Any, Operation] = WeakKeyDictionary()
#: Async clients, by the sync copy that their bulk writers use.
_copied_from: MutableMapping[Any, ref[Any]] = WeakKeyDictionary()

_MODULES = ("google.cloud.firestore_v1.transaction", "google.cloud.firestore_v1.async_transaction")


class _Server:
    """What is known of the database of a client."""

    __slots__ = ("attributes", "namespace")

    def __init__(self, of: Any) -> None:
        self.namespace = str(of._database)
        host, colon, port = str(of._target).rpartition(":")
        address, number = (host, int(port)) if colon and port.isdigit() else (str(of._target), 443)
        self.attributes = {c.SERVER_ADDRESS: address.strip("[]"), c.SERVER_PORT: number, _GCP_SERVICE: "firestore"}


def _server(of: Any) -> _Server:
    found = _servers.get(of)
    if found is None:
        found = _servers[of] = _Server(of)
    return found


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a call asks for."""

    client: Any
    collection: str | None = None
    text: str | None = None
    size: int | None = None


_Read = Callable[[Any, "tuple[Any, ...]", Mapping[str, Any]], _Asked]


def of_client(of: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> _Asked:
    """A call of a client, perhaps for some documents."""
    references: Any = args[0] if args else options.get("references")
    if not isinstance(references, (list, tuple)):  # what can be read only once is left to the library
        return _Asked(of)
    return _Asked(of, _common(references), size=len(references))  # pyright: ignore[reportUnknownArgumentType]


def of_document(of: Any, _args: tuple[Any, ...], _options: Mapping[str, Any]) -> _Asked:
    """A call of a document reference."""
    return _Asked(of._client, template(of._path[:-1]))


def of_collection(of: Any, _args: tuple[Any, ...], _options: Mapping[str, Any]) -> _Asked:
    """A call of a collection reference."""
    return _Asked(of._client, template(of._path))


def of_query(of: Any, _args: tuple[Any, ...], _options: Mapping[str, Any]) -> _Asked:
    """A query."""
    return _Asked(of._client, template(of._parent._path), shape(of))


def of_aggregation(of: Any, _args: tuple[Any, ...], _options: Mapping[str, Any]) -> _Asked:
    """A count, sum or average over a query."""
    inner = of._nested_query
    return _Asked(inner._client, template(inner._parent._path), shape(inner, aggregations=of._aggregations))


def of_vector(of: Any, _args: tuple[Any, ...], _options: Mapping[str, Any]) -> _Asked:
    """A search for the nearest vectors."""
    inner = of._nested_query
    return _Asked(inner._client, template(inner._parent._path), shape(inner, nearest=of))


def of_batch(of: Any, _args: tuple[Any, ...], _options: Mapping[str, Any]) -> _Asked:
    """The writes of a batch or a transaction."""
    return _Asked(of._client, _common(of._document_references.values()), size=len(of._write_pbs))


def _common(references: Iterable[Any]) -> str | None:
    """The collection that all these documents are of; None where they are of several."""
    found: str | None = None
    for each in references:
        where = template(each._path[:-1])
        if found is not None and where != found:
            return None
        found = where
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """One kind of call, a query of its name."""

    name: str
    read: _Read
    measures: Callable[[object], bool]

    def begin(self, of: Any, args: tuple[Any, ...], options: Mapping[str, Any], activate: bool, /) -> Operation | None:
        """Starts its operation, unless it belongs to a call that is measured already."""
        if runtime.current is None:
            return None
        above = operation.current()
        if above is not None and above.within("query"):
            return None
        asked = self.read(of, args, options)
        if not (self.measures(asked.client) or self._measures_original(asked.client)):
            return None
        server = _server(asked.client)
        attributes = dict(server.attributes)
        if asked.text is not None:
            attributes[c.DB_QUERY_TEXT] = redaction.Masked(redaction.text(asked.text))
        if asked.size is not None:
            attributes[c.DB_BATCH_SIZE] = asked.size
        name = f"{self.name} {asked.collection}" if asked.collection else self.name
        labels = (_SYSTEM, self.name, asked.collection, server.namespace)
        return operation.start(QUERY, name, labels, attributes, activate=activate)

    def _measures_original(self, client: Any) -> bool:
        original = _copied_from.get(client)
        return original is not None and self.measures(original())

    def answered(self, begun: Operation, answer: Any, /) -> None:
        """Ends it, with what the answer tells."""
        try:
            if self.name == "get":
                begun.set(c.DB_ROWS, int(answer.exists))
            elif self.name == "batch_write":  # each write of it has an outcome of its own
                code = next((each.code for each in answer.status if each.code), None)
                if code is not None:
                    begun.fail(_CODES.get(code, str(code)))
                    begun.set(c.DB_STATUS, begun.error_type)
        except Exception:
            guard.note("reading a Firestore answer")
        begun.stop()

    def failed(self, begun: Operation, error: BaseException, /) -> None:
        """Ends it."""
        _fail(begun, error)

    def streamed(self, begun: Operation, error: BaseException | None, count: int, /) -> None:
        """Ends it, with the number of documents."""
        if error is not None:
            _fail(begun, error)
            return
        begun.set(c.DB_ROWS, count)
        begun.stop()


def _fail(begun: Operation, error: BaseException) -> None:
    try:
        status = _status(error)
        if status is not None:
            begun.fail(error)
            begun.error_type = status
            begun.set(c.DB_STATUS, status)
    except Exception:
        guard.note("reading a Firestore error")
    begun.stop(error)


def _status(error: BaseException) -> str | None:
    """The name of the gRPC status that a call failed with, `ABORTED`; None where it failed otherwise."""
    if type(error) is ValueError and _is_of_transaction(error):
        error = error.__cause__ or error.__context__ or error
    # A `RetryError` has what it gave up on as its cause.
    for each in (error, getattr(error, "cause", None)):
        code = getattr(each, "grpc_status_code", None)
        if isinstance(code, grpc.StatusCode):
            return code.name
    return None


def _is_of_transaction(error: BaseException) -> bool:
    """Whether the library tells so that all attempts failed, or that none could begin; others raise such errors too."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_name not in {"__call__", "_rollback"}:
        return False
    return trace.tb_frame.f_globals.get("__name__") in _MODULES


@dataclass(frozen=True, slots=True)
class Transactions:
    """A function that runs in a transaction, with all its attempts."""

    measures: Callable[[object], bool]

    def begin(
        self, _of: Any, args: tuple[Any, ...], options: Mapping[str, Any], _activate: bool, /
    ) -> Operation | None:
        """Starts its operation; what it reads and writes are operations within."""
        given: Any = args[0] if args else options.get("transaction")
        if runtime.current is None or given is None or not self.measures(given._client):
            return None
        server = _server(given._client)
        begun = operation.start(_TRANSACTION, "transaction", (_SYSTEM, server.namespace), server.attributes)
        begun.items = 0
        _running[given] = begun
        return begun

    def answered(self, begun: Operation, _answer: Any, /) -> None:
        """Ends it."""
        begun.label(c.DB_TRANSACTION_OUTCOME, "commit")
        begun.stop()

    def failed(self, begun: Operation, error: BaseException, /) -> None:
        """Ends it."""
        begun.label(c.DB_TRANSACTION_OUTCOME, "rollback")
        _fail(begun, error)

    def streamed(self, begun: Operation, error: BaseException | None, count: int, /) -> None:
        """Ends it, though there is no stream."""


def copied(original: Any, copy: Any) -> None:
    """Remembers whose copy a client is: it is measured where that is."""
    try:
        _copied_from[copy] = ref(original)
    except Exception:
        guard.note("remembering a copy of a Firestore client")


def attempt(transaction: Any) -> None:
    """Counts an attempt of a transaction whose function is measured."""
    try:
        around = _running.get(transaction)
        if around is None or around.stopped or around.items is None:
            return
        around.items += 1
        if around.items > 1 and runtime.current is not None and runtime.current is around.runtime:
            runtime.current.at(c.TRANSACTION_RETRIES, (_SYSTEM, around.labels[1])).record(1)
            around.set(_RETRIES, around.items - 1)
    except Exception:
        guard.note("counting the attempts of a transaction")
