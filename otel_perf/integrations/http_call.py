"""One outgoing HTTP call, whichever library makes it: what it is called, what it carries, how it ends.

A call is an operation with a span and `http.client.request.duration`. It is also a call of an API, counted once as
`external.api.duration` under the names that `otel_perf.peers` has for it, unless it stands within
`measure.external(...)`: then that block counts, and fails with the last call in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

from opentelemetry.context import Context

from otel_perf import conventions as c
from otel_perf import guard, paths, peers, redaction
from otel_perf.integrations.origins import Plan, plan
from otel_perf.telemetry import operation, runtime, sdk
from otel_perf.telemetry.operation import EXTERNAL, HTTP_CLIENT, Operation

__all__ = ["MARK", "Body", "Call", "reroute", "start"]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_LONGEST_PATH = 2048
_NOTHING: Mapping[str, str] = {}
_TRACEPARENT, _TRACESTATE = "traceparent", "tracestate"
#: The attribute of a request that says what we put on it.
MARK = "_otel_perf_headers"
#: What can be shown as it is: no query, no user, nothing that is written in another way.
_PLAIN = re.compile(r"[\w./~%-]{0,1024}", re.ASCII)

# Bound once: they are called for every call.
_get_context, _set_context = sdk.get_context, sdk.set_context
_SUPPRESS_KEY, _SPAN_KEY = sdk.SUPPRESS_KEY, sdk.SPAN_KEY
_now_ns, _wall_ns = time.perf_counter_ns, time.time_ns


class Call(Operation):
    """One call in flight, redirects, authentication and body included."""

    __slots__ = (
        "_api", "_declared", "_in_force", "_known", "_library", "_method", "_origin", "_outer", "_owner", "_path",
        "_rest", "_url", "foreign", "headers", "seen_ns",
    )  # fmt: skip

    def __init__(
        self, method: str, url: str, library: str, owner: object, *, known: Plan, in_force: runtime.Runtime,
        outer: Operation | None,
    ) -> None:  # fmt: skip
        self._method = method
        self._library = library
        self._owner = owner
        if method not in _METHODS:
            method = "_OTHER"
        origin, rest = known.origin(url)
        super().__init__(HTTP_CLIENT, method, [method, origin.host, origin.port, None, origin.scheme, None, None])
        self._origin = origin
        self._path = path = f"/{rest.partition('?')[0].partition('#')[0]}"
        self._rest = rest
        self._url = url
        self._known = known
        self._in_force = in_force
        self._outer = outer
        #: Whether somebody else makes its span and its metric.
        self.foreign = False
        #: What it put into the request to carry the context on.
        self.headers: dict[str, str] = {}
        #: When something was last seen of a body that is read as it comes.
        self.seen_ns = 0
        #: The template of the path, where it was declared.
        self._declared: str | None = None
        api: tuple[str, str, str | None] = (origin.host, method, None)
        for prefix, found in origin.peers:
            if not prefix or path == prefix or path.startswith(f"{prefix}/"):
                does = found.call(method, path)
                api = (found.service, does.operation, found.category)
                if does.template is not None:
                    self._declared, self.name = does.template, f"{method} {does.template}"
                break
        self._api = api

    def begin(self) -> None:
        """Opens the span, finds out what the request is to carry and makes the call current."""
        if not self.foreign:
            self.runtime = in_force = self._in_force
            context = _get_context()
            try:
                if not context.get(_SUPPRESS_KEY):
                    above: Any = context.get(_SPAN_KEY)
                    parent = None if above is None else above.get_span_context()
                    operation.open_span(self, in_force, parent, context, self._attributes)
            except Exception:  # of a sampler or a processor, say: the call is measured without a span
                guard.note("opening the span of an HTTP call")
            if self._origin.trusted:
                self.headers = self._carried(context)
        self.activate()
        self.started_ns = _now_ns()

    def _carried(self, context: Context) -> dict[str, str]:
        try:
            return self._known.inject(self.context or context)
        except Exception:
            guard.note("passing the trace context on")
            return {}

    def _attributes(self) -> dict[str, Any]:
        """What the span starts with, redacted."""
        method, host, port, _, scheme, _, _ = self.labels
        origin, rest = self._origin, self._rest
        plain = rest.isascii() and _PLAIN.fullmatch(rest) is not None
        secrets = self._secrets()
        attributes: dict[str, Any] = {
            c.HTTP_METHOD: method,
            c.SERVER_ADDRESS: host,
            c.URL_SCHEME: scheme,
            c.URL_FULL: f"{origin.url}/{rest}" if plain and not secrets else redaction.url(self._shown(secrets)),
            c.URL_TEMPLATE: self._declared or paths.template(self._path),
            c.PEER_SERVICE: self._api[0],
        }
        if port is not None:
            attributes[c.SERVER_PORT] = port
        if method != self._method:
            attributes[c.HTTP_METHOD_ORIGINAL] = redaction.text(self._method, 64)
        return attributes

    def _secrets(self) -> tuple[tuple[str, str], ...]:
        """What must not be seen of the path, each with what is shown in its place."""
        return peers.secrets(self._declared, self._path[:_LONGEST_PATH])

    def _shown(self, secrets: tuple[tuple[str, str], ...]) -> str:
        if not secrets:
            return self._url
        instead = dict(secrets)
        path = "/".join([instead.get(part, part) for part in self._path[:_LONGEST_PATH].split("/")])
        return f"{self._origin.url}{path}{self._rest[len(self._path) - 1 :]}"

    def _fail(self, error: BaseException | str) -> None:
        """As every operation does; the text of an error may repeat the address."""
        secrets = () if isinstance(error, str) or self.recorded is None else self._secrets()
        if isinstance(error, str) or self.span is None or not secrets:
            super()._fail(error)
            return
        self.error_type = redaction.exception_type(error)
        said = redaction.exception(error)
        # Before anything else is masked in it: what is left of a secret after that would not be known again.
        hidden = redaction.as_text(error)[: redaction.MAX_LENGTH]
        for secret, instead in secrets:
            for spelling in (secret, unquote(secret, errors="replace")):
                hidden = hidden.replace(spelling, instead)
        said[c.EXCEPTION_MESSAGE] = redaction.message(hidden)
        self.span.add_event("exception", said)

    def answered(self, status: int, version: str | None) -> None:
        """Takes over what the response says; from 400 on its status is the error."""
        labels = self.labels
        labels[3] = status
        labels[5] = version
        if status >= 400:
            if self.error_type is None:
                self.error_type = str(status)
        elif self.span is not None and self.recorded is not None:
            # Said at once: nothing of it wants redacting, and at the end nothing is left to say.
            # One by one: `set_attributes` is made for more.
            self.span.set_attribute(c.HTTP_STATUS, status)
            if version is not None:
                self.span.set_attribute(c.PROTOCOL_VERSION, version)
            self.told[3], self.told[5] = status, version

    def stop(self, error: BaseException | None = None, *, ended_ns: int | None = None, deactivate: bool = True) -> None:
        """Ends the call; the block around it takes over whether it failed, so that a retry makes good.

        A retry begins after the failure: what ran beside it does not make good.
        """
        if self.stopped:
            return
        super().stop(error, ended_ns=ended_ns, deactivate=deactivate)
        self._owner = None
        try:
            outer = self._outer
            if outer is not None:
                if self.error_type is not None:
                    outer.last_error, outer.failed_ns = self.error_type, _now_ns()
                elif outer.last_error is not None and self.started_ns >= outer.failed_ns:
                    outer.last_error = None
            elif self._in_force is runtime.current:  # what began before `configure()` was called again is not counted
                self._count_api()
        except Exception:
            guard.note("counting an API call")

    def _count_api(self) -> None:
        recorded = self.recorded
        value: Any = self.seconds
        if recorded is not None and recorded[3] & 1 and self._in_force.exemplars:
            value = (value, recorded[0], recorded[1], _wall_ns())
        self._in_force.at(c.EXTERNAL_DURATION, (*self._api, self.error_type)).record(value)

    def stream(self) -> Body:
        """Leaves the call in flight, no longer current: its body is read as it comes."""
        self.deactivate()
        self.seen_ns = _now_ns()
        return Body(self)

    def carry(self, request: object, carrier: MutableMapping[str, str]) -> None:
        """Puts the context on a request; what the app put there stays, what an earlier call put there does not."""
        try:
            before: Mapping[str, str] = getattr(request, MARK, _NOTHING)
            if self.headers or before:
                self._exchange(carrier, before, self.headers)
                setattr(request, MARK, self.headers)
        except Exception:
            guard.note("passing the trace context on")

    def reroute(self, request: object, carrier: MutableMapping[str, str], url: str) -> None:
        """Takes the context off a request that leads elsewhere, or puts it on; None where nobody sends it again."""
        if self.foreign:
            return
        try:
            before, self._url = self.headers, url
            trusted = self._known.origin(url)[0].trusted
            if trusted:
                self.headers = self.headers or self._carried(_get_context())
            after = self.headers if trusted else _NOTHING
            self._exchange(carrier, before, after)
            if request is not None:
                setattr(request, MARK, after)
        except Exception:
            guard.note("passing the trace context on")

    @staticmethod
    def _exchange(carrier: MutableMapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> None:
        for name, value in before.items():
            if carrier.get(name) == value:
                del carrier[name]
        # Whoever has named a parent has said it all: its `tracestate` is not ours either.
        named = _TRACEPARENT in carrier
        for name, value in after.items():
            if name not in carrier and not (named and name == _TRACESTATE):
                carrier[name] = value

    def belongs(self, library: str, url: str) -> bool:
        """Whether a request that another library sends to this address is the one that is under way here."""
        return self._library != library and self._known.origin(self._url) == self._known.origin(url)

    def owned_by(self, owner: object) -> bool:
        """Whether it is in flight and was started for this owner."""
        return self._owner is owner and not self.stopped


class Body:
    """Holds a call whose body is read as it comes: it ends with the body, or when nobody has that any more."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call

    def __del__(self) -> None:
        # Nobody read it to its end or closed it. That is no failure, and what came after is not the call's time.
        if not self.call.stopped:
            self.call.stop(ended_ns=self.call.seen_ns)


