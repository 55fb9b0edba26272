"""Celery measured by us and by the upstream instrumentor; says as JSON what came of it. Run by test_celery_beside."""

from __future__ import annotations

import json
import sys
from typing import Any

from celery import Celery
from opentelemetry.instrumentation.celery import CeleryInstrumentor

from otel_perf import instrument, integrations
from otel_perf.testing import capture


def main(upstream_first: bool) -> dict[str, Any]:
    """One good task and one bad one, as a worker runs them."""
    app = Celery("beside", broker="memory://", backend="cache+memory://")

    @app.task(name="good")
    def good() -> int:
        return 1

    @app.task(name="bad")
    def bad() -> None:
        raise LookupError

    with capture() as telemetry:
        switches = [lambda: CeleryInstrumentor().instrument(), lambda: instrument(app)]
        for switch in switches if upstream_first else reversed(switches):
            switch()
        for number, task in enumerate((good, bad)):
            from celery.app.trace import build_tracer

            request = {"id": str(number), "delivery_info": {"routing_key": "q"}, "is_eager": False}
            build_tracer(task.name, task, app=app)(str(number), (), {}, request)
        state = next(each.state for each in integrations.report() if each.library == "celery")
        points = telemetry.points("background.job.duration")
        return {
            "spans": sorted((span.name, span.instrumentation_scope.name) for span in telemetry.spans),
            "runs": sorted([point.attributes["background.job.name"], point.count] for point in points),
            "state": state,
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1] == "upstream")))
