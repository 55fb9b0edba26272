"""How a setting is declared and read: each reader takes what a source gave or raises with what it expected."""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field
from typing import Any, cast
from urllib.parse import unquote, urlsplit

__all__ = ["address", "choice", "flag", "number", "pairs", "setting", "text", "whole", "words"]

_BARE = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]+/?")


def text(value: object) -> str:
    """Text as it is."""
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def flag(value: object) -> bool:
    """True or false, in the words that people use for them."""
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return known[str(value).strip().lower()]
    except KeyError:
        raise ValueError("expected true or false") from None


def number(low: float, high: float) -> Callable[[object], float]:
    """A reader of numbers within bounds."""

    def parse(value: object) -> float:
        try:
            read = float(str(value))
        except ValueError:
            read = math.nan
        if not low <= read <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return read

    return parse


def whole(low: int, high: int) -> Callable[[object], int]:
    """A reader of whole numbers within bounds."""

    def parse(value: object) -> int:
        try:
            read = int(str(value))
        except ValueError:
            read = low - 1
        if not low <= read <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return read

    return parse


def choice(*choices: str) -> Callable[[object], str]:
    """A reader of one of several words."""

    def parse(value: object) -> str:
        chosen = str(value).strip().lower()
        if chosen not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return chosen

    return parse


def address(value: object) -> str:
    """An absolute HTTP address, without a slash at its end; or host:port alone, which gRPC takes."""
    address = str(value).strip()
    bare = _BARE.fullmatch(address) is not None
    parts = urlsplit(f"//{address}" if bare else address)
    if not bare and (parts.scheme not in {"http", "https"} or not parts.hostname):
        raise ValueError("expected an absolute address such as http://localhost:4318")
    if "@" in parts.netloc:
        raise ValueError("an address with a user name or password is not sent anywhere; put the secret into `headers`")
    if "#" in address:
        raise ValueError("what comes after a # is never sent to a server; remove it, or write %23")
    _ = parts.port  # raises ValueError for a port that is not a number
    return address.rstrip("/")


def words(value: object) -> tuple[str, ...]:
    """Several words: a list, or text parted by commas."""
    given: object = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise TypeError("expected a list, or text parted by commas")
    parts = [text(part).strip() for part in cast("Sequence[object]", given)]
    return tuple(part for part in parts if part)


def pairs(value: object) -> dict[str, str]:
    """Key=value pairs parted by commas, percent-decoded, or a mapping."""
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in cast("Mapping[object, object]", value).items()}
    pairs: dict[str, str] = {}
    for part in str(value).split(","):
        if not part.strip():
            continue
        key, equals, item = part.partition("=")
        if not equals or not key.strip():
            raise ValueError("expected key=value pairs parted by commas")
        pairs[unquote(key.strip())] = unquote(item.strip())
    return pairs


def setting(
    parse: Callable[[object], Any], about: str, *, default: Any = MISSING, factory: Any = MISSING,
    standard: str | None = None, secret: bool = False, scale: float = 1,
    convert: Callable[[float], float] | None = None,
) -> Any:  # fmt: skip
    """A field of Settings: `standard` is its OTEL_ variable; `scale` or `convert` turn that one's unit into ours."""
    metadata: dict[str, Any] = {
        "parse": parse, "about": about, "standard": standard, "secret": secret, "scale": scale,
        "convert": convert or (None if scale == 1 else functools.partial(operator.mul, scale)),
    }  # fmt: skip
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)
