"""Where our pages stand among the routes of an app: before what takes any path, behind what the app serves itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from otel_perf.integrations.routes import MARK

__all__ = ["Endpoint", "place"]

Endpoint = Callable[[Request], Awaitable[Response]]


def place(routes: list[Any], endpoints: Mapping[str, Endpoint], posted: Collection[str] = ()) -> None:
    """Puts the pages first, since a mount at "/" or a catch-all leaves nothing to what comes behind it.

    Of several mounts on one app the first counts.

    Args:
        routes: those of the app.
        endpoints: by their paths.
        posted: which of the paths are posted to; the others are read.
    """
    before = sum(isinstance(each, _Page) for each in routes)
    routes[before:before] = [
        _Page(path, endpoint, routes, "POST" if path in posted else "GET") for path, endpoint in endpoints.items()
    ]


class _Page(Route):
    """A page that steps aside where the app serves its path itself, and that is never measured."""

    def __init__(self, path: str, endpoint: Endpoint, routes: list[Any], method: str) -> None:
        async def unmeasured(request: Request) -> Response:
            # The settings exclude the path at the root; below a mount only routing tells that it is ours.
            measured = request.scope.get(MARK)
            if measured is not None:
                measured.exclude()
            return await endpoint(request)

        super().__init__(path, unmeasured, methods=[method], include_in_schema=False)
        self._beside = routes
        self._method = method

    def matches(self, scope: Any) -> tuple[Match, Any]:
        match, child_scope = super().matches(scope)
        # Asked anew each time, which only our own paths pay for: the app's routes may come after mount().
        if match is not Match.NONE and _serves(self._beside, self.path, self._method):
            return Match.NONE, {}
        return match, child_scope


def _serves(routes: Iterable[Any], path: str, method: str) -> bool:
    """Whether one of the app's own routes has this very path; one that merely takes it by a pattern does not count."""
    for route in routes:
        own = getattr(route, "path", None)
        contexts = getattr(route, "effective_route_contexts", None)
        if isinstance(route, _Page):
            continue
        if contexts is not None:  # FastAPI keeps included routers whole
            inner = [getattr(each, "starlette_route", None) or each for each in contexts()]
            found = _serves(inner, path, method)
        elif own is None:
            continue
        elif hasattr(route, "endpoint"):
            found = own == path and method in (getattr(route, "methods", None) or (method,))
        else:
            found = path.startswith(f"{own}/") and _serves(
                getattr(route, "routes", None) or (), path[len(own) :], method
            )
        if found:
            return True
    return False
