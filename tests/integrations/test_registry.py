"""`instrument`: which integration it finds, and what it says when there is none."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
import redis
import sqlalchemy as sa
from cashews import Cache

from otel_perf import instrument
from otel_perf.integrations import registry
from otel_perf.integrations.patch import Holds, Patch
from tests.conftest import Telemetry


def test_the_target_decides(telemetry: Telemetry) -> None:
    """An object is taken by the integration of its library."""
    targets = [sa.create_engine("sqlite://"), redis.Redis(), Cache(), httpx.Client(), httpx.AsyncClient()]
    for target in targets:
        taken = [each.name for each in registry.INTEGRATIONS if each.load().matches(target)]
        assert len(taken) == 1, f"{target!r} is taken by {taken}"
        with instrument(target) as handle:
            assert handle is not None


@pytest.mark.parametrize("name", ["sqlachemy", "", "functools"])
def test_a_name_that_cannot_be_taken(name: str) -> None:
    """A name that is unknown, or of a library that is not taken as a whole, gets the list of those that are."""
    with pytest.raises(ValueError, match=r"'sqlalchemy'.*'redis'.*'httpx'"):
        instrument(name)


def test_a_target_that_nothing_knows() -> None:
    """The message names the integrations there are."""
    with pytest.raises(TypeError, match=r"'int'.*sqlalchemy"):
        instrument(7)


def test_options_need_a_target() -> None:
    """Options are for one integration; an unknown one is refused."""
    with pytest.raises(TypeError, match="without a target"):
        instrument(engine="upstream")
    with pytest.raises(TypeError):
        instrument("httpx", nonsense=True)


def test_everything_and_back(telemetry: Telemetry) -> None:
    """`instrument()` takes all libraries at hand; undo leaves their classes as they were."""
    before = (httpx.Client.send, redis.Redis.execute_command)
    with instrument():
        assert httpx.Client.send is not before[0]
        assert redis.Redis.execute_command is not before[1]
    assert (httpx.Client.send, redis.Redis.execute_command) == before


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    """Importing otel_perf, and instrumenting an object of one library, imports no other library."""
    code = (
        "import sys, otel_perf\n"
        "libraries = {'sqlalchemy', 'redis', 'cashews', 'httpx', 'starlette'}\n"
        "assert not libraries & set(sys.modules), libraries & set(sys.modules)\n"
        "import httpx\n"
        "otel_perf.instrument(httpx.Client())\n"
        "assert libraries & set(sys.modules) == {'httpx'}, libraries & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_holds_count() -> None:
    """The first holder puts in, the last takes out, and a handle counts once however often it is undone."""

    class Target:
        """Something to hold."""

    calls: list[str] = []
    holds, target = Holds(), Target()
    first = holds.take(target, lambda: calls.append("in"), lambda: calls.append("out"))
    second = holds.take(target, lambda: calls.append("in"), lambda: calls.append("out"))
    first.undo()
    first.undo()
    assert (calls, target in holds) == (["in"], True)
    second.undo()
    assert (calls, target in holds) == (["in", "out"], False)
    del target
    assert len(holds) == 0


def test_a_patch_puts_the_same_function_back() -> None:
    """Put in and taken out again and again, the class ends with the function that it began with."""

    class Library:
        """Something to patch."""

        def call(self) -> str:
            return "answer"

    before = Library.call
    patch = Patch(Library, "call", lambda original: lambda self: f"measured {original(self)}")
    for _ in range(2):
        patch.put_in()
        patch.put_in()
        assert Library().call() == "measured answer"
        patch.take_out()
        patch.take_out()
        assert Library.call is before
