"""Which of an app's routes a page is: its template, found as routing would find it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

__all__ = ["template"]

_DEEPEST = 16


def template(routes: Iterable[Any], path: str, depth: int = 0) -> str | None:
    """The template of the route that answers a GET of this path; None where there is none."""
    for route in _flat(routes):
        found: Any = getattr(route, "path_regex", None) and route.path_regex.match(path)
        if not found:
            continue
        shown = str(route.path_format)
        if hasattr(route, "endpoint"):
            methods: Any = getattr(route, "methods", None)
            if methods is None or "GET" in methods:
                return shown
            continue
        inner = _routes_within(route)
        if inner is None:  # static files, another kind of app
            return shown
        if depth == _DEEPEST:
            return None
        answer = template(inner, f"/{found.groupdict().get('path', '')}", depth + 1)
        return None if answer is None else shown.removesuffix("/{path}") + answer
    return None


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in list(routes):
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is None:
            yield route
        else:  # FastAPI keeps included routers whole
            yield from (getattr(each, "starlette_route", None) or each for each in contexts())


def _routes_within(mount: Any) -> Any:
    app: Any = getattr(mount, "app", None)
    for _ in range(_DEEPEST):  # through its middlewares
        if app is None:
            return None
        if isinstance(getattr(app, "routes", None), list):
            return app.routes
        app = getattr(app, "app", None)
    return None
