"""Which integrations there are, and `instrument`, which finds the right one.

An integration is one module; nothing is imported before it is asked for. Adding one is one line here. A library that
is missing, too old or broken is never an exception: `otel_perf.integrations.report()` says what became of each.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, cast

from otel_perf import guard
from otel_perf.integrations.library import Integration, faults
from otel_perf.settings import Settings
from otel_perf.sources import SettingsError
from otel_perf.telemetry import runtime

__all__ = ["INTEGRATIONS", "Handle", "Undo", "elsewhere", "faults", "instrument", "taken", "unwanted"]


class Handle(Protocol):
    """What `instrument` answers: it undoes what was done, also at the end of a `with` block."""

    def undo(self) -> None: ...

    def __enter__(self) -> Handle: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Undo:
    """A handle over a function that puts back what was there; calling it twice changes nothing."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self._steps: list[Callable[[], None]] = list(steps)

    def undo(self) -> None:
        """Puts back what was there, last change first."""
        while self._steps:
            self._steps.pop()()

    def finally_(self, step: Callable[[], None]) -> None:
        """Adds a step that comes after all others."""
        self._steps.insert(0, step)

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


INTEGRATIONS: tuple[Integration, ...] = (
    Integration("fastapi", "starlette", "0.40", whole=True, known_as="fastapi"),
    Integration("sqlalchemy", "sqlalchemy", "2.0", whole=True),
    Integration("asyncpg", "asyncpg", "0.29", whole=True),
    Integration("psycopg", "psycopg", "3.1", whole=True),
    Integration("aiosqlite", "aiosqlite", "0.19", whole=True),
    Integration("sqlite3", "sqlite3", whole=True),
    Integration("redis", "redis", "5.0", whole=True),
    Integration("cashews", "cashews", "7.5", whole=True),
    Integration("httpx", "httpx", "0.27", whole=True),
    Integration("requests", "requests", "2.28", whole=True),
    Integration("aiohttp", "aiohttp", "3.12", whole=True),
    Integration("firestore", "google.cloud.firestore_v1", "2.19", whole=True, distribution="google-cloud-firestore"),
    Integration("celery", "celery", "5.3", whole=True),
    Integration("apscheduler", "apscheduler", "3.10", whole=True),
    Integration("arq", "arq", "0.26", whole=True),
    Integration("taskiq", "taskiq", "0.11", whole=True),
    Integration("structlog", "structlog", "22.1", whole=True),
    Integration("asyncio", "asyncio"),
    Integration("cachetools", "cachetools", "5.3"),
    Integration("functools", "functools"),
    Integration("asgi", "asyncio"),
)

_log = logging.getLogger("otel_perf")

#: How many handles of an integration are in force, by its name.
taken: dict[str, int] = {}


def instrument(target: Any = None, **options: Any) -> Handle:
    """Measures an app, an engine, a client, or a library by name; without a target, all libraries at hand.

    It takes effect at once. The answer undoes it (`handle.undo()`, or a `with` block); for a plain ASGI callable the
    answer is itself the ASGI app: `app = instrument(app)`. A library that is missing, too old or broken is left alone:
    a warning says so where it was asked for by name, and `otel_perf.integrations.report()` in any case.

    Args:
        target: a FastAPI, Starlette or ASGI app, a SQLAlchemy `Engine` or `AsyncEngine`, a Redis client, a cashews
            `Cache`, an httpx client, or a name such as `"httpx"`.
        **options: what the integration takes, for example `engine="native"` for a FastAPI app.

    Raises:
        ValueError: for a name that is unknown.
        TypeError: for a target that nothing knows, or an option that the integration does not take.
    """
    if target is None:
        return _instrument_all(options)
    if isinstance(target, str):
        return _by_name(target, options)
    for each in INTEGRATIONS:
        module = _loaded(each)
        if module is not None and _matches(each, module, target):
            return _take(each, module, target, options)
    own = {kind.__module__.partition(".")[0] for kind in type(target).__mro__}
    unusable = next((each.name for each in INTEGRATIONS if each.requires in own and each.name in faults), None)
    if unusable is not None:
        return _not_measured(unusable)
    known = ", ".join(each.name for each in INTEGRATIONS)
    raise TypeError(f"nothing can instrument {type(target).__qualname__!r}; there are integrations for: {known}")


