"""Statements of SQL drivers: what one does is read once and kept, and the transaction is known that it is part of.

A driver's integration starts an operation here and ends it here. Transactions are told from where a connection stands
after each statement, which holds for implicit ones, for those that are begun by hand and for autocommit alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sized
from functools import lru_cache
from typing import Any

from opentelemetry import trace

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations.registry import Undo
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.kind import Kind
from otel_perf.telemetry.opening import Known
from otel_perf.telemetry.operation import QUERY, Operation

__all__ = [
    "Prepared", "Server", "Session", "batch_size", "begin", "control", "driver", "finish", "missed", "nested",
    "records_durations", "server", "spanned", "status_code", "transaction_ended", "unreachable", "upstream",
]  # fmt: skip

_COMMITS = frozenset({"COMMIT", "END"})
_ROLLS_BACK = frozenset({"ROLLBACK", "ABORT"})
_CONTROL = frozenset({"BEGIN", "START", "SAVEPOINT", "RELEASE"}) | _COMMITS | _ROLLS_BACK
#: Seen from below it is a query, so that a driver leaves it alone; it shows nowhere.
_TRANSACTION_CONTROL = Kind("transaction control", c.QUERY_DURATION, layer="query")
_MAX_STATEMENTS = 256  # for each database
_MAX_KEPT = 4096  # characters; longer statements are read each time


#: How many handles measure drivers. While there are some, what stands on drivers tells them what is not theirs.
drivers: int = 0


def driver(handle: Undo) -> Undo:
    """Takes note of a driver that is measured, until the answer is undone."""
    global drivers
    drivers += 1
    return Undo(_released, handle.undo)


def _released() -> None:
    global drivers
    drivers -= 1


class Prepared:
    """What there is to say of one statement to one database."""

    __slots__ = ("control", "known", "labels", "name")

    def __init__(self, of: Server, statement: str) -> None:
        read = redaction.sql(statement)
        self.name = read.summary
        #: BEGIN, COMMIT, SAVEPOINT and the like are no queries.
        self.control = read.operation in _CONTROL
        self.labels = (of.system, read.operation, read.collection, of.namespace)
        labels = zip(QUERY.duration.attributes, self.labels, strict=False)
        known = {key: value for key, value in labels if value is not None}
        known |= {**of.attributes, c.DB_QUERY_SUMMARY: read.summary}
        #: All attributes of its span, redacted; the text is masked.
        self.known = Known({**redaction.redact(known), c.DB_QUERY_TEXT: str(read.text)})


class Server:
    """One database: its labels, the span attributes of all its queries, and the statements that it was sent."""

    __slots__ = ("attributes", "namespace", "statements", "system")

    def __init__(self, system: str, namespace: str | None, address: str | None = None, port: int | None = None) -> None:
        self.system = system
        self.namespace = namespace
        self.attributes: dict[str, Any] = {}
        if address:
            self.attributes[c.SERVER_ADDRESS] = address
        if address and port:
            self.attributes[c.SERVER_PORT] = port
        #: What `prepared` has read already; hot paths look here first.
        self.statements: dict[str, Prepared] = {}

    @property
    def name(self) -> str:
        """A name for its pool, as the conventions build one: `address:port/database`."""
        host, port = self.attributes.get(c.SERVER_ADDRESS, ""), self.attributes.get(c.SERVER_PORT)
        return f"{host}:{port}/{self.namespace}" if port else f"{host or self.system}/{self.namespace or ''}"

    def prepared(self, statement: str) -> Prepared:
        """What there is to say of a statement; of many different ones not all are kept."""
        found = self.statements.get(statement)
        if found is None:
            found = Prepared(self, statement)
            if len(statement) <= _MAX_KEPT:
                if len(self.statements) >= _MAX_STATEMENTS:
                    self.statements.clear()
                self.statements[statement] = found
        return found


@lru_cache(maxsize=64)
def server(system: str, namespace: str | None, address: str | None = None, port: int | None = None) -> Server:
    """The same database for all connections to it."""
    return Server(system, namespace, address, port)


class Session:
    """One connection of a driver: its database, and since when it is in a transaction of ours."""

    __slots__ = ("began_ns", "error_type", "server")

    def __init__(self, of: Server) -> None:
        self.server = of
        self.began_ns = 0
        #: Of the last statement in the transaction.
        self.error_type: str | None = None

    def settle(self, verb: str | None, error_type: str | None, began_ns: int, *, inside: bool) -> None:
        """Takes note of where the connection stands after what was done from `began_ns` on: in a transaction or not."""
        if inside:
            self.began_ns = self.began_ns or began_ns
            self.error_type = error_type
        elif self.began_ns:
            began_ns, self.began_ns = self.began_ns, 0
            if verb in _ROLLS_BACK or (error_type is not None and verb not in _COMMITS):
                transaction_ended(self.server, began_ns, "rollback", error_type or self.error_type)
            elif verb != "PREPARE":  # the first phase of two: who knows how it ends
                transaction_ended(self.server, began_ns, "commit", error_type)

    def ended(self, verb: str, error: BaseException | None = None, *, inside: bool = False) -> None:
        """Takes note of a call that ends a transaction, such as a connection's `commit`."""
        try:
            self.settle(verb, None if error is None else redaction.exception_type(error), 0, inside=inside)
        except Exception:
            guard.note("measuring a transaction")


