"""A cache operation over keys: which strategy each key belongs to, and which of them were found.

Keys that are asked for together (`MGET`, `get_many`, a pipeline) are counted one by one, each with the duration of
the call that it waited for: so hits / (hits + misses) is the share of *keys* that were found, for every strategy, and
percentiles stay true. What such a call adds to the sum is its duration times its keys. The span, which is one,
says `partial` where some were found and others not.
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
_LONGEST = 2048


def strategy_name(key: Any) -> str | None:
    """The name of the declared strategy that a key belongs to; clients take keys as text, bytes, numbers and more.

    Of a key over 2,048 characters its beginning and its end are held against the patterns.
    """
    found = strategy.find(key if isinstance(key, str) and len(key) <= _LONGEST else _text(key))
    return found.name if found is not None else None


def _text(key: Any) -> str:
    if isinstance(key, (bytes, bytearray, memoryview)):
        raw: Any = key  # pyright: ignore[reportUnknownVariableType]  # a view of anything
        if len(raw) > _LONGEST:
            raw = bytes(raw[: _LONGEST // 2]) + bytes(raw[-_LONGEST // 2 :])
        return str(raw, "utf-8", "replace")
    text = str(key)
    return text if len(text) <= _LONGEST else text[: _LONGEST // 2] + text[-_LONGEST // 2 :]


class Lookup:
    """One call to a cache."""

    __slots__ = ("_strategies", "operation", "result")

    def __init__(self, system: str, name: str, strategies: Sequence[str | None], *, span: bool) -> None:
        self._strategies = strategies
        #: What a span shows: `hit`, `miss`, `none`, and `partial` where only some of the keys were found.
        self.result: str | None = None
        first = strategies[0] if strategies else None
        attributes = {c.CACHE_KEY_COUNT: len(strategies)} if len(strategies) > 1 else None
        self.operation: Operation = operation.start(
            CACHE, f"cache {name}", (system, name, first), attributes, activate=span, span=span
        )

    def stop(self, found: Sequence[bool | None] | None = None, error: BaseException | None = None) -> None:
        """Ends it: `found` says for each key whether it was there, None that nothing was asked for or answered."""
        begun = self.operation
        try:
            if found is None or error is not None or begun.error_type is not None:
                # An outage is neither hit nor miss: it must not move the hit ratio.
                begun.stop(error)
            elif len(found) == 1:
                begun.hit = found[0]
                begun.stop()
            else:
                self._stop_many(begun, found)
        except Exception:
            guard.note("counting a cache operation")
            begun.stop()
        if self.result is None:
            self.result = begun.labels[3]

    def _stop_many(self, begun: Operation, found: Sequence[bool | None]) -> None:
        outcomes = [(name, hit) for name, hit in zip(self._strategies, found, strict=False) if hit is not None]
        # The operation itself stands for a miss where there is one.
        own = next((place for place, (_, hit) in enumerate(outcomes) if not hit), 0)
        name: str | None = None
        if outcomes:
            name, begun.hit = outcomes.pop(own)
            begun.label(c.CACHE_STRATEGY, name)
        in_force = begun.runtime
        partial = begun.hit is False and any(hit for _, hit in outcomes)
        if partial:
            # The span says `partial`, and no metric does: there a key is found or it is not.
            self.result = begun.labels[3] = "partial"
            outcomes.append((name, False))
            begun.runtime = None
        begun.stop()
        if in_force is None or in_force is not runtime.current:
            return
        labels: list[Any] = list(begun.labels)
        for name, hit in outcomes:
            labels[2], labels[3] = name, "hit" if hit else "miss"
            in_force.at(c.CACHE_DURATION, tuple(labels)).record(begun.seconds or 0.0)
