"""The names of the environment that the service reads, its own and those of otel_perf."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["VARIABLES"]

_ROOT = Path(__file__).parents[2]


def _named_in(path: str, pattern: str) -> set[str]:
    return set(re.findall(pattern, (_ROOT / path).read_text(encoding="utf-8")))


VARIABLES = _named_in("examples/streak/settings.py", r'"((?:[A-Z]+_)+[A-Z]+)"') | _named_in(
    "docs/settings.md", r"`(OTEL_[A-Z_]+)`"
)
