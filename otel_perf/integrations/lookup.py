"""A cache operation over keys: which strategy each key belongs to, and which of them were found.

Keys that are asked for together (`MGET`, `get_many`, a pipeline) are counted one by one, each with the duration of
the call that it waited for: so hits / (hits + misses) is the share of *keys* that were found, for every strategy, and
percentiles stay true. What such a call adds to the sum is its duration times its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otel_perf import conventions as c
from otel_perf import guard, strategy
from otel_perf.telemetry import operation, runtime
from otel_perf.telemetry.operation import CACHE, Operation

__all__ = ["MAX_KEYS", "Lookup", "strategy_name"]

#: Of a call with more keys than this the first ones are counted, so that a huge call stays cheap.
MAX_KEYS = 256


def strategy_name(key: Any) -> str | None:
    """The name of the declared strategy that a key belongs to; clients take keys as text, bytes, numbers and more."""
    if isinstance(key, (bytes, bytearray)):
        key = key.decode("utf-8", "replace")
    found = strategy.find(key if isinstance(key, str) else str(key))
    return found.name if found is not None else None


class Lookup:
    """One call to a cache."""

    __slots__ = ("_in_force", "_strategies", "operation")

    def __init__(self, system: str, name: str, strategies: Sequence[str | None], *, span: bool) -> None:
        self._strategies = strategies
        self._in_force = runtime.current
        first = strategies[0] if strategies else None
        attributes = {c.CACHE_KEY_COUNT: len(strategies)} if len(strategies) > 1 else None
        self.operation: Operation = operation.start(
            CACHE, f"cache {name}", (system, name, first), attributes, activate=span, span=span
        )

    def stop(self, found: Sequence[bool] | None = None, error: BaseException | None = None) -> None:
        """Ends it: `found` says for each key whether it was there, None that nothing was asked for."""
        begun = self.operation
        try:
            if found is None or error is not None or begun.error_type is not None:
                # An outage is neither hit nor miss: it must not move the hit ratio.
                begun.stop(error)
            else:
                self._stop(begun, found)
        except Exception:
            guard.note("counting a cache operation")
            begun.stop()

    def _stop(self, begun: Operation, found: Sequence[bool]) -> None:
        outcomes = list(zip(self._strategies, found, strict=False))
        # The operation itself, and with it the span, stands for a miss where there is one: `hit` means all were found.
        own = next((place for place, (_, hit) in enumerate(outcomes) if not hit), 0)
        if outcomes:
            name, begun.hit = outcomes.pop(own)
            begun.label(c.CACHE_STRATEGY, name)
        begun.stop()
        in_force = self._in_force
        if in_force is None or not outcomes:
            return
        labels: list[Any] = list(begun.labels)
        for name, hit in outcomes:
            labels[2], labels[3] = name, "hit" if hit else "miss"
            in_force.at(c.CACHE_DURATION, tuple(labels)).record(begun.seconds or 0.0)
