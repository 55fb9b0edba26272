"""Hooks that are shared: the first who wants them puts them in, the last takes them out.

For libraries without an official hook, methods of their classes are wrapped once; which objects are measured is asked
at each call. Wrapping objects instead would tie each into a reference cycle, so that an abandoned pipeline would give
its connection back only when the garbage collector comes by.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType, ModuleType
from typing import Any, Protocol
from weakref import ref

from otel_perf.integrations.registry import Undo

__all__ = ["Answered", "Begin", "Begun", "Holds", "Patch", "Patches", "around", "around_async"]


class Holds:
    """How many handles hold each target; `target in holds` is asked on hot paths.

    Targets are held weakly and known by their identity: asking `ids` for that is no Python call.
    """

    __slots__ = ("_lock", "_refs", "ids")

    def __init__(self) -> None:
        #: How many handles hold a target, by its `id`; a target that is gone is not in it.
        self.ids: dict[int, int] = {}
        self._refs: dict[int, ref[Any]] = {}
        self._lock = threading.Lock()

    def __contains__(self, target: object) -> bool:
        return id(target) in self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def targets(self) -> list[Any]:
        """Those that are held and alive."""
        found = (each() for each in list(self._refs.values()))
        return [target for target in found if target is not None]

    def take(
        self, target: Any, put_in: Callable[[], object] | None = None, take_out: Callable[[], object] | None = None
    ) -> Undo:
        """Holds a target until the answer is undone; `put_in` runs for its first holder, `take_out` for its last."""
        key, ids, refs = id(target), self.ids, self._refs

        def gone(_: object) -> None:
            ids.pop(key, None)
            refs.pop(key, None)

        with self._lock:
            held = ids.get(key, 0)
            if not held:
                if put_in is not None:
                    put_in()
                refs[key] = ref(target, gone)
            ids[key] = held + 1

        def release(target: Any = target) -> None:  # whoever could release it keeps it alive, and with it its `id`
            del target
            with self._lock:
                left = ids.get(key, 1) - 1
                if left:
                    ids[key] = left
                    return
                ids.pop(key, None)
                refs.pop(key, None)
                if take_out is not None:
                    take_out()

        return Undo(release)


class Patch:
    """One method of one class, or one function of a module, wrapped while it is wanted."""

    __slots__ = ("_name", "_original", "_ours", "_owner", "_wrap")

    def __init__(self, owner: type | ModuleType, name: str, wrap: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._wrap = wrap
        self._original: Any = None
        self._ours: Any = None

    def put_in(self) -> None:
        """Wraps the method, unless our wrapper is there already, below somebody else's perhaps."""
        found: Any = vars(self._owner)[self._name]
        if self._ours is not None and _below(found, self._ours):
            return
        self._original, self._ours = found, _wrapped(self._owner, found, self._wrap)
        setattr(self._owner, self._name, self._ours)

    def take_out(self) -> None:
        """Puts the very same function back; where others wrapped ours meanwhile it stays, and passes calls through."""
        if _is(vars(self._owner)[self._name], self._ours):
            setattr(self._owner, self._name, self._original)
            self._original = self._ours = None


def _wrapped(owner: type | ModuleType, found: Any, wrap: Callable[[Any], Any]) -> Any:
    """Wraps what a class or a module has; `wrap` always gets what it can call with the object first."""
    if type(found) is FunctionType or isinstance(owner, ModuleType):
        return wrap(found)
    if isinstance(found, classmethod):
        return classmethod(wrap(_binding(found, to_class=True)))  # pyright: ignore[reportUnknownArgumentType]  # of anything
    if isinstance(found, staticmethod):
        return staticmethod(wrap(found.__get__(None, owner)))
    return wrap(_binding(found))


def _binding(found: Any, *, to_class: bool = False) -> Callable[..., Any]:
    """Calls what is no plain function as Python itself would: bound to its object first.

    A wrapper by wrapt, which upstream instrumentors and others use, knows its object only so.
    """

    def bound(owner: Any) -> Callable[..., Any]:
        if not hasattr(found, "__get__"):
            return found  # type: ignore[no-any-return]  # Python binds no such thing
        call: Callable[..., Any] = found.__get__(None, owner) if to_class else found.__get__(owner, type(owner))
        return call

    if inspect.iscoroutinefunction(found.__func__ if to_class else found):

        @functools.wraps(found)
        async def call_async(self: Any, *args: Any, **options: Any) -> Any:
            return await bound(self)(*args, **options)

        return call_async

    @functools.wraps(found)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        return bound(self)(*args, **options)

    return call


def _is(found: Any, ours: Any) -> bool:
    # Who takes a wrapper off a class method may leave what is bound to the class in its place.
    return found is ours or (isinstance(ours, classmethod) and _function(found) is _function(ours))  # pyright: ignore[reportUnknownArgumentType]  # of anything


def _function(method: Any) -> Any:
    return method.__func__ if isinstance(method, (classmethod, MethodType)) else method  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # as above


def _below(found: Any, ours: Any) -> bool:
    while found is not None:
        if _is(found, ours):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


class _Everything:
    """The target that stands for a whole library."""


class Patches:
    """The patched methods of a library, there while the library or an object of it is measured."""

    __slots__ = ("_holds", "_make", "_patches", "_targets", "everything", "ids")

    def __init__(self, make: Callable[[], Sequence[Patch]]) -> None:
        self._make = make
        self._patches: Sequence[Patch] = ()
        self._holds = Holds()
        self._targets = Holds()
        #: `everything or id(target) in ids` is what `measures(target)` answers, for hot paths.
        self.everything = False
        self.ids = self._targets.ids

    def targets(self) -> list[Any]:
        """The objects that are measured one by one."""
        return [target for target in self._targets.targets() if target is not _Everything]

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


class Begun(Protocol):
    """What measures one call of a method."""

    def stop(self, error: BaseException | None = None) -> None: ...


class Answered:
    """The same where the answer says something too."""

    __slots__ = ()

    def stop(self, error: BaseException | None = None) -> None:
        """Ends it after an exception."""
        raise NotImplementedError

    def answered(self, answer: Any) -> None:
        """Ends it after an answer."""
        raise NotImplementedError


Begin = Callable[[Any, tuple[Any, ...]], Begun | None]


def _stop(begun: Any, error: BaseException) -> None:
    begun.stop(error)


def around(begin: Begin, failed: Callable[[Any, BaseException], None] = _stop) -> Callable[[Any], Any]:
    """What wraps a method: `begin` is given its object and its arguments, and may answer None for a call of no concern.

    Neither `begin` nor what it answers may raise.
    """

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def measured(self: Any, *args: Any, **options: Any) -> Any:
            begun = begin(self, args)
            if begun is None:
                return original(self, *args, **options)
            try:
                answer = original(self, *args, **options)
            except BaseException as error:
                failed(begun, error)
                raise
            if isinstance(begun, Answered):
                begun.answered(answer)
            else:
                begun.stop()
            return answer

        return measured

    return wrap


def around_async(begin: Begin, failed: Callable[[Any, BaseException], None] = _stop) -> Callable[[Any], Any]:
    """The same for a coroutine method."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        async def measured(self: Any, *args: Any, **options: Any) -> Any:
            begun = begin(self, args)
            if begun is None:
                return await original(self, *args, **options)
            try:
                answer = await original(self, *args, **options)
            except BaseException as error:
                failed(begun, error)
                raise
            if isinstance(begun, Answered):
                begun.answered(answer)
            else:
                begun.stop()
            return answer

        return measured

    return wrap
