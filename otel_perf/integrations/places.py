"""Where a request or a connection went, as its span says it: the class of its route, and what no route took.

A template that is made of a path is a guess, so it is on spans only and never a label: strangers choose paths.
"""

from __future__ import annotations

from otel_perf import conventions as c
from otel_perf import paths, redaction
from otel_perf.integrations.routes import Scope, local_path
from otel_perf.telemetry.route_classes import Classes

__all__ = ["attributes"]


def attributes(scope: Scope, route: str | None, classes: Classes | None, *, unmatched: bool) -> dict[str, str]:
    """The class, where rules are declared, and the template of a path that no route took; by the path as apps see it.

    Args:
        scope: the scope as it was routed.
        route: the template of the route, if one took it.
        classes: the rules.
        unmatched: whether the answer was that there is nothing here.
    """
    found: dict[str, str] = {}
    if route is None and unmatched:
        # Nobody vouches for a path that leads nowhere: short keys are masked too.
        found[c.URL_PATH] = redaction.text(paths.without_tokens(scope["path"]))
        found[c.URL_TEMPLATE] = redaction.text(paths.template(local_path(scope)), 512)
    if classes is not None:
        name = classes.of_template(route) if route is not None else classes.of_path(local_path(scope))
        if name is not None:
            found[c.ROUTE_CLASS] = name
    return found
