"""Hooks that are shared: the first who wants them puts them in, the last takes them out.

For libraries without an official hook, methods of their classes are wrapped once; which objects are measured is asked
at each call. Wrapping objects instead would tie each into a reference cycle, so that an abandoned pipeline would give
its connection back only when the garbage collector comes by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from otel_perf.integrations.registry import Undo

__all__ = ["Holds", "Patch", "Patches"]


class Holds:
    """How many handles hold each target; `target in holds` is asked on hot paths."""

    __slots__ = ("_counts", "_lock")

    def __init__(self) -> None:
        self._counts: MutableMapping[Any, int] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __contains__(self, target: object) -> bool:
        return target in self._counts

    def __len__(self) -> int:
        return len(self._counts)

    def take(
        self, target: Any, put_in: Callable[[], object] | None = None, take_out: Callable[[], object] | None = None
    ) -> Undo:
        """Holds a target until the answer is undone; `put_in` runs for its first holder, `take_out` for its last."""
        with self._lock:
            held = self._counts.get(target, 0)
            if not held and put_in is not None:
                put_in()
            self._counts[target] = held + 1

        def release() -> None:
            with self._lock:
                left = self._counts.get(target, 1) - 1
                if left:
                    self._counts[target] = left
                    return
                self._counts.pop(target, None)
                if take_out is not None:
                    take_out()

        return Undo(release)


class Patch:
    """One method of one class, wrapped while it is wanted."""

    __slots__ = ("_name", "_original", "_ours", "_owner", "_wrap")

    def __init__(self, owner: type, name: str, wrap: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._original: Any = None
        self._ours: Any = None

    def put_in(self) -> None:
        """Wraps the method, unless our wrapper is there already, below somebody else's perhaps."""
        found = vars(self._owner)[self._name]
        if self._ours is not None and _below(found, self._ours):
            return
        self._original, self._ours = found, self._wrap(found)
        setattr(self._owner, self._name, self._ours)

    def take_out(self) -> None:
        """Puts the very same function back; where others wrapped ours meanwhile it stays, and passes calls through."""
        if vars(self._owner)[self._name] is self._ours:
            setattr(self._owner, self._name, self._original)
            self._original = self._ours = None


def _below(found: Any, ours: Any) -> bool:
    while found is not None:
        if found is ours:
            return True
        found = getattr(found, "__wrapped__", None)
    return False


class _Everything:
    """The target that stands for a whole library."""


class Patches:
    """The patched methods of a library, there while the library or an object of it is measured."""

    __slots__ = ("_holds", "_make", "_patches", "_targets", "everything")

    def __init__(self, make: Callable[[], Sequence[Patch]]) -> None:
        self._make = make
        self._patches: Sequence[Patch] = ()
        self._holds = Holds()
        self._targets = Holds()
        self.everything = False

    def measures(self, target: object) -> bool:
        """Whether calls of this object are wanted."""
        return self.everything or target in self._targets

    def take(self, target: object | None) -> Undo:
        """Measures one object, or with None everything, until the answer is undone."""
        patched = self._holds.take(_Everything, self._put_in, self._take_out)
        if target is None:
            chosen = self._targets.take(_Everything, lambda: self._set(True), lambda: self._set(False))
        else:
            chosen = self._targets.take(target)
        return Undo(patched.undo, chosen.undo)

    def _set(self, everything: bool) -> None:
        self.everything = everything

    def _put_in(self) -> None:
        self._patches = self._patches or self._make()
        for patch in self._patches:
            patch.put_in()

    def _take_out(self) -> None:
        for patch in reversed(self._patches):
            patch.take_out()
