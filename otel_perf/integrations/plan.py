"""What the path of a request needs of one runtime and one propagator, made once for each of the two."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from otel_perf import conventions as c
from otel_perf import guard
from otel_perf.telemetry import propagation, runtime, sdk
from otel_perf.telemetry.route_classes import Classes
from otel_perf.telemetry.series import Series

__all__ = ["Plan", "current", "excluded", "latest", "when_changed"]


class Plan:
    """Settings as the hot path wants them, and what reads a caller's trace context."""

    __slots__ = (
        "_extract", "_names", "_pattern", "_trust", "actives", "beginnings", "carried", "classes", "paths",
        "propagator", "runtime", "simple", "trace_response",
    )  # fmt: skip

    def __init__(self, in_force: runtime.Runtime | None, propagator: Any) -> None:
        self.runtime = in_force
        self.propagator = propagator
        self._extract = propagation.extractor(propagator)
        self._names = {name.lower().encode("latin-1"): name for name in self._extract.fields}
        #: Series of active requests by method and scheme: see `active`.
        self.actives: dict[tuple[str, str], Series] = {}
        #: The headers by which trace context travels.
        self.carried = frozenset(self._names)
        self._trust = "always" if in_force is None else in_force.settings.trust_context
        self.trace_response = in_force is not None and in_force.settings.trace_response
        rules = () if in_force is None else in_force.settings.route_classes
        #: The declared classes of routes; None where there are none.
        self.classes = Classes(rules) if rules else None
        given = in_force.settings.excluded_routes if in_force is not None else ()
        #: Paths that the settings exclude, and beginnings of such; whether that and a look at the path is all.
        self.paths = frozenset(each for each in given if "*" not in each)
        wild = [each for each in given if "*" in each]
        # Most patterns only say how a path begins.
        self.beginnings = tuple(each[:-1] for each in wild if each.index("*") == len(each) - 1)
        others = [each for each in wild if each[:-1] not in self.beginnings]
        expressions = [".*".join(re.escape(part) for part in each.split("*")) for each in others]
        self._pattern = re.compile("|".join(expressions), re.DOTALL) if expressions else None
        self.simple = self._pattern is None

    def excludes(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether the settings exclude the path of a request."""
        path: str = scope["path"]
        root: str = scope.get("root_path") or ""
        if root and path.startswith(root) and path[len(root) :].startswith("/"):
            path = path[len(root) :]
        if path in self.paths or path.startswith(self.beginnings):
            return True
        return self._pattern is not None and self._pattern.fullmatch(path) is not None

    def active(self, method: str, scheme: str) -> Series | None:
        """The series of active requests of this method and scheme; None before `configure()`."""
        if self.runtime is None:
            return None
        found = self.actives[method, scheme] = self.runtime.at(c.REQUESTS_ACTIVE, (method, scheme))
        return found

    def caller(
        self, seen: dict[bytes, bytes], scheme: str, context: Context
    ) -> tuple[SpanContext | None, Context, tuple[Link, ...]]:
        """The caller's span, the context that it gives, and links to callers that are not believed."""
        above: Any = context.get(sdk.SPAN_KEY)
        local: SpanContext | None = None if above is None else above.get_span_context()
        try:
            carrier = {text: seen[name].decode("latin-1") for name, text in self._names.items() if name in seen}
            caller, with_caller = self._extract(carrier, context)
        except Exception:
            # Propagators read what a stranger sent: the request counts all the same.
            guard.note("reading the trace context of a request")
            return local, context, ()
        if self._trust == "always" or (self._trust == "same-origin" and _same_origin(seen, scheme)):
            return caller or local, with_caller, ()
        return local, context, () if caller is None else (Link(caller),)


def _same_origin(seen: dict[bytes, bytes], scheme: str) -> bool:
    """Whether a browser says that a page of this very service sent the request; others cannot say so."""
    site, origin, host = seen.get(b"sec-fetch-site"), seen.get(b"origin"), seen.get(b"host")
    if site is not None:
        return site == b"same-origin"
    return origin is not None and host is not None and origin == b"%s://%s" % (scheme.encode(), host)


#: Called when a plan is made anew: what the settings switch on and off follows them there.
when_changed: list[Callable[[], None]] = []

#: The newest plan, which `current` makes anew where it is out of date.
latest = Plan(None, propagate.get_global_textmap())


def current() -> Plan:
    """The plan of the runtime in force and of the propagators that the application has set."""
    global latest
    plan = latest
    propagator = propagate.get_global_textmap()
    if plan.runtime is not runtime.current or plan.propagator is not propagator:
        plan = latest = Plan(runtime.current, propagator)
        for follow in when_changed:
            follow()
    return plan


@guard.safe("matching an excluded route", fallback=False)
def excluded(scope: MutableMapping[str, Any]) -> bool:
    """Whether the settings in force exclude the path of a request."""
    return current().excludes(scope)
