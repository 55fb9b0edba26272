"""The phases of FastAPI requests, as an option: dependencies, endpoint and serialization.

Three functions that FastAPI's routing finds by name each time are wrapped, and only while somebody wants phases:
`solve_dependencies`, `run_endpoint_function` and `serialize_response` have been there, called the same way, from 0.115
on, while the hooks of FastAPI's own telemetry are private and new. Names of spans are those of that telemetry.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import trace

from otel_perf import conventions as c
from otel_perf import guard, redaction
from otel_perf.integrations import native, plan
from otel_perf.integrations.functions import qualified_name
from otel_perf.integrations.patch import Patch, Patches
from otel_perf.integrations.registry import Undo
from otel_perf.integrations.request import in_progress
from otel_perf.integrations.routes import Routes
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.kind import PHASE
from otel_perf.telemetry.operation import Operation

__all__ = ["take"]

_MODULE = "fastapi.routing"
_WRAPPED = {
    "solve_dependencies": "dependencies", "run_endpoint_function": "endpoint", "serialize_response": "serialization",
}  # fmt: skip

_INVALID = "fastapi.exceptions.RequestValidationError"
_lock = threading.Lock()
# How many apps leave it to the settings, and what is wrapped for them while the settings want it.
_followers = 0
_followed: Undo | None = None


def take(routes: Routes, wanted: bool | None) -> Undo:
    """Measures the phases of an app, or with None as long as the settings say so, until the answer is undone."""
    routes.phases = wanted
    if wanted is False or sys.modules.get(_MODULE) is None:
        return Undo()
    if wanted:
        return _patches.take(None)
    _follow(1)
    return Undo(lambda: _follow(-1))


def _follow(change: int = 0) -> None:
    global _followers, _followed
    with _lock:
        _followers += change
        in_force = runtime.current
        wanted = _followers > 0 and in_force is not None and in_force.settings.request_phases
        if wanted and _followed is None:
            _followed = _patches.take(None)
        elif not wanted and _followed is not None:
            _followed.undo()
            _followed = None


plan.when_changed.append(guard.safe("following the settings", fallback=None)(_follow))


def _make() -> Sequence[Patch]:
    module: Any = sys.modules[_MODULE]
    return [Patch(module, name, _wrapper(phase)) for name, phase in _WRAPPED.items() if name in vars(module)]


_patches = Patches(_make)


def _wrapper(name: str) -> Callable[[Any], Any]:
    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        async def measured(*args: Any, **kwargs: Any) -> Any:
            phase = _begin(name)
            if phase is None:
                return await original(*args, **kwargs)
            try:
                answer = await original(*args, **kwargs)
            except BaseException as error:
                _end(phase, error)
                raise
            _end(phase, None, invalid=name == "dependencies" and getattr(answer, "errors", None))
            return answer

        return measured

    return wrap


def _begin(name: str) -> Operation | None:
    try:
        return _phase(name)
    except Exception:
        guard.note("beginning a phase")
        return None


def _phase(name: str) -> Operation | None:
    request, in_force = in_progress(), runtime.current
    if request is None or in_force is None:
        return None
    wanted = request.phases
    if not (in_force.settings.request_phases if wanted is None else wanted):
        return None
    endpoint = request.routed.get("endpoint")
    attributes = None if endpoint is None else {c.CODE_FUNCTION: qualified_name(endpoint)}
    shown = native.shows_parts(request.routed)
    return operation.start(PHASE, f"fastapi.{name}", (name, request.route()), attributes, span=not shown)


def _end(phase: Operation, error: BaseException | None, *, invalid: Any = None) -> None:
    try:
        if invalid:  # FastAPI raises it later, and answers 422
            phase.fail(_INVALID)
        _stop(phase, error)
    except Exception:
        guard.note("ending a phase")


def _stop(phase: Operation, error: BaseException | None) -> None:
    # The exception itself stands on the span of the request, once.
    status = getattr(error, "status_code", None)
    if isinstance(status, int):  # an `HTTPException` is an answer
        if status >= 500:
            phase.fail(str(status))
    elif error is not None:
        phase.fail(redaction.exception_type(error))
    phase.stop(deactivate=False)
    # What a dependency with a `yield` has made current stays so until it ends.
    if operation.current() is phase and (phase.span is None or trace.get_current_span() is phase.span):
        phase.deactivate()
