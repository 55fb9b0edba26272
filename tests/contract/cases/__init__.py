"""Cases of the contract suite, a file for each integration.

A case sets a library up, does one measured thing, and says what else there is to know: how to make it fail with a
given exception, and what an undo must leave as it was. Each public class of a file that has a `name` is a case.
"""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from typing import Any

import pytest

__all__ = ["EXEMPT", "AsyncCase", "Case", "Servers", "found"]

#: Integrations without a case, and why.
EXEMPT = {
    "fastapi": "what comes in has a contract of its own: test_fastapi, test_engines",
    "structlog": "nothing is measured, events get ids: test_structlog",
    "asyncio": "a loop has no calls: test_asyncio, test_loops",
    "cachetools": "a cache's counts are read, no call of it is measured: test_cachetools",
    "functools": "a function's counts are read, no call of it is measured: test_functools",
    "asgi": "what comes in has a contract of its own: test_asgi",
    "apscheduler": "a scheduler hands nothing to a caller: test_apscheduler has its contract",
    "arq": "a worker hands nothing to a caller: test_arq has its contract",
}


class Servers:
    """Where the real servers are; each is started when it is first asked for."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    @property
    def redis_url(self) -> str:
        """The address of a Redis."""
        return str(self._request.getfixturevalue("redis_server").url)

    def server(self, fixture: str) -> Any:
        """Any other server, by the name of its fixture in tests/servers.py."""
        return self._request.getfixturevalue(fixture)


class Case:
    """One library, set up and ready to be measured."""

    name = ""
    metric = "db.client.operation.duration"

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.target: Any = None
        #: The exception that the library meets below us, and whether it waits there.
        self.error: BaseException | None = None
        self.hangs = False

    def work(self) -> Any:
        """Do one measured thing and answer its result."""
        raise NotImplementedError

    def hostile(self) -> Any:
        """The same with input that is as odd as it gets."""
        raise NotImplementedError

    def state(self) -> list[Any]:
        """What an undo must leave as it was, object by object."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open."""


class AsyncCase(Case):
    """A case with a loop of its own."""

    def __init__(self, servers: Servers) -> None:
        super().__init__(servers)
        self.loop = asyncio.new_event_loop()

    async def do(self, *, odd: bool = False) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close what is open."""

    async def meet(self) -> None:
        if self.error is not None:
            raise self.error
        if self.hangs:
            await asyncio.sleep(30)

    def work(self) -> Any:
        return self.loop.run_until_complete(self.do())

    def hostile(self) -> Any:
        return self.loop.run_until_complete(self.do(odd=True))

    def close(self) -> None:
        self.loop.run_until_complete(self.aclose())
        self.loop.close()


def found() -> list[type[Case]]:
    """All cases, in the order of their files."""
    cases: list[type[Case]] = []
    for each in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        module = importlib.import_module(f"{__name__}.{each.name}")
        public = [value for name, value in vars(module).items() if not name.startswith("_")]
        cases += [kind for kind in public if isinstance(kind, type) and issubclass(kind, Case) and kind.name]
    return cases
