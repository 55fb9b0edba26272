"""Which route answered: templates by the objects that routing leaves in the scope, without walking routes per request.

Starlette and FastAPI leave the innermost route or its endpoint in the scope, but not the mounts on the way to it. So
the app's routes are walked once, each found under its own identity with the templates of its mounts in front, and
walked again when the scope holds one that is unknown. Nothing is imported for it: routes are known by what they have.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from otel_perf import guard

__all__ = ["MARK", "Routes", "Scope", "local_path"]

Scope = MutableMapping[str, Any]

#: The scope key of our own record of a request. It survives the copies that middlewares make of the scope.
MARK = "otel_perf"

_DEEPEST = 16
# Objects that no walk finds (routers of people's own making) must not cost a walk each time.
_FUTILE_WALKS = 32
_FUTILE_FOR_S = 60.0
_MOST_STRANGERS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """One way to one route: `mounts` lead to it. Keeping the owner alive keeps its id its own."""

    owner: Any
    template: str | None
    mounts: tuple[Any, ...] = ()
    #: What the scope's endpoint is when this mount itself answered; None for routes.
    mounted: Any = None
    #: Whether no walk found it: what leads to it is not known.
    stranger: bool = False

    def fits(self, path: str) -> bool:
        """Whether a path leads here, by the expressions that the framework compiled."""
        for mount in (*self.mounts, self.owner):
            expression = getattr(mount, "path_regex", None)
            found = expression.match(path) if expression is not None else None
            if found is None:
                return False
            path = f"/{found.groupdict().get('path', '')}"
        return True


class _Probe:
    """Stands before a router and notes the scope that it routes, which may be a copy of the server's."""

    __slots__ = ("app",)

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Any, send: Any) -> Awaitable[None]:
        request = scope.get(MARK)
        if request is not None:
            # An endpoint may ask its own app, or another, with a copy of the scope: that is no way of this request.
            endpoint = scope.get("endpoint")
            if endpoint is None:
                if request.router is None:
                    request.router = self
                    request.routed = scope
            elif hasattr(endpoint, "routes") or hasattr(endpoint, "app"):
                request.routed = scope
        answer: Awaitable[None] = self.app(scope, receive, send)
        return answer


