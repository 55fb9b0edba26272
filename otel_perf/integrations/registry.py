"""Which integrations there are, and `instrument`, which finds the right one.

An integration is one module with `instrument(target) -> Handle | None`-like functions; nothing is imported before it
is asked for. Adding one is one line here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, cast

__all__ = ["INTEGRATIONS", "Handle", "Integration", "Undo", "instrument"]


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

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


@dataclass(frozen=True, slots=True)
class Integration:
    """One line of the list: the library it needs and the module that adapts it.

    The module has `matches(target) -> bool` and `instrument(target, **options) -> Handle`; a library that is
    instrumented as a whole takes `target=None`.
    """

    name: str
    requires: str
    whole: bool = False

    def available(self) -> bool:
        """Whether its library can be imported."""
        return importlib.util.find_spec(self.requires) is not None

    def loaded(self) -> bool:
        """Whether its library was imported, without which there can be no object of it."""
        return self.requires in sys.modules or self.requires in sys.stdlib_module_names

    def load(self) -> Any:
        """The adapting module."""
        return importlib.import_module(f"otel_perf.integrations.{self.name}")


INTEGRATIONS: tuple[Integration, ...] = (
    Integration("fastapi", "starlette"),
    Integration("sqlalchemy", "sqlalchemy", whole=True),
    Integration("redis", "redis", whole=True),
    Integration("cashews", "cashews"),
    Integration("httpx", "httpx", whole=True),
    Integration("asgi", "asyncio"),
)


def instrument(target: Any = None, **options: Any) -> Handle:
    """Measures an app, an engine, a client, or a library by name; without a target, all libraries at hand.

    It takes effect at once. The answer undoes it (`handle.undo()`, or a `with` block); for a plain ASGI callable the
    answer is itself the ASGI app: `app = instrument(app)`.

    Args:
        target: a FastAPI, Starlette or ASGI app, a SQLAlchemy `Engine` or `AsyncEngine`, a Redis client, a cashews
            `Cache`, an httpx client, or a name such as `"httpx"`.
        **options: what the integration takes, for example `engine="native"` for a FastAPI app.

    Raises:
        ValueError: for a name that is unknown.
        ImportError: when the library that a name needs is not installed.
        TypeError: for a target that nothing knows.
    """
    if target is None:
        return _instrument_all(options)
    if isinstance(target, str):
        return _by_name(target, options)
    for each in INTEGRATIONS:
        if each.loaded() and each.load().matches(target):
            return cast("Handle", each.load().instrument(target, **options))
    known = ", ".join(each.name for each in INTEGRATIONS)
    raise TypeError(f"nothing can instrument {type(target).__qualname__!r}; there are integrations for: {known}")


def _by_name(name: str, options: dict[str, Any]) -> Handle:
    each = next((each for each in INTEGRATIONS if each.name == name and each.whole), None)
    if each is None:
        known = ", ".join(repr(each.name) for each in INTEGRATIONS if each.whole)
        raise ValueError(f"no library {name!r} can be instrumented by name; known are {known}; others take the object")
    if not each.available():
        raise ImportError(f"instrument({name!r}) needs {each.requires}: pip install 'otel-perf[{name}]'")
    return cast("Handle", each.load().instrument(None, **options))


def _instrument_all(options: dict[str, Any]) -> Handle:
    if options:
        raise TypeError("instrument() without a target takes no options; name the library that they are for")
    handles = [each.load().instrument(None) for each in INTEGRATIONS if each.whole and each.available()]
    return Undo(*(handle.undo for handle in handles))
