"""What is patched may be anything that Python calls as a method, wrapped by others already."""

from __future__ import annotations

import asyncio
import functools

import wrapt

from otel_perf.integrations.patch import Patch


class Store:
    """Something to patch."""

    def get(self, key: str) -> tuple[str, str]:
        return type(self).__name__, key

    async def fetch(self, key: str) -> tuple[str, str]:
        return type(self).__name__, key

    @classmethod
    def connect(cls, name: str) -> tuple[str, str]:
        return cls.__name__, name


def _seen(calls):
    def wrap(original):
        @functools.wraps(original)
        def call(self, *args):
            calls.append(args)
            return original(self, *args)

        return call

    return wrap


def test_a_wrapper_by_wrapt_below_ours_knows_its_object():
    """Where a wrapper by wrapt was there first it is given its object apart from the arguments, as without ours."""
    given, calls = [], []

    def theirs(wrapped, instance, args, kwargs):
        given.append((instance, args))
        return wrapped(*args, **kwargs)

    before = dict(vars(Store))
    wrapped = {name: wrapt.FunctionWrapper(vars(Store)[name], theirs) for name in ("get", "fetch", "connect")}
    patches = [Patch(Store, name, _seen(calls)) for name in wrapped]
    try:
        for name, wrapper in wrapped.items():
            setattr(Store, name, wrapper)
        for patch in patches:
            patch.put_in()
        store = Store()
        assert store.get("a") == asyncio.run(store.fetch("a")) == Store.connect("a") == ("Store", "a")
        assert given == [(store, ("a",)), (store, ("a",)), (Store, ("a",))]
        assert calls == [("a",)] * 3
        for patch in patches:
            patch.take_out()
        assert all(vars(Store)[name] is wrapper for name, wrapper in wrapped.items())
    finally:
        for name in wrapped:
            setattr(Store, name, before[name])


def test_a_class_method_that_was_bound_meanwhile_is_ours_still():
    """What upstream's unwrapping leaves of a class method is taken for ours, and the very same object comes back."""
    original, patch = vars(Store)["connect"], Patch(Store, "connect", _seen([]))
    patch.put_in()
    Store.connect = Store.connect  # type: ignore[method-assign]  # as upstream's unwrap does
    patch.take_out()
    assert vars(Store)["connect"] is original
