"""`otel_perf.testing.FakeCollector` in the words of tests that are older; new ones use it itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from otel_perf.testing import FakeCollector, attributes, behaviour

__all__ = ["Receiver", "attributes", "dead", "receiver", "silent"]


class Receiver:
    """What arrived, as protobuf messages, each with its resource."""

    def __init__(self, collector: FakeCollector) -> None:
        self._collector = collector
        self.url = collector.url

    @property
    def requests(self) -> list[tuple[str, dict[str, str]]]:
        """Paths and headers."""
        return [(each.path, dict(each.headers)) for each in self._collector.requests]

    @property
    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """Resources and spans."""
        return [(each.resource, each.data) for each in self._collector.spans]

    @property
    def metrics(self) -> list[tuple[dict[str, Any], Any]]:
        """Resources and metrics."""
        return [(each.resource, each.data) for each in self._collector.metrics]

    def metric(self, name: str) -> Any:
        """The newest metric of this name."""
        return self._collector.metric(name).data


@contextlib.contextmanager
def receiver() -> Iterator[Receiver]:
    """A real server on a free loopback port, for the length of the block."""
    with FakeCollector() as collector:
        yield Receiver(collector)


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with FakeCollector(behaviour.hang()) as collector:
        yield collector.url


def dead() -> str:
    """An address where nobody listens."""
    with FakeCollector() as collector:
        pass
    return collector.url