def transaction_ended(of: Server, began_ns: int, outcome: str, error_type: str | None) -> None:
    """Counts a transaction that began at `began_ns` and ends now."""
    in_force = runtime.current
    if in_force is not None:
        seconds = (time.perf_counter_ns() - began_ns) / 1e9
        in_force.at(c.TRANSACTION_DURATION, (of.system, of.namespace, outcome, error_type)).record(seconds)


def nested() -> bool:
    """Whether somebody above measures what is done here already."""
    above = operation.current()
    return above is not None and above.within("query")


def begin(
    of: Server, statement: str, *, batch: int | None = None, span: bool = True, metrics: bool = True
) -> Operation | None:
    """Starts the operation of a statement, or answers None where there is nothing to measure.

    Transaction control gets one that shows nowhere: it lets `finish` know what was done.
    """
    if runtime.current is None or nested():
        return None
    prepared = of.prepared(statement)
    if prepared.control:
        return control(prepared)
    known = prepared.known
    if batch is not None and batch > 1:  # of one it is no batch
        known = Known({**known, c.DB_BATCH_SIZE: batch})
    return operation.start(QUERY, prepared.name, prepared.labels, known, span=span, metrics=metrics)


def control(prepared: Prepared) -> Operation:
    """Starts what shows nowhere: transaction control, or what a library does of its own accord."""
    return operation.start(_TRANSACTION_CONTROL, prepared.name, prepared.labels, span=False, metrics=False)


def finish(
    session: Session, begun: Operation, error: BaseException | None = None, *, inside: bool, rows: int | None = None
) -> None:
    """Ends what `begin` started; `inside` says whether the connection is in a transaction now."""
    try:
        if error is not None:
            begun.set(c.DB_STATUS, status_code(error))
        elif rows is not None:
            begun.set(c.DB_ROWS, rows)
    except Exception:
        guard.note("describing a query")
    begun.stop(error)
    try:
        session.settle(begun.labels[1], begun.error_type, begun.started_ns, inside=inside)
    except Exception:
        guard.note("measuring a transaction")


def missed(of: Server, statement: str, error: BaseException, began_ns: int, *, span: bool = True) -> None:
    """Counts a failure of something that is no operation where it goes well: preparing, fetching more, connecting."""
    begun = begin(of, statement, span=span)
    if begun is not None:
        begun.started_ns = began_ns
        begun.set(c.DB_STATUS, status_code(error))
        begun.stop(error)


def status_code(error: BaseException) -> str | None:
    """What the database says of an error: SQLSTATE, or SQLite's own name for it."""
    for name in ("sqlstate", "pgcode", "sqlite_errorname"):
        code = getattr(error, name, None)
        if isinstance(code, str):
            return code
    return None


def batch_size(rows: object) -> int | None:
    """How many rows there are, where that can be told without reading them."""
    return len(rows) if isinstance(rows, Sized) else None


def upstream(library: str, instrumentor: str) -> str | None:
    """The upstream instrumentor of a library, where it is at work: it makes the spans."""
    module: Any = sys.modules.get(f"opentelemetry.instrumentation.{library}")
    kind: Any = getattr(module, instrumentor, None)
    if kind is None or not kind().is_instrumented_by_opentelemetry:
        return None
    return f"opentelemetry-instrumentation-{library}"


def spanned(library: str) -> bool:
    """Whether the upstream instrumentor of a library, which stands above ours, made a span for this very call."""
    scope = f"opentelemetry.instrumentation.{library}"
    if scope not in sys.modules:
        return False
    made: Any = getattr(trace.get_current_span(), "instrumentation_scope", None)
    return made is not None and made.name == scope


def unreachable(of: Server, error: BaseException, began_ns: int) -> None:
    """Counts a connection that cannot be had as one failed operation."""
    missed(of, "CONNECT", error, began_ns)


def records_durations() -> bool:
    """Whether upstream's DB-API instrumentors record `db.client.operation.duration`: by an opt-in of theirs."""
    module: Any = sys.modules.get("opentelemetry.instrumentation._semconv")
    known: Any = getattr(module, "_OpenTelemetrySemanticConventionStability", None)
    modes: dict[Any, Any] = getattr(known, "_OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING", {})
    return any(str(getattr(mode, "value", "")).startswith("database") for mode in modes.values())