def _by_name(name: str, options: dict[str, Any]) -> Handle:
    each = next((each for each in INTEGRATIONS if each.name == name and each.whole), None)
    if each is None:
        known = ", ".join(repr(each.name) for each in INTEGRATIONS if each.whole)
        raise ValueError(f"no library {name!r} can be instrumented by name; known are {known}; others take the object")
    if each.found() is None:
        return _not_measured(name, f"it is not installed: pip install 'otel-perf[{name}]'")
    module = _loaded(each, wanted=True)
    if module is not None and options:  # whoever gives options is told what is wrong with them
        return _take(each, module, None, options)
    if module is not None and (handle := _try(each, module)) is not None:
        return handle
    return _not_measured(name)


def _not_measured(name: str, why: str = "it cannot be used") -> Undo:
    _log.warning("otel_perf: %s is not measured: %s", name, faults.get(name, why))
    return Undo()


def _matches(each: Integration, module: Any, target: object) -> bool:
    try:
        return bool(module.matches(target))
    except Exception as error:
        faults[each.name] = f"{type(error).__name__}: {error}"
        return False


def _instrument_all(options: dict[str, Any]) -> Handle:
    if options:
        raise TypeError("instrument() without a target takes no options; name the library that they are for")
    left_alone = unwanted()
    handles: list[Handle] = []
    for each in INTEGRATIONS:
        module = (
            _loaded(each, wanted=True)
            if each.whole and each.name not in left_alone and each.found() is not None
            else None
        )
        handle = None if module is None else _try(each, module)
        if handle is not None:
            handles.append(handle)
    return Undo(*(handle.undo for handle in handles))


def unwanted() -> tuple[str, ...]:
    """The libraries that the settings want to be left alone."""
    if runtime.current is not None:
        return runtime.current.settings.disabled_instrumentations
    try:
        return Settings.load().disabled_instrumentations
    except SettingsError:  # `configure` will say so
        return ()


def elsewhere(each: Integration) -> str | None:
    """Who else measures a library already, where that was imported: without that nobody does."""
    try:
        beside = "opentelemetry.instrumentation" in sys.modules and each.requires in sys.modules
        module: Any = sys.modules.get(f"otel_perf.integrations.{each.name}") or (each.load() if beside else None)
        return None if module is None or not hasattr(module, "elsewhere") else cast("str | None", module.elsewhere())
    except Exception:
        guard.note(f"asking who measures {each.name}")
        return None


def _loaded(each: Integration, *, wanted: bool = False) -> Any:
    """The adapting module where its library can be used, else None; `wanted` imports the library."""
    if not (wanted or each.imported()):
        return None
    try:
        problem = each.problem()
        if problem is None:
            module = each.load()
            faults.pop(each.name, None)
            return module
        faults[each.name] = problem
    except Exception as error:  # half-imported, or something else under this name
        faults[each.name] = f"{type(error).__name__}: {error}"
    return None


def _try(each: Integration, module: Any) -> Handle | None:
    try:
        return _take(each, module, None, {})
    except Exception as error:  # one library that is not as we know it must not cost the others
        faults[each.name] = f"{type(error).__name__}: {error}"
        return None


def _take(each: Integration, module: Any, target: Any, options: dict[str, Any]) -> Handle:
    handle = cast("Handle", module.instrument(target, **options))
    faults.pop(each.name, None)
    if isinstance(handle, Undo):
        taken[each.name] = taken.get(each.name, 0) + 1
        handle.finally_(lambda: taken.__setitem__(each.name, taken[each.name] - 1))
    return handle
