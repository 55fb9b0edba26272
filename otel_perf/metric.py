"""A metric as it is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["InstrumentKind", "Metric"]

InstrumentKind = Literal["counter", "updowncounter", "histogram", "gauge"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is declared: name, unit (UCUM), kind, attribute keys in label order, explicit bucket bounds."""

    name: str
    unit: str
    kind: InstrumentKind
    about: str
    attributes: tuple[str, ...] = ()
    #: None for the reader's own; an empty one is a single bucket.
    buckets: tuple[float, ...] | None = None
    experimental: bool = False
