"""Names of instruments and meters that come from other libraries: checked as the SDK checks them, or made text.

What no exporter can write must be found where it is made; at the export it would cost everybody's metrics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_perf.telemetry import labels

__all__ = ["about", "check", "scope", "text"]

_NAME = re.compile(r"[a-zA-Z][-_./a-zA-Z0-9]{0,254}")
_UNIT = re.compile(r"[\x00-\x7F]{0,63}")


def check(name: object, unit: object) -> None:
    """Refuses a name or a unit that OpenTelemetry does not allow.

    Raises:
        Exception: of that very class, as the SDK does.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Exception(  # noqa: TRY002  # the SDK's class
            f"the name of an instrument is a letter, then letters, digits, `_`, `.`, `-` and `/`, 255 at most: {name!r}"
        )
    if not isinstance(unit, str) or not _UNIT.fullmatch(unit):
        raise Exception(f"the unit of {name} is ASCII text of 63 characters at most: {unit!r}")  # noqa: TRY002  # as above


def about(description: object) -> str:
    """A description as every exporter can write it."""
    return "" if description is None else str(labels.clean_value(description))


def text(given: object) -> str | None:
    """A name or a version of a scope as text; None stays, since it says that there is none."""
    return None if given is None else str(labels.clean_value(given))


def scope(
    name: object, version: object, schema_url: object, attributes: Mapping[str, Any] | None
) -> InstrumentationScope:
    """The scope of a meter or a tracer, in text that every exporter can write."""
    clean = labels.clean(attributes) if isinstance(attributes, Mapping) else None
    return InstrumentationScope(text(name) or "", text(version), text(schema_url), clean)
