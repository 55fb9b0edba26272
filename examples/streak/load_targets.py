"""What a run under load must reach, and where it may go: nothing here drives anything."""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["BadTargetError", "Verdict", "judge", "p", "read_targets", "require_loopback"]

_DEFAULT = Path(__file__).with_name("load_targets.json")


class BadTargetError(ValueError):
    """A target, or an address, that cannot be used; the text says what would do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure beside its target."""

    name: str
    value: float | None
    """None when it could not be told; `why` says the reason."""
    target: float
    why: str = ""

    @property
    def met(self) -> bool:
        """Tell whether the target is reached; what is not known is not."""
        return self.value is not None and self.value <= self.target


def read_targets(path: Path | None = None) -> dict[str, float]:
    """Read a file of targets, one JSON object; what it does not name keeps the target of this folder's own file."""
    targets: dict[str, float] = json.loads(_DEFAULT.read_text(encoding="utf-8"))
    if path is None:
        return targets
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise BadTargetError(f"{path} cannot be read as JSON ({problem})") from None
    if not isinstance(given, dict):
        raise BadTargetError(f'{path} is no JSON object: write {{"calendar_p95_ms": 150}}')
    for name, target in given.items():
        if name not in targets:
            raise BadTargetError(f"{path}: there is no figure {name!r}: use {', '.join(targets)}")
        if isinstance(target, bool) or not isinstance(target, (int, float)) or not math.isfinite(target):
            raise BadTargetError(f"{path}: the target of {name} is no number")
        targets[name] = target
    return targets


def judge(values: Mapping[str, float | None], targets: Mapping[str, float], why: str = "") -> list[Verdict]:
    """Put each value beside its target."""
    return [
        Verdict(name, value, targets[name], "" if value is not None else why or "it was not measured")
        for name, value in values.items()
    ]


def require_loopback(url: str) -> str:
    """Return an address of this machine as it is, and refuse any other: load on a stranger is an attack."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        raise BadTargetError("that is no address: use http://127.0.0.1:8000") from None
    if parts.scheme != "http" or port is None or not _is_loopback(host):
        raise BadTargetError(
            f"{host or 'no host'!r} is not on loopback: load is put on this machine only, such as http://127.0.0.1:8000"
        )
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # names too: what `localhost` resolves to is not ours to say


def p(share: float, sorted_values: Sequence[float]) -> float:
    """Return the value that this share of them does not exceed, one of those that were measured: nearest rank."""
    return sorted_values[max(0, math.ceil(share * len(sorted_values)) - 1)]
