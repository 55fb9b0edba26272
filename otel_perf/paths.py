"""Paths without what changes from call to call: `/users/42/files` is `/users/{id}/files`.

Each part of a path is looked at on its own. Numbers are `{id}`, UUIDs `{uuid}`, and what looks like a key, a hash or
another long word of letters and digits is `{token}`. It is a guess, so the answer belongs on spans and not on metrics.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["is_token", "template", "without_tokens"]

_LONGEST = 2048
_MOST_PARTS = 16
_MOST_KEPT_PARTS = 64
_KEPT = 1024
_LONGEST_KEPT = 256
_LONGEST_WORD = 48
_UUID = re.compile(r"[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9._~-]*(?::[A-Za-z]+)?")
_HEX = re.compile(r"[0-9a-f]{8,}", re.IGNORECASE)
_VERSION = re.compile(r"v\d{1,3}(?:[a-z]+\d{0,2})?|\d{4}-\d{2}-\d{2}", re.ASCII)
#: So many digits in a word make it a key of something.
_MANY_DIGITS = 4
_LONG = 16

_templates: dict[str, str] = {}


def template(path: str) -> str:
    """The path with `{id}`, `{uuid}` and `{token}` for the parts that change: ASCII, and cut where it is long."""
    found = _templates.get(path)
    if found is None:
        found = "/".join([_part(part) for part in path[:_LONGEST].split("/", _MOST_PARTS)[:_MOST_PARTS]])
        if len(path) <= _LONGEST_KEPT:
            if len(_templates) >= _KEPT:  # it is made anew in no time, and holds what is in use
                _templates.clear()
            _templates[path] = found
    return found


def is_token(part: str) -> bool:
    """Whether a part of a path looks like a key, a hash or the like."""
    return _part(part) == "{token}"


def without_tokens(path: str, longer_than: int = 0) -> str:
    """The path as it is, with `{token}` for the parts over a length that look like a key.

    Args:
        path: a path, of which what is too long to be read is left out.
        longer_than: shorter parts, and those of this length, stay whatever they are.
    """
    parts = path[:_LONGEST].split("/", _MOST_KEPT_PARTS)
    return "/".join(["{token}" if len(part) > longer_than and _part(part) == "{token}" else part for part in parts])


def _part(part: str) -> str:
    if not part:
        return part
    if "%" in part:
        part = unquote(part, errors="replace")
    if part.isdecimal():
        return "{id}"
    if _VERSION.fullmatch(part):
        return part
    if _UUID.fullmatch(part):
        return "{uuid}"
    digits = sum(map(str.isdecimal, part)) if len(part) <= _LONGEST_WORD else _MANY_DIGITS
    if not _WORD.fullmatch(part) or digits >= _MANY_DIGITS or (digits and (len(part) >= _LONG or _HEX.fullmatch(part))):
        return "{token}" if digits >= _MANY_DIGITS or not _simple(part) else "{id}"
    return part


def _simple(part: str) -> bool:
    """Whether it is a short number with a word beside it, as in `42a` or `7-days`."""
    return part[0].isdecimal() and len(part) < _LONG and part.isascii()
