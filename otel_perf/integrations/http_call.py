"""One outgoing HTTP call, whichever library makes it: what it is called, what it carries, how it ends.

A call is an operation with a span and `http.client.request.duration`. It is also a call of an API, counted once as
`external.api.duration` under the names that `otel_perf.peers` has for it, unless it stands within
`measure.external(...)`: then that block counts, and fails with the last call in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import propagate
from opentelemetry.context import Context

from otel_perf import conventions as c
from otel_perf import guard, paths, peers, redaction
from otel_perf.telemetry import operation, propagation, runtime, sdk
from otel_perf.telemetry.operation import EXTERNAL, HTTP_CLIENT, Operation
from otel_perf.telemetry.recipients import Recipients

__all__ = ["Body", "Call", "reroute", "start"]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_PORTS = {"http": 80, "https": 443}
_KEPT = 1024
_LONGEST_KEPT = 256
#: What can be shown as it is: no query, no user, nothing that is written in another way.
_PLAIN = re.compile(r"[\w./~%-]{0,1024}", re.ASCII)

# Bound once: they are called for every call.
_get_context, _set_context = sdk.get_context, sdk.set_context
_SUPPRESS_KEY, _SPAN_KEY = sdk.SUPPRESS_KEY, sdk.SPAN_KEY
_now_ns, _wall_ns = time.perf_counter_ns, time.time_ns


class _Origin:
    """Where a call goes: what is the same for all calls to one scheme, host and port."""

    __slots__ = ("host", "peers", "port", "scheme", "trusted", "url")

    def __init__(self, url: str, recipients: Recipients) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        self.scheme = redaction.text(parts.scheme, 16)
        self.host = redaction.text(host, 256)
        self.port = port or _PORTS.get(parts.scheme)
        #: The beginning of a URL, without whoever logs in there.
        self.url = f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}" if host else redaction.MASK
        if port is not None:
            self.url += f":{port}"
        self.peers = peers.find(host)
        self.trusted = recipients.allows(host)


class _Plan:
    """What calls need of one runtime, one propagator and the peers that are declared."""

    __slots__ = ("_origins", "_recipients", "generation", "inject", "propagator", "runtime")

    def __init__(self, in_force: runtime.Runtime | None, propagator: Any) -> None:
        self.runtime = in_force
        self.propagator = propagator
        self.generation: int = peers.generation
        self.inject = propagation.injector(propagator)
        self._recipients = Recipients(in_force.settings.propagate_to if in_force is not None else ())
        self._origins: dict[tuple[str, str], _Origin] = {}

    def origin(self, url: str) -> tuple[_Origin, str]:
        """Where a URL leads, and what stands behind that in it."""
        parts = url.split("/", 3)
        if len(parts) < 3:
            return _Origin(url[:_LONGEST_KEPT], self._recipients), ""
        key = (parts[0], parts[2])
        found = self._origins.get(key)
        if found is None:
            found = _Origin(f"{parts[0]}//{parts[2]}", self._recipients)
            if len(parts[2]) <= _LONGEST_KEPT:
                if len(self._origins) >= _KEPT:  # it is found anew in no time, and holds what is in use
                    self._origins.clear()
                self._origins[key] = found
        return found, parts[3] if len(parts) == 4 else ""


_latest = _Plan(None, None)


def _plan(in_force: runtime.Runtime) -> _Plan:
    global _latest
    known = _latest
    propagator = propagate.get_global_textmap()
    if known.runtime is not in_force or known.propagator is not propagator or known.generation != peers.generation:
        known = _latest = _Plan(in_force, propagator)
    return known


class Call(Operation):
    """One call in flight, redirects, authentication and body included."""

    __slots__ = (
        "_api", "_declared", "_in_force", "_known", "_method", "_origin", "_outer", "_path", "_rest", "_url", "foreign",
        "headers", "seen_ns",
    )  # fmt: skip

    def __init__(self, method: str, url: str, known: _Plan, in_force: runtime.Runtime, outer: Operation | None) -> None:
        self._method = method
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
        attributes: dict[str, Any] = {
            c.HTTP_METHOD: method,
            c.SERVER_ADDRESS: host,
            c.URL_SCHEME: scheme,
            c.URL_FULL: f"{origin.url}/{rest}" if plain else redaction.url(self._url),
            c.URL_TEMPLATE: self._declared or paths.template(self._path),
            c.PEER_SERVICE: self._api[0],
        }
        if port is not None:
            attributes[c.SERVER_PORT] = port
        if method != self._method:
            attributes[c.HTTP_METHOD_ORIGINAL] = redaction.text(self._method, 64)
        return attributes

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
            said: dict[str, Any] = {c.HTTP_STATUS: status}
            if version is not None:
                said[c.PROTOCOL_VERSION] = version
            self.span.set_attributes(said)
            self.told[3], self.told[5] = status, version

    def stop(self, error: BaseException | None = None, *, ended_ns: int | None = None, deactivate: bool = True) -> None:
        """Ends the call; the block around it takes over whether it failed, so that a retry makes good."""
        if self.stopped:
            return
        super().stop(error, ended_ns=ended_ns, deactivate=deactivate)
        try:
            if self._outer is not None:
                self._outer.last_error = self.error_type
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

    def reroute(self, carrier: MutableMapping[str, str], url: str) -> None:
        """Takes the context off a request that leads elsewhere, or puts it on."""
        if self.foreign:
            return
        try:
            for name in self.headers:
                carrier.pop(name, None)
            if self._known.origin(url)[0].trusted:
                self.headers = self.headers or self._carried(_get_context())
                carrier.update(self.headers)
        except Exception:
            guard.note("passing the trace context on")


class Body:
    """Holds a call whose body is read as it comes: it ends with the body, or when nobody has that any more."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call

    def __del__(self) -> None:
        # Nobody read it to its end or closed it. That is no failure, and what came after is not the call's time.
        if not self.call.stopped:
            self.call.stop(ended_ns=self.call.seen_ns)


def start(method: str, url: str, *, foreign: bool = False) -> Call | None:
    """Begins a call and makes it current; None where there is nothing to measure. It never raises.

    Args:
        method: as the request has it.
        url: the whole address.
        foreign: somebody else makes the span, the metric and the headers: only the API is counted.
    """
    try:
        in_force = runtime.current
        if in_force is None:
            return None
        outer: Operation | None = None
        above = operation.current()
        while above is not None:
            if not above.stopped:
                if above.kind is HTTP_CLIENT:
                    return None
                if outer is None and above.kind is EXTERNAL:
                    outer = above
            above = above.parent
        call = Call(method, url, _plan(in_force), in_force, outer)
        call.foreign = foreign
        call.begin()
        return call
    except Exception:
        guard.note("starting an HTTP call")
        return None


def reroute(carrier: MutableMapping[str, str], url: str) -> bool:
    """Whether a call is current; its request to this address, a redirect perhaps, carries what it may."""
    try:
        above = operation.current()
        if isinstance(above, Call) and not above.stopped:
            above.reroute(carrier, url)
            return True
    except Exception:
        guard.note("finding the HTTP call that is current")
    return False