class Routes:
    """The templates of one app."""

    __slots__ = ("_app", "_found", "_futile", "_probed", "_since", "phases")

    def __init__(self, app: Any) -> None:
        self._app = app
        #: Whether the phases of its requests are measured; None leaves it to the settings.
        self.phases: bool | None = None
        self._found: dict[int, list[_Entry]] = {}
        self._futile, self._since = 0, 0.0
        self._probed: list[tuple[Any, _Probe]] = []

    def template(self, scope: Scope) -> str | None:
        """The template of the route that a routed scope tells of; None where no route matched."""
        route = scope.get("route")
        if route is not None:
            inner: Any = scope.get("fastapi")
            context = inner.get("effective_route_context") if inner else None
            # Only then: the context of a mount or a plain route stays there and shadows the inner route.
            key = context if context is not None and context.original_route is route else route
            entries = self._found.get(id(key)) or self._learn(key)
            first = entries[0]
            if first.mounted is None or scope.get("endpoint") is first.mounted:
                alone = len(entries) == 1 and not first.stranger
                return first.template if alone else self._fitting(key, entries, scope)
        endpoint = scope.get("endpoint")
        if endpoint is None:
            return None
        return self._fitting(endpoint, self._found.get(id(endpoint)) or self._learn(endpoint), scope)

    def _fitting(self, key: Any, entries: list[_Entry], scope: Scope) -> str | None:
        """The template of the way to an object that leads there from the path of the request: there may be several."""
        path = local_path(scope)
        for entry in entries:
            if entry.fits(path):
                return entry.template
        # One more may have come since the last walk.
        for entry in self._learn(key):
            if entry.fits(path):
                return entry.template
        # No route rather than a wrong one: of a stranger the template may lack what its mounts have in front.
        return entries[0].template if len(entries) == 1 and not entries[0].stranger else None

    def _learn(self, key: Any) -> list[_Entry]:
        now = time.monotonic()
        if now - self._since >= _FUTILE_FOR_S:
            self._since, self._futile = now, 0
        if self._futile < _FUTILE_WALKS:
            before = self._found.get(id(key), [])
            self.refresh()
            entries = self._found.get(id(key), [])
            if len(entries) > len(before):
                return entries
            self._futile += 1
            if entries:
                return entries
        template = getattr(key, "path_format", None)
        entries = [_Entry(key, template if isinstance(template, str) else None, stranger=True)]
        if len(self._found) < _MOST_STRANGERS:
            self._found[id(key)] = entries
        return entries

    def refresh(self) -> None:
        """Walks the routes, as they are now."""
        found: dict[int, list[_Entry]] = {}
        try:
            self._enter(self._app, (), found)
        except Exception:
            guard.note("reading the routes")
        self._found = found

    def _enter(self, app: Any, mounts: tuple[Any, ...], found: dict[int, list[_Entry]]) -> None:
        inner = _routed(app)
        if inner is None or len(mounts) > _DEEPEST:
            return
        self._probe(getattr(inner, "router", inner))
        for route in _flat(inner.routes):
            self._add(route, mounts, found)

    def _add(self, route: Any, mounts: tuple[Any, ...], found: dict[int, list[_Entry]]) -> None:
        if hasattr(route, "endpoint"):
            entry = _Entry(route, _prefix(mounts) + str(getattr(route, "path_format", "")), mounts)
            found.setdefault(id(route), []).append(entry)
            found.setdefault(id(route.endpoint), []).append(entry)
            return
        app = getattr(route, "app", None)
        if app is None:
            return
        leads_on = _routed(app) is not None
        path = str(getattr(route, "path_format", ""))
        # A mount that leads on has no template itself: where nothing within matched, no route did.
        entry = _Entry(route, None if leads_on or not path else _prefix(mounts) + path, mounts, app)
        found.setdefault(id(route), []).append(entry)
        found.setdefault(id(app), []).append(entry)
        if leads_on:
            # A host has no path: it is no part of the template.
            self._enter(app, (*mounts, route) if hasattr(route, "path_regex") else mounts, found)

    def _probe(self, router: Any) -> None:
        below = getattr(router, "middleware_stack", None)
        known = isinstance(below, _Probe) or any(each is router for each, _ in self._probed)
        if below is not None and not known:
            probe = router.middleware_stack = _Probe(below)
            self._probed.append((router, probe))

    def undo(self) -> None:
        """Puts back what stood at the routers; where others wrapped ours meanwhile it stays and does nothing."""
        while self._probed:
            router, probe = self._probed.pop()
            if router.middleware_stack is probe:
                router.middleware_stack = probe.app


def local_path(scope: Scope) -> str:
    """The path of a request without what a proxy or a mount has in front of it."""
    path: str = scope["path"]
    root = scope.get("app_root_path")
    root = scope.get("root_path", "") if root is None else root
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _prefix(mounts: tuple[Any, ...]) -> str:
    return "".join(mount.path_format.removesuffix("/{path}") for mount in mounts)


def _routed(app: Any) -> Any:
    """The first object with routes, from an app inwards through its middlewares; None where there is none."""
    for _ in range(_DEEPEST):
        if app is None or isinstance(getattr(app, "routes", None), list):
            return app
        app = getattr(app, "app", None)
    return None


def _flat(routes: list[Any]) -> Iterator[Any]:
    """Routes as they are matched: FastAPI keeps included routers whole, with contexts that hold the full templates."""
    for route in list(routes):
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:
            for context in contexts():
                own = getattr(context, "starlette_route", None)
                yield context if own is None else own
