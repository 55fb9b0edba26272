"""What the arguments of a client's call tell of it: its collection, and the shape of its filter."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.handle import Measured
from otel_perf.telemetry.operation import QUERY

__all__ = ["Calls", "Told", "takes"]

#: The name of an argument, its place where it has one, and its default.
_Place = tuple[str, "int | None", Any]

#: Whose filters may be read as SQL. A filter in another language (`genre = horror`) has values that nothing sets apart.
_SQL_SYSTEMS = frozenset(
    ("actian.ingres", "aws.redshift", "clickhouse", "cockroachdb", "derby", "duckdb", "firebirdsql", "gcp.spanner",
     "h2database", "hsqldb", "ibm.db2", "ibm.informix", "ibm.netezza", "mariadb", "microsoft.sql_server", "mssql",
     "mysql", "oracle.db", "other_sql", "postgresql", "sap.hana", "sap.maxdb", "snowflake", "sqlite", "teradata",
     "trino")
)  # fmt: skip
_HIDDEN = redaction.Masked("?")
_NAME = re.compile(r"[^\W\d][\w.:/-]{0,127}")
_IDENTITY = re.compile(r"\d{6}|[0-9a-fA-F-]{16}")  # of a user, a session: no name of a collection


def _parameters(method: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(method).parameters
    except (TypeError, ValueError):  # of C
        return {}


def takes(method: Callable[..., Any], argument: str) -> bool:
    """Whether a method may be given an argument of this name."""
    found = _parameters(method)
    return not found or argument in found or any(each.kind is each.VAR_KEYWORD for each in found.values())


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is said to be, and which arguments tell more of its calls."""

    system: str
    collection: str | None = None
    collection_argument: str | None = None
    filter_argument: str | None = None


class Calls:
    """The calls of one method: their operation, and what their arguments tell of it."""

    __slots__ = ("_collection_at", "_filter_at", "_handle", "_name", "_told")

    def __init__(self, method: Callable[..., Any], name: str, told: Told) -> None:
        self._name, self._told = name, told
        self._collection_at = _place(method, told.collection_argument)
        self._filter_at = _place(method, told.filter_argument)
        self._handle = self._measured(told.collection, {})

    def _measured(self, collection: str | None, attributes: Mapping[str, Any]) -> Measured:
        name = f"{self._name} {collection}" if collection else self._name
        return Measured(QUERY, name, (self._told.system, self._name, collection), attributes)

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Measured:
        """What measures this call."""
        if self._collection_at is None and self._filter_at is None:
            return self._handle
        try:
            collection = self._told.collection
            attributes: dict[str, Any] = {}
            given = _argument(self._collection_at, args, kwargs)
            if isinstance(given, str):
                collection = _name(given)
            given = _argument(self._filter_at, args, kwargs)
            if given is not None:
                attributes = {c.DB_QUERY_TEXT: self._shape(given)}
            return self._measured(collection, attributes)
        except Exception:
            guard.note("reading the arguments of a client")
            return self._handle

    def _shape(self, given: Any) -> redaction.Masked:
        if not isinstance(given, str):
            return redaction.document(given)
        return redaction.query_text(given) if self._told.system in _SQL_SYSTEMS else _HIDDEN

    def stream(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Measures a generator function, or an async one, over the whole length of what it yields."""
        if self._collection_at is None and self._filter_at is None:
            return self._handle(method)
        if inspect.isgeneratorfunction(method):

            @functools.wraps(method)
            def stream(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                source: Generator[Any, Any, Any] = self.of(args, kwargs)(method)(*args, **kwargs)
                return (yield from source)

            return stream

        @functools.wraps(method)
        async def later(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            source: AsyncGenerator[Any, Any] = self.of(args, kwargs)(method)(*args, **kwargs)
            try:
                async for item in source:
                    yield item
            finally:
                await source.aclose()

        return later


def _name(given: str) -> str:
    """The name of a collection; `?` for what does not look like one."""
    return given if _NAME.fullmatch(given) and not _IDENTITY.search(given) else "?"


def _place(method: Callable[..., Any], argument: str | None) -> _Place | None:
    """By which name an argument is given, where it stands, and what it is when it is not given."""
    if argument is None:
        return None
    for place, each in enumerate(_parameters(method).values()):
        if each.name == argument:
            default = None if each.default is each.empty else each.default
            return argument, None if each.kind is each.KEYWORD_ONLY else place, default
    return argument, None, None


def _argument(at: _Place | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if at is None:
        return None
    name, place, default = at
    return args[place] if place is not None and place < len(args) else kwargs.get(name, default)