def start(method: str, url: str, library: str = "", owner: object = None, *, foreign: bool = False) -> Call | None:
    """Begins a call and makes it current; None where there is nothing to measure. It never raises.

    A call within another is one of its own, as that for a token is. But a client that has another library send its
    request makes one call: the outermost measures.

    Args:
        method: as the request has it.
        url: the whole address.
        library: whose call it is.
        owner: what `reroute` knows it by.
        foreign: somebody else makes the span, the metric and the headers: only the API is counted.
    """
    try:
        in_force = runtime.current
        if in_force is None:
            return None
        outer: Operation | None = None
        above = operation.current()
        # What an app does under a test client, in the same process, is the app's.
        while above is not None and not above.kind.unit:
            if not above.stopped:
                if isinstance(above, Call):
                    if above.belongs(library, url):
                        return None
                elif outer is None and above.kind is EXTERNAL:
                    outer = above
            above = above.parent
        call = Call(method, url, library, owner, known=plan(in_force), in_force=in_force, outer=outer)
        call.foreign = foreign
        call.begin()
        return call
    except Exception:
        guard.note("starting an HTTP call")
        return None


def reroute(owner: object, request: object, carrier: MutableMapping[str, str], url: str) -> bool:
    """Whether a call of this owner is under way; its request to this address, a redirect, carries what it may."""
    try:
        above = operation.current()
        while above is not None and not above.kind.unit:
            if isinstance(above, Call) and above.owned_by(owner):
                above.reroute(request, carrier, url)
                return True
            above = above.parent
    except Exception:
        guard.note("finding the HTTP call that is current")
    return False
