"""The process of one scenario: it sets itself up once, then answers one order per line until its input closes.

`python -m tests.benchmarks.child NAME SINK CORE`: orders and answers are JSON. Standard output carries answers only.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from tests.benchmarks import scenarios
from tests.benchmarks.scenarios import Ready

__all__ = ["main"]


class _Requests:
    """Answers orders about requests of one scenario."""

    def __init__(self, name: str, sink: str) -> None:
        self._ready: Ready = scenarios.prepare(name, sink)
        self._apps: dict[int, Any] = {}

    def _app(self, routes: int) -> Any:
        if routes not in self._apps:
            app = scenarios.application(routes)
            # What add_middleware() and the like give back is not the app; what they change is.
            self._ready.apply(app)
            self._apps[routes] = app
        return self._apps[routes]

    def cpu(self, kind: str, requests: int, routes: int = 5) -> float:
        """Microseconds of CPU per request."""
        from tests.benchmarks import asgi

        async def measure() -> float:
            await asgi.checked(self._app(routes), asgi.KINDS[kind])
            return await asgi.cpu_per_request_us(self._app(routes), self._ready, asgi.KINDS[kind], requests)

        return asyncio.run(measure())

    def calls(self, kind: str, routes: int) -> dict[str, Any]:
        """Python calls per request."""
        from tests.benchmarks import asgi
        from tests.benchmarks.counting import count_async

        app = self._app(routes)

        async def measure() -> dict[str, Any]:
            await asgi.checked(app, asgi.KINDS[kind])
            return (await count_async(lambda: asgi.request(app, asgi.KINDS[kind]))).as_dict()

        return asyncio.run(measure())

    def names(self, kind: str, routes: int) -> list[str]:
        """The functions that one request calls."""
        from tests.benchmarks import asgi, counting

        app = self._app(routes)
        return asyncio.run(counting.names(lambda: asgi.request(app, asgi.KINDS[kind])))

    def subject(self, name: str, measured: bool) -> dict[str, Any]:
        """Python calls of one of the other things that can be measured."""
        from tests.benchmarks import counting
        from tests.benchmarks.subjects import SUBJECTS

        with SUBJECTS[name](measured) as do:
            if inspect.iscoroutinefunction(do):
                return asyncio.run(counting.count_async(do)).as_dict()
            return counting.count(do).as_dict()

    def serve(self, answer: Callable[..., None]) -> None:
        """A real uvicorn with one worker; tells its port and runs until our input closes."""
        from tests.benchmarks import serving

        serving.serve(self._app(5), lambda port: answer(value=port))


def _orders(name: str, sink: str) -> Any:
    if name in scenarios.SCENARIOS:
        return _Requests(name, sink)
    from tests.benchmarks import libraries, micro

    return libraries.Orders(name, sink) if "/" in name else micro.Orders(name, sink)


def main() -> None:
    """Serves orders. What goes wrong is an answer too, so that one scenario that cannot run leaves the others."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand among the answers

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    name, sink, core = sys.argv[1:4]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    try:
        at = _orders(name, sink)
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(value="ready")
    for line in sys.stdin:
        order = json.loads(line)
        do: Callable[..., Any] = getattr(at, order.pop("do"))
        try:
            if do.__name__ == "serve":
                do(answer)
                return
            answer(value=do(**order))
        except Exception as error:
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
