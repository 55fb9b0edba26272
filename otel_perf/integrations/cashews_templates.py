"""The templates that cashews makes its keys and tags from: they name what belongs to no declared strategy.

A key does not say what it was made from. cashews makes all keys of decorated functions by one function, which is
wrapped while a cache is measured; it notes the template of the last thousands of keys, since a key is used right after
it was made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from otel_perf import guard, redaction, strategy
from otel_perf.integrations.lookup import strategy_name

__all__ = ["caches", "noted", "of_tag", "strategy_of"]

_KEPT = 1024  # so many keys are kept, and as many older ones
_LONGEST = 512  # characters of a key, and of a tag
_NAME = 128

#: The caches that were seen, whose tags are known.
caches: WeakSet[Any] = WeakSet()
_newer: dict[str, str] = {}
_older: dict[str, str] = {}


def noted(original: Callable[..., str]) -> Callable[..., str]:
    """Wraps the function that makes a key from its template."""

    @functools.wraps(original)
    def default_format(template: str, **values: Any) -> str:
        global _newer, _older
        key = original(template, **values)
        try:
            if len(key) <= _LONGEST:
                if len(_newer) >= _KEPT:
                    _newer, _older = {}, _newer
                _newer[key] = template
        except Exception:
            guard.note("noting the template of a key")
        return key

    return default_format


def strategy_of(key: Any) -> str | None:
    """The declared strategy of a key, else the template that it was made from, else None."""
    name = strategy_name(key)
    if name is None and isinstance(key, str):
        template = _newer.get(key) or _older.get(key)
        name = None if template is None else redaction.text(template, _NAME)
    return name


@functools.lru_cache(maxsize=256)
def _parts(template: str) -> tuple[str, ...]:
    return strategy.split(template)


def of_tag(tag: str) -> str | None:
    """The template of a tag, among those that decorated functions were given; None for any other."""
    if len(tag) > _LONGEST:
        return None
    for cache in list(caches):
        for template in list(cache._tags_registry._registry_template):
            if strategy.matches(tag, _parts(template)):
                return redaction.text(template, _NAME)
    return None
