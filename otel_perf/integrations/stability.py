"""Stable names where upstream instrumentors measure for us: they read their opt-in once for the life of the process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from otel_perf import guard, sources

__all__ = ["opted_in"]

_log = logging.getLogger("otel_perf")
_CONVENTIONS = ("http", "database")
_told: set[str] = set()


@contextmanager
def opted_in(convention: str) -> Generator[None, None, None]:
    """Stable names for an instrumentor that starts in the block, and for those that start later.

    What the application has chosen in `OTEL_SEMCONV_STABILITY_OPT_IN` stays. Where upstream has begun with the old
    names before, they stay too, which is said once.

    Args:
        convention: the one that the instrumentor keeps to, `http` or `database`.
    """
    with sources.opted_in(*_CONVENTIONS):
        yield
    if convention not in _told and _old(convention):
        _told.add(convention)
        _log.warning(
            "otel_perf: upstream instrumentors were started with the old names before, and keep to them in this "
            "process: set OTEL_SEMCONV_STABILITY_OPT_IN=%s, or instrument with otel_perf first",
            ",".join(_CONVENTIONS),
        )


@guard.safe("asking upstream for its names", fallback=False)
def _old(convention: str) -> bool:
    """Whether upstream has begun with the old names of a convention."""
    module: Any = sys.modules.get("opentelemetry.instrumentation._semconv")
    if module is None:
        return False
    modes: dict[Any, Any] = module._OpenTelemetrySemanticConventionStability._OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING
    return any(kind.value == convention and mode.value == "default" for kind, mode in modes.items())
